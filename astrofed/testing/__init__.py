"""Contract tests for plug-ins: what every task, model, strategy, rule and attack has to keep, on a class of your own.

    from astrofed.testing import check_plugin

    def test_my_rule():
        check_plugin("rules", "MyRule", plugins=["my_rule.py"])

    def test_my_model():
        check_plugin("models", "MyModel", plan="my_plan.toml", plugins=["my_model.py"])

The same from the command line: `astrofed plugins --plugin my_rule.py --test`. What ships passes the same tests. They
run on the plan's own data, and show only what they try: passing them is no proof.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from astrofed.shared import registry
from astrofed.shared.plan import Plan, load_plan
from astrofed.simulations.simulate import PlanSource
from astrofed.testing.attacks import check_attack
from astrofed.testing.contract import ContractBroken, NeedsPlan
from astrofed.testing.models import check_model
from astrofed.testing.rules import check_rule
from astrofed.testing.strategies import check_strategy
from astrofed.testing.tasks import check_task

__all__ = ["ContractBroken", "NeedsPlan", "check_plugin"]

_WITHOUT_PLAN: dict[str, Callable[[Any, dict[str, Any]], list[str]]] = {"rules": check_rule, "attacks": check_attack}
_WITH_PLAN: dict[str, Callable[[Plan], list[str]]] = {
    "models": check_model,
    "tasks": check_task,
    "strategies": check_strategy,
}


def check_plugin(
    kind: registry.Kind,
    name: str,
    *,
    plan: PlanSource | None = None,
    options: dict[str, Any] | None = None,
    plugins: Sequence[Path | str] = (),
) -> list[str]:
    """Run the contract tests of a kind on a plug-in and return what was seen to hold, a line each.

    Args:
        kind: "tasks", "models", "strategies", "rules" or "attacks".
        name: the plug-in's name in plans.
        plan: a plan that names it; tasks, models and strategies need one, and it is run for two short rounds.
        options: the plug-in's own options, for rules and attacks; by default none.
        plugins: Python files to import first.

    Raises:
        ContractBroken: the plug-in does not keep its contract; the message says which line and what was seen.
        NeedsPlan: the kind needs a plan, or the plan does not name the plug-in.
        UserMistake: the plan, a file or an option is wrong.
    """
    for file in plugins:
        registry.load_plugin_file(Path(file))
    found = registry.find(kind, name)
    if kind in _WITHOUT_PLAN:
        return _WITHOUT_PLAN[kind](found.load(), options or {})
    if plan is None:
        raise NeedsPlan(f"{kind}: {name!r} is tested in a plan that names it; give one")
    loaded = plan if isinstance(plan, Plan) else load_plan(Path(plan) if isinstance(plan, str) else plan)
    named = {"models": loaded.model, "tasks": loaded.task, "strategies": loaded.strategy}[kind].name
    if registry.find(kind, named).load() is not found.load():
        raise NeedsPlan(f"the plan names {named!r} as one of its {kind}, not {name!r}; name it there")
    return _WITH_PLAN[kind](loaded)
