"""The contract of strategies: a finite model from screened replies, the same one when a run is resumed."""

from astrofed.shared.plan import Plan, load_plan
from astrofed.testing.contract import expect, run, run_in_two_parts, scratch, shortened


def check_strategy(plan: Plan) -> list[str]:
    """Run the contract tests on a plan's strategy and return what was seen to hold."""
    plan = shortened(plan, privacy=None)
    with scratch() as folder:
        whole = run(plan, folder / "whole")
        parts = run_in_two_parts(plan, folder / "parts")
        kept = whole.model_path.read_bytes() == parts.model_path.read_bytes()
        seen = [
            "two rounds give a finite model",
            expect(
                kept,
                "a run that was stopped and resumed ends with the same bytes",
                "others; what the strategy keeps between rounds must be arrays, records or numbers in its attributes",
            ),
        ]
        if len(plan.trainers) > 1:
            run(_with_liar(plan), folder / "liar")
            seen.append("a round in which one reply is not finite goes on with the others")
    return seen


def _with_liar(plan: Plan) -> Plan:
    data = plan.to_dict()
    liar = plan.trainers[-1].name
    for participant in data["participants"]:
        if participant["name"] == liar:
            participant["attack"] = {"name": "nan"}
    return load_plan(data)
