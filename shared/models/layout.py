"""What a task and its network must agree on: keys of a plan's [task] section that fix shapes, read the same by both."""

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

from astrofed.shared import registry
from astrofed.shared.plan import Plan, PlanError, Section, check_options


class Layout(Section):
    """Base of layouts. A task's `Options` extend one; a network asks for it by `of_plan`."""

    for_tasks: ClassVar[str]
    """For which tasks a network of this layout is, and what others lack; ends a sentence, '{}' stands for the task."""

    @classmethod
    def of_plan(cls, plan: Plan) -> Self:
        """Return the options of the plan's task, which hold the layout.

        Raises:
            PlanError: the task's options hold no such layout, or one of them is wrong.
        """
        options: type[Section] = registry.get("tasks", plan.task.name).Options
        if not issubclass(options, cls):
            reason = cls.for_tasks.format(repr(plan.task.name))
            raise PlanError(f"model {plan.model.name!r} is for {reason}; change either")
        return check_options(options, plan.task, "task")


def check_names(names: Sequence[str], known: Iterable[str], wrong: str = "is not known", of: str = "") -> None:
    """Check that names are known and stand once; `wrong` says what an unknown one is, `of` whose they are.

    Raises:
        ValueError: one isn't; the message says the nearest.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r}{of} {wrong}; {nearest(name, known)}")
        if names.count(name) > 1:
            raise ValueError(f"{name!r} stands twice{of}")


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint for a name that is none of those known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
