"""The multi-modal surrogate's task: a belt's surface and radiation some months ahead, from what a site can observe.

Sites need not have the same modalities. A site trains the shared part of the network and the encoders of its own
modalities; the others it sends back as they came, bit for bit. In training modalities are left out at random (as in
Neverova et al. 2016, ModDrop, PAMI 38), so that the surrogate learns to do without any of them.

With a [privacy] section the unit is the world, as for the datacube task, and charged to the same account: a world is
known to the ledger by its climate's fingerprint, whatever is learned from it.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from astrofed.client.data.cube import read_cube
from astrofed.client.data.world import Cube
from astrofed.client.fitting import Split
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.refusals import check_unit
from astrofed.client.privacy.units import Parts
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.tasks.surrogate_samples import Samples, TooFewBelts, held_out, read_samples, together
from astrofed.client.tasks.surrogate_scores import baselines, conformal, errors, predict, uncertainty, with_fewer
from astrofed.client.training import train_locally
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.datacube_layout import VARIABLES
from astrofed.shared.models.surrogate_layout import MODALITIES, SCALARS, Observations, SurrogateLayout
from astrofed.shared.plan import Plan
from astrofed.shared.uncertainty import gaussian_crps, gaussian_nll

LEAST = 20  # samples to train on, and samples held out
PRIVATE_BATCH = 64  # samples of a world whose gradients are taken at once, where the plan doesn't say


class SeveralWorlds(UserMistake):
    """A site's folder holds several worlds, where each has to stand for itself."""


class Batch(NamedTuple):
    """Samples to train on, with one or two drawings of the modalities that are left to each."""

    views: Sequence[Observations]
    targets: Tensor  # [sample, target]
    given: Tensor  # [sample, target]

    def at(self, rows: Tensor) -> "Batch":
        """Return the samples with these indices [sample]."""
        return Batch([view.at(rows) for view in self.views], self.targets[rows], self.given[rows])


SPLIT: Split[Batch] = Split(lambda batch: (len(batch.targets), len(batch.views)), Batch.at)


class MultimodalSurrogate(Task):
    """Predicts a belt's temperature, radiation and habitable shares from any of four modalities; DP-SGD per world."""

    supports_privacy: ClassVar[bool] = True

    class Options(SurrogateLayout):
        """The layout, and how the surrogate is trained and tested."""

        held_out_months: Annotated[int, Field(ge=1)] = 4
        """How many target months at the end of the last epoch no training sample has."""
        modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
        """Chance that a sample goes without a modality that it has; one is always left."""
        mirror: bool = True
        """Mirror half of the training samples at the equator: the season then stands half a year away."""
        objective: Literal["nll", "crps"] = "nll"
        """What is minimised: the negative log likelihood, or the continuous ranked probability score."""
        balance: Literal["fixed", "uncertainty"] = "fixed"
        """How the targets' losses are weighed: alike, or each by its own size, which is learned beside it."""
        consistency: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
        """Weight of the squared difference between predictions from two drawings of the modalities."""

        @model_validator(mode="after")
        def _positive(self) -> Self:
            if self.objective == "nll" and self.balance == "uncertainty":
                raise ValueError(
                    "balance = 'uncertainty' divides losses by their size and needs positive ones; a likelihood weighs "
                    "each target by its own spread already: set objective = 'crps', or balance = 'fixed'"
                )
            return self

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self.options = self.Options.model_validate(options.model_dump())
        self._lock = threading.Lock()
        self._read: _Read | None = None
        self._protection: Protection | None = None

    @property
    def data(self) -> "_Read":
        """The site's samples, read at the first use; all are held out where the site only evaluates.

        Raises:
            UserMistake: data missing, corrupt or incomplete, too few samples, or the privacy unit is not theirs.
        """
        with self._lock:
            if self._read is None:
                self._read = self._open()
            return self._read

    def summary(self) -> SiteSummary:
        """Count the samples, name the modalities, and say what training will spend of the world's privacy.

        Raises:
            BudgetSpent, BudgetUnreachable: the plan doesn't fit into what is left for the world.
        """
        data = self.data
        private = self.plan.privacy is not None and self.site.role == "train"
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=len(data.training),
            num_eval_examples=len(data.held_out),
            num_units=data.worlds,
            unit=data.unit,
            fingerprint=data.fingerprint,
            description=f"world {data.world}: {', '.join(data.modalities)}; {self.options.belts} belts"
            + (f"; {self._protect().outlook()}" if private else ""),
        )

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round; parameters of modalities that the site lacks stay as they are, to the bit."""
        samples, privacy, training = self.data.training, self.plan.privacy, self.plan.training
        size = training.batch_size if privacy is None else privacy.micro_batch or PRIVATE_BATCH

        def source(generator: torch.Generator) -> Iterator[Batch]:
            return self._batches(samples, size, generator)

        with _frozen(model, self._untrained()):
            if privacy is not None:
                generator = torch.Generator().manual_seed(instruction.seed)  # of order and modalities, not of noise

                def share(model: nn.Module, batch: Batch) -> Tensor:
                    return self._loss(model, batch) * len(batch.targets) / len(samples)

                whole = Parts([lambda: source(generator)], share)
                return TrainOutcome(len(samples), self._protect().train(model, whole, instruction))
            fit = train_locally(
                model,
                source,
                self._loss,
                training,
                instruction,
                self.plan.rounds,
                split=SPLIT,
                at_once=self.plan.engine.workers,
            )
        return TrainOutcome(len(samples), {"loss": fit.loss})

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return errors, scores of the uncertainty, conformal intervals, and losses with fewer modalities.

        On the held-out months (all months of an unseen world); keys and units: `surrogate_scores`.
        """
        samples = self.data.held_out
        mean, spread = predict(model, samples.seen)
        metrics = errors(mean, samples) | uncertainty(mean, spread, samples)
        metrics |= conformal(mean, spread, samples, self.site.name) | with_fewer(model, samples)
        if with_baselines:
            for name, guesses in baselines(samples).items():
                metrics |= errors(guesses, samples, prefix=f"baseline/{name}/")
        return metrics

    def _open(self) -> "_Read":
        paths = _worlds(self.site.data)
        if self.plan.privacy is not None and len(paths) > 1:
            raise SeveralWorlds(
                f"{self.site.name}: {self.site.data} holds {len(paths)} worlds; each has a privacy account of its own, "
                "so make each a participant, or remove [privacy]"
            )
        worlds = [self._open_world(path) for path in paths]
        training, tested = together([world[0] for world in worlds]), together([world[1] for world in worlds])
        present = torch.cat((training.seen.present, tested.seen.present)).any(dim=0).tolist()
        modalities = tuple(name for name, there in zip(MODALITIES, present, strict=True) if there)
        first = worlds[0][2]
        if len(worlds) == 1:
            name, fingerprint = first.planet.name, first.fingerprint
        else:
            name = f"{first.planet.name} and {len(worlds) - 1} more"
            fingerprint = sha256("".join(sorted(world[2].fingerprint for world in worlds)).encode()).hexdigest()
        return _Read(training, tested, modalities, name, _unit(first), fingerprint, len(worlds))

    def _open_world(self, path: Path) -> tuple[Samples, Samples, Cube]:
        """Return one world's samples to train on, those held out, and its cube."""
        cube, name = read_cube(path), self.site.name
        if self.plan.privacy is not None:
            check_unit(self.plan.privacy.unit, _unit(cube), f"{name}: {path}")
        samples = read_samples(cube, path, self.options, name)
        months = cube.fields["ps"].shape[1]
        hidden = held_out(samples, months, self.options.held_out_months)
        if self.site.role == "evaluate":
            hidden[:] = True
        training, tested = samples.where(~hidden), samples.where(hidden)
        if len(tested) < LEAST or (self.site.role == "train" and len(training) < LEAST):
            raise TooFewBelts(
                f"{name}: the cube has {len(cube.geological_time)} epochs of {months} months, which leaves "
                f"{len(training)} samples to train on and {len(tested)} held out; at least {LEAST} of each are "
                f"needed: change held_out_months (now {self.options.held_out_months}), lead, months_in or belts"
            )
        return training, tested, cube

    def _batches(self, samples: Samples, size: int, generator: torch.Generator) -> Iterator[Batch]:
        seen, targets = samples.seen, samples.targets
        if self.site.corrupt_inputs is not None:
            poison = self.site.corrupt_inputs
            spoilt = {name: poison(getattr(seen, name)) for name in MODALITIES}
            seen = replace(seen, **spoilt)
        if self.site.corrupt_targets is not None:
            targets = self.site.corrupt_targets(targets)
        order = torch.randperm(len(samples), generator=generator)
        for rows in torch.split(order, size):
            batch = seen.at(rows)
            if self.options.mirror:
                batch = mirrored(batch, torch.rand(len(rows), generator=generator) < 0.5, self.options.variables)
            views = [
                batch.seen(left_out(batch.present, self.options.modality_dropout, generator))
                for _ in range(2 if self.options.consistency else 1)
            ]
            yield Batch(views, targets[rows], samples.given[rows])

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        score = gaussian_nll if self.options.objective == "nll" else gaussian_crps
        total, means = batch.targets.new_zeros(()), []
        for view in batch.views:
            mean, spread = model(view)  # [member, sample, target]
            by_target = (score(mean, spread, batch.targets) * batch.given).mean(dim=(0, 1))
            if self.options.balance == "uncertainty":
                # Kendall et al. (2018, CVPR), section 3.2: L / c + log c, which is least where c = L.
                by_target = by_target * torch.exp(-model.balance) + model.balance  # type: ignore[operator]
            total = total + by_target.sum() / len(batch.views)
            means.append(mean)
        if self.options.consistency:
            apart = ((means[0] - means[1]).square() * batch.given).mean()
            total = total + self.options.consistency * apart
        return total

    def _untrained(self) -> tuple[str, ...]:
        """The parts of parameters' names whose parameters the site doesn't train."""
        absent = [f".encoders.{name}." for name in MODALITIES if name not in self.data.modalities]
        return (*absent, *(("balance",) if self.options.balance == "fixed" else ()))

    def _protect(self) -> Protection:
        if self._protection is None:
            data = self.data
            self._protection = Protection(self.plan, self.site, data.fingerprint, data.unit, units=1)
        return self._protection


class _Read(NamedTuple):
    """What a site's data come to."""

    training: Samples
    held_out: Samples
    modalities: tuple[str, ...]
    world: str
    unit: str
    fingerprint: str
    worlds: int


def _worlds(data: Path) -> list[Path]:
    """Return the worlds that a site has: its data are one, or a folder of them (*.zarr), sorted by name."""
    inside = sorted(data.glob("*.zarr")) if data.is_dir() and not (data / "zarr.json").exists() else []
    return inside or [data]


def _unit(cube: Cube) -> str:
    return cube.attributes.get("privacy_unit", "world")


def left_out(present: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Return [sample, modality] which modalities are left when each goes with a chance; one is kept of those there."""
    if not chance:
        return present
    draws = torch.rand(present.shape, generator=generator)
    lucky = torch.where(present, draws, torch.full_like(draws, -1.0)).argmax(dim=1, keepdim=True)
    kept = present & (draws >= chance)
    return kept.scatter(1, lucky, present.gather(1, lucky))


def mirrored(seen: Observations, chosen: Tensor, variables: Sequence[str]) -> Observations:
    """Mirror the chosen samples [sample] at the equator.

    The primitive equations hold in a mirror if the northward wind changes its sign, and what was summer is winter: the
    season's phase moves by half a year. Temperatures, radiation, shares, and global means stay as they are.
    """
    sign = 1.0 - 2.0 * chosen.float()
    place, cube, scalars = seen.place.clone(), seen.cube.clone(), seen.scalars.clone()
    place[:, 0] *= sign
    for index, name in enumerate(variables):
        if VARIABLES[name].odd:
            cube[:, index] *= sign[:, None, None]
    for name in ("season, sine", "season, cosine"):
        scalars[:, SCALARS.index(name)] *= sign
    return replace(seen, place=place, cube=cube, scalars=scalars)


@contextmanager
def _frozen(model: nn.Module, parts: Sequence[str]) -> Iterator[None]:
    """Keep parameters whose names hold one of `parts` from being trained."""
    frozen = [
        weight
        for name, weight in model.named_parameters()
        if any(p in f".{name}." for p in parts) and weight.requires_grad
    ]
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)
