"""Planets as tasks with few samples: a task is a whole site, or a star with several planets.

A star's own oddities (a wrong radius, a metal-rich disc) are common to its planets, so what some of them show helps to
predict the others. With a [privacy] section a task has to be one privacy unit: stars, where the contract protects
stars. A star with one planet has no query and is left out.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.client.meta.adaptation import Adapter, predictions
from astrofed.client.meta.algorithms import MetaLoss
from astrofed.client.meta.episodes import AdaptedScores, FewShot, Stacked
from astrofed.client.privacy.gradients import Units
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.units import Population, Rows
from astrofed.client.task import Statistics
from astrofed.client.tasks.planets_catalogue import Planets
from astrofed.client.tasks.planets_scores import (
    bare_metric,
    baseline_scores,
    predict,
    scored_units,
    scores,
    unit_losses,
)
from astrofed.client.training import Loss
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan, PlanError
from astrofed.shared.seeds import derive_seed

if TYPE_CHECKING:
    from astrofed.client.tasks.planets import PlanetSurrogate

CHUNK = 128  # stars whose adapted weights are in memory at once


class TooFewForEpisodes(UserMistake):
    """A site has too few planets, or too few stars with several, for the plan's support and query."""


class PlanetEpisodes(FewShot[Units]):
    """Episodes of one site's planets; batches are features, targets, given and which rows count [shot, …]."""

    kinds: ClassVar[tuple[str, ...]] = ("sites", "stars")

    def __init__(self, task: "PlanetSurrogate") -> None:
        super().__init__(task)
        self._task = task

    @classmethod
    def check(cls, plan: Plan) -> None:
        """See `FewShot`: with privacy a task has to lie within one unit."""
        super().check(plan)
        assert plan.meta is not None
        if plan.privacy is not None and (plan.meta.tasks != "stars" or plan.privacy.unit != "star"):
            raise PlanError(
                f"meta.tasks with [privacy]: an episode of {plan.meta.tasks or 'sites'} mixes many units "
                f"({plan.privacy.unit}), whose influence on it can't be bounded one by one; set meta.tasks = 'stars' "
                "and privacy.unit = 'star' (the tables' contract has to say so), or remove [privacy]"
            )

    def loss(self, statistics: Statistics) -> Loss[Units]:
        """See `FewShot`: half the squared error in widths, a mean over the rows that count."""
        return _loss

    def batches(self, statistics: Statistics, generator: torch.Generator, size: int) -> Iterator[Stacked]:
        """See `FewShot`."""
        rows, shots = self._rows(), self.meta.support_shots + self.meta.query_shots
        stars = self._stars() if self.kind == "stars" else []
        if self.kind == "sites" and len(rows[0]) < shots:
            raise TooFewForEpisodes(
                f"{self._task.site.name}: {len(rows[0])} planets to train on are fewer than meta.support_shots + "
                f"meta.query_shots = {shots}; lower them"
            )
        while True:
            if self.kind == "stars":
                chosen = torch.randint(len(stars), (size,), generator=generator).tolist()
                yield self._split(rows, [stars[index] for index in chosen], generator)
            else:
                order = torch.rand(size, len(rows[0]), generator=generator).topk(shots, dim=1).indices
                cut = self.meta.support_shots
                yield Stacked(_taken(rows, order[:, :cut]), _taken(rows, order[:, cut:]))

    def population(self, statistics: Statistics, loss: MetaLoss[Units], generator: torch.Generator) -> Population:
        """See `FewShot`: each star's planets, split anew every round."""
        episodes = self._split(self._rows(), self._stars(), generator)
        columns = len(episodes.support)
        privacy = self._task.plan.privacy
        assert privacy is not None

        def unit_loss(model: nn.Module, units: Units) -> Tensor:
            return loss(model, Stacked(units[:columns], units[columns:]))

        return Rows((*episodes.support, *episodes.query), unit_loss, privacy.micro_batch)

    def protection(self) -> Protection:
        """See `FewShot`."""
        return self._task.protection()

    def num_scored(self) -> int:
        """See `FewShot`."""
        return len(self._scored()[0])

    def evaluated_units(self, metric: str) -> int:
        """See `FewShot`."""
        return scored_units(self._scored()[0], bare_metric(metric))

    def evaluate(
        self, model: nn.Module, statistics: Statistics, adapter: Adapter[Units], *, with_baselines: bool
    ) -> AdaptedScores:
        """See `FewShot`: a star's planet is scored after adaptation to its siblings, a site's to a few of its planets.

        At a site that only evaluates the few are left out of the scores; elsewhere they are planets to train on.
        """
        planets, support = self._scored()
        own = None
        if self.kind == "sites":
            own = adapter.adapted(model, support)
            after = predict(own, planets)
        else:
            after = torch.cat(
                [
                    predictions(model, adapter.stacked(model, tuple(c[i : i + CHUNK] for c in support)), rows)[:, 0]
                    for i, rows in zip(range(0, len(planets), CHUNK), _row_chunks(planets.features), strict=True)
                ]
            )
        extra = baseline_scores(planets) if with_baselines else {}
        return AdaptedScores(scores(predict(model, planets), planets) | extra, scores(after, planets) | extra, own)

    def _rows(self) -> Units:
        """All training rows, each of which counts."""
        rows = self._task.training_rows()
        return (*rows, torch.ones(len(rows[0])))

    def _stars(self) -> list[NDArray[np.intp]]:
        """The training rows of each star that has several."""
        stars = in_company(self._task.catalogue.training.star)
        if not stars:
            raise TooFewForEpisodes(
                f"{self._task.site.name}: no star has two planets to train on; set meta.tasks = 'sites'"
            )
        return stars

    def _split(self, rows: Units, stars: list[NDArray[np.intp]], generator: torch.Generator) -> Stacked:
        """Split each star's planets at random: at most `support_shots` and `query_shots`, at least one each."""
        most, fewest = self.meta.support_shots, self.meta.query_shots
        supports, queries = [], []
        for star in stars:
            order = star[torch.randperm(len(star), generator=generator).numpy()]
            cut = min(most, len(star) - 1)
            supports.append(order[:cut])
            queries.append(order[cut : cut + fewest])
        return Stacked(_padded(rows, supports, most), _padded(rows, queries, fewest))

    def _scored(self) -> tuple[Planets, Units]:
        """The planets that are scored, and what is adapted to: one support, or one [planet, shot, …] for each."""
        found, shots = self._task.catalogue, self.meta.support_shots
        name, seed = self._task.site.name, self._task.plan.seed
        generator = torch.Generator().manual_seed(derive_seed(seed, "support", name))
        if self.kind == "stars":
            stars = in_company(found.held_out.star)
            if not stars:
                raise TooFewForEpisodes(f"{name}: no held-out star has two planets; set meta.tasks = 'sites'")
            cases = [(i, star[star != i]) for star in stars for i in star.tolist()]
            kept = [others[torch.randperm(len(others), generator=generator).numpy()[:shots]] for _, others in cases]
            scored = found.held_out
            support = _padded(_counting(scored), kept, shots)
            return _ordered(scored, np.array([i for i, _ in cases])), support
        trains = self._task.site.role == "train"
        source = found.training if trains else found.held_out
        if len(source) <= shots:
            raise TooFewForEpisodes(
                f"{name}: {len(source)} planets are too few to adapt to meta.support_shots = {shots}; lower it"
            )
        chosen = torch.randperm(len(source), generator=generator)[:shots]
        support = tuple(column[chosen] for column in (self._rows() if trains else _counting(source)))
        if trains:
            return found.held_out, support
        rest = np.ones(len(source), dtype=np.bool_)
        rest[chosen.numpy()] = False
        return source.where(rest), support


def in_company(stars: NDArray[np.str_]) -> list[NDArray[np.intp]]:
    """Return the rows [planet] of each star that has several, in the order of the stars' names."""
    _, inverse, counts = np.unique(stars, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    return [rows for rows in np.split(order, np.cumsum(counts)[:-1]) if len(rows) > 1]


def _loss(model: nn.Module, batch: Units) -> Tensor:
    features, targets, given, counted = batch
    return (unit_losses(model(features), targets, given) * counted).sum() / counted.sum()


def _taken(rows: Units, index: Tensor) -> Units:
    return tuple(column[index] for column in rows)


def _padded(rows: Units, chosen: list[NDArray[np.intp]], size: int) -> Units:
    """[task, size, …]: each task's rows, filled up with ones that don't count."""
    index = np.zeros((len(chosen), size), dtype=np.int64)
    counted = np.zeros((len(chosen), size), dtype=np.float32)
    for place, own in enumerate(chosen):
        index[place, : len(own)], counted[place, : len(own)] = own, 1.0
    taken = _taken(rows, torch.from_numpy(index))
    return (*taken[:-1], torch.from_numpy(counted))


def _counting(planets: Planets) -> Units:
    return planets.features, planets.targets, planets.given, torch.ones(len(planets))


def _ordered(planets: Planets, index: NDArray[np.intp]) -> Planets:
    rows = torch.from_numpy(index)
    return Planets(
        planets.features[rows],
        planets.targets[rows],
        planets.given[rows],
        planets.zero_albedo[rows],
        planets.unit[index],
        planets.star[index],
    )


def _row_chunks(features: Tensor) -> Iterator[Tensor]:
    """[task, 1, feature]: each planet to predict by its own weights, a chunk at a time."""
    for chunk in torch.split(features, CHUNK):
        yield chunk[:, None]
