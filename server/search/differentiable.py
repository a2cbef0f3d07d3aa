"""A differentiable search: one federation trains all candidates mixed, and the one with the largest share wins.

See `shared.models.mixture` for the paper. Network weights and shares are trained in turn at every site and averaged by
the plan's strategy, so a search costs one run of a network as large as all candidates together.
"""

from collections.abc import Sequence
from pathlib import Path

from astrofed.server.checkpoint import MODEL, load_arrays
from astrofed.server.federation import Observer
from astrofed.server.search.federated import RunPlan
from astrofed.server.search.halving import NothingFound
from astrofed.server.search.space import Choices, Space, candidate_plan
from astrofed.shared.models.mixture import shares_of
from astrofed.shared.plan import Plan, load_plan

FOLDER = "mixture"


def mixture_plan(plan: Plan, space: Space, rounds: int) -> Plan:
    """Return the plan that trains all candidates at once."""
    candidates = list(space.candidates())
    sections = [candidate_plan(plan, choices, plan.name).to_dict()["model"] for choices in candidates]
    data = candidate_plan(plan, candidates[0], f"{plan.name}-mixture").to_dict()
    return load_plan(data | {"model": {"name": "mixture", "candidates": sections}, "rounds": rounds})


def mixed_shares(
    plan: Plan, space: Space, rounds: int, folder: Path, run: RunPlan, observer: Observer
) -> dict[Choices, float]:
    """Train the mixture and return each candidate's share.

    Raises:
        NothingFound: the shares never moved.
        Interrupted: the observer asked to stop.
    """
    path = folder / FOLDER
    if not (path / MODEL).is_file():
        run(mixture_plan(plan, space, rounds), path, observer)
    shares = shares_of(load_arrays(path / MODEL))
    if max(shares) == min(shares):
        raise NothingFound(
            "the shares of all candidates are equal: a site has to train on at least two batches a round, one for the "
            "networks and one for their shares; lower training.batch_size or raise training.epochs"
        )
    return dict(zip(space.candidates(), shares, strict=True))


def strongest(shares: dict[Choices, float]) -> tuple[int, Choices]:
    """Return the number, from 1, and the values of the candidate with the largest share."""
    ordered: Sequence[Choices] = list(shares)
    winner = max(ordered, key=shares.__getitem__)
    return ordered.index(winner) + 1, winner
