"""The plans of an evolution's parts: a member's training on its island, and a look at all sites."""

from collections.abc import Mapping, Sequence
from typing import Any

from astrofed.server.evolution.changes import corners
from astrofed.server.evolution.lives import Place
from astrofed.shared.models.base import build_model
from astrofed.shared.overrides import set_key
from astrofed.shared.plan import Plan, PlanError, load_plan
from astrofed.shared.plan_evolution import Evolution
from astrofed.shared.registry import normalise
from astrofed.shared.seeds import derive_seed
from astrofed.shared.subset import without_absent

EVOLVED = "training."
SEED_BITS = 31
SCHEDULE = {"training.decay", "training.warmup", "training.schedule"}
SEVERAL = ("robust", "block-mean")  # strategies that have nothing to do with a single site


def evolution_of(plan: Plan) -> Evolution:
    """Return a plan's section (PlanError: it has none)."""
    if plan.evolution is None:
        raise PlanError("mode 'evolution' needs an [evolution] section with the keys that evolve")
    return plan.evolution


def islands_of(plan: Plan) -> list[list[str]]:
    """Return the training sites of each island."""
    names = [participant.name for participant in plan.trainers]
    return [[name] for name in names] if evolution_of(plan).islands else [names]


def member_plan(plan: Plan, values: Mapping[str, int | float], sites: Sequence[str], place: Place) -> Plan:
    """Return the plan of one member's training in one generation: a short federation of its island's sites.

    The learning rate's schedule is left to the rounds after the evolution: here the rate itself evolves.

    Raises:
        PlanError: a value is none that the plan could have.
    """
    settings = evolution_of(plan)
    seed = derive_seed(plan.seed, "evolution", place.island, place.generation, place.member) >> (63 - SEED_BITS)
    name = f"{plan.name[:60]}-{place}"
    data = _part(plan, values, sites) | {"name": name, "seed": seed}
    data |= {"rounds": settings.rounds, "evaluate_every": settings.rounds}
    data["training"] |= {"decay": 1.0, "warmup": 0}
    return load_plan(data)


def look_plan(plan: Plan, values: Mapping[str, int | float], name: str) -> Plan:
    """Return the plan with which all training sites look at a model; it is stopped before its first round."""
    sites = [participant.name for participant in plan.trainers]
    return load_plan(_part(plan, values, sites) | {"name": f"{plan.name[:60]}-{name}"})


def check_evolution(plan: Plan) -> Evolution:
    """Return a plan's section after it was seen that every value within its bounds can be one of the plan's.

    Raises:
        PlanError: a key is not the training's, or a bound can't be a value of it.
    """
    settings = evolution_of(plan)
    for key in settings.keys:
        if not key.startswith(EVOLVED):
            raise PlanError(f"evolution.keys: {key!r} can't evolve; keys begin with {EVOLVED}")
        if key in SCHEDULE:
            raise PlanError(f"evolution.keys: {key!r} can't evolve: schedules run over the rounds after the evolution")
    sites = islands_of(plan)[0]
    for values in corners(settings):
        try:
            build_model(member_plan(plan, values, sites, Place(island=1, generation=1, member=1)))
        except PlanError as error:
            chosen = ", ".join(f"{key} = {value!r}" for key, value in values.items())
            raise PlanError(f"evolution.keys: a member with {chosen} can't be trained: {error}") from error
    return settings


def _part(plan: Plan, values: Mapping[str, int | float], sites: Sequence[str]) -> dict[str, Any]:
    data = plan.to_dict()
    del data["evolution"]
    for key, value in values.items():
        set_key(data, key, value)
    data["participants"] = [item for item in data["participants"] if item["name"] in sites]
    data["mode"] = "federated" if len(sites) > 1 else "single"
    if len(sites) == 1 and normalise(plan.strategy.name) in SEVERAL:
        data["strategy"] = {"name": "FedAvg", "timeout_s": plan.strategy.timeout_s}
    return without_absent(data)
