"""The space of an architecture search: which values a plan's keys may take, valid by construction.

A candidate is one value for each key. Every candidate is a plan of its own, so what can't be a plan is found before
anything is trained, and a candidate is trained by the same federation as any other plan.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from astrofed.shared.models.base import build_model
from astrofed.shared.models.mixture import MOST
from astrofed.shared.overrides import set_key
from astrofed.shared.plan import Plan, PlanError, Value, load_plan

SEARCHED = ("model.", "training.")
EVERY = 256  # spaces up to this size are checked whole, larger ones by each value and this many combinations
Choices = tuple[Value, ...]
"""A candidate: one value for each key of the space, in its order."""


@dataclass(frozen=True)
class Space:
    """The keys of a search and the values that each may take."""

    values: Mapping[str, Choices]

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return math.prod(len(values) for values in self.values.values())

    def candidates(self) -> Iterator[Choices]:
        """Yield every candidate once."""
        return itertools.product(*self.values.values())

    def at(self, places: tuple[int, ...]) -> Choices:
        """Return the candidate whose values stand at these places of their lists."""
        return tuple(values[place] for values, place in zip(self.values.values(), places, strict=True))

    def named(self, choices: Choices) -> dict[str, Value]:
        """Return a candidate's values by key."""
        return dict(zip(self.values, choices, strict=True))


def space_of(plan: Plan) -> Space:
    """Return a plan's space.

    Raises:
        PlanError: the plan has none.
    """
    if plan.search is None:
        raise PlanError("mode 'nas' needs a [search] section with the space of architectures")
    return Space(plan.search.space)


def candidate_plan(plan: Plan, choices: Choices, name: str) -> Plan:
    """Return the plan that trains one candidate: the search's own with the candidate's values, without tests.

    Raises:
        PlanError: a value is none that the plan could have.
    """
    data = plan.to_dict()
    del data["search"]
    for key, value in space_of(plan).named(choices).items():
        set_key(data, key, value)
    data |= {"name": name, "mode": "federated" if len(plan.trainers) > 1 else "single"}
    data["participants"] = [
        each for each in data["participants"] if each["role"] == "train"
    ]  # the others test the winner
    return load_plan(data)


def check_space(plan: Plan) -> Space:
    """Return a plan's space after it was seen that candidates can be built.

    Raises:
        PlanError: a key is not the model's or the training's, or a value can't be one of its.
    """
    space = space_of(plan)
    for key, values in space.values.items():
        if not key.startswith(SEARCHED):
            raise PlanError(f"search.space: {key!r} can't be searched; keys begin with {' or '.join(SEARCHED)}")
        if len(set(values)) != len(values):
            raise PlanError(f"search.space.{key!r}: a value stands twice in {list(values)}")
    for choices in _tried(space):
        try:
            build_model(candidate_plan(plan, choices, plan.name))
        except (PlanError, ValueError) as error:
            chosen = ", ".join(f"{key} = {value!r}" for key, value in space.named(choices).items())
            raise PlanError(f"search.space: the candidate {chosen} can't be built: {error}") from error
    if plan.search is not None and plan.search.algorithm == "differentiable":
        _check_mixable(plan, space)
    return space


def _check_mixable(plan: Plan, space: Space) -> None:
    """See that all candidates can be trained at once.

    Raises:
        PlanError: too many, keys that are not the model's, or a combination that isn't sound.
    """
    if not 2 <= space.size <= MOST:
        raise PlanError(
            f"search.space: {space.size} candidates; the differentiable search trains 2 to {MOST} at once: give fewer "
            "values, or algorithm = 'nsga2'"
        )
    others = [key for key in space.values if not key.startswith("model.")]
    if others:
        raise PlanError(f"search.space: {others[0]!r} is no key of the model's, and all candidates are trained alike")
    if plan.privacy is not None:
        raise PlanError("privacy: one unit's part in the mixture is not bounded; use algorithm = 'nsga2'")
    if plan.search is not None and plan.search.max_parameters is not None:
        raise PlanError("search.max_parameters: the differentiable search looks at the loss alone; remove it")


def _tried(space: Space) -> Iterator[Choices]:
    if space.size <= EVERY:
        yield from space.candidates()
        return
    lists = list(space.values.values())
    for place, values in enumerate(lists):
        for value in values:
            yield tuple(value if index == place else other[0] for index, other in enumerate(lists))
    rng = random.Random(0)
    for _ in range(EVERY):
        yield tuple(rng.choice(values) for values in lists)
