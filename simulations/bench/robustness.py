"""`astrofed bench aggregation --attacks`: accuracy under attack, for each rule, what comes before it, and each split.

Setting: 17 participants, 4 of them attacking (6 in some cells), on scikit-learn's digits; learning rate 0.1, momentum
0.9, batches of 25, 400 steps. Rules see models, as in a federation; ByzFL's, where installed, see the same updates side
by side. Then the datacube task on six worlds.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np

from astrofed.server.aggregation.base import TooFewReplies
from astrofed.server.strategies.memory import Step
from astrofed.server.strategies.robust import DEFAULT_PRE, DEFAULT_RULE, build_pipeline
from astrofed.shared import registry
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Named, check_options
from astrofed.shared.seeds import derive_seed
from astrofed.simulations.attack import Attack, Scene
from astrofed.simulations.bench.byzfl_peer import peer
from astrofed.simulations.bench.digits_sites import CLASSES, DigitsSites, Floats, Split, gradients, initial_weights
from astrofed.simulations.bench.result import this_machine
from astrofed.simulations.bench.robustness_datacube import ATTACKS as CUBE_ATTACKS
from astrofed.simulations.bench.robustness_datacube import LIARS, SPLIT, measure_datacube
from astrofed.simulations.bench.robustness_findings import HARD, IID, MORE, NONE, F, judge, with_findings
from astrofed.simulations.bench.robustness_store import CellStore
from astrofed.simulations.bench.robustness_table import Cell, RobustnessResult, interval

Aggregation = Callable[[Floats, Sequence[Floats], int], Floats]
N, RATE, MOMENTUM, BATCH, STEPS = 17, 0.1, 0.9, 25, 400
# The attacks of the setting in which ByzFL's best reaches 60.3 %, and one more.
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sign flip": ("sign-flip", {}),
    "ipm 3": ("ipm", {"epsilon": 3.0}),
    "ipm 0.1": ("ipm", {"epsilon": 0.1}),
    "alie 1.5": ("alie", {"z": 1.5}),
    "label flip": ("label-flip", {"classes": CLASSES}),
    "mimic": ("mimic", {}),
    "min-max": ("min-max", {}),
}
JUDGED = tuple(ATTACKS)[:6]


class DigitsMissing(UserMistake):
    """The package that ships the images is not installed."""


@dataclass(frozen=True)
class Defence:
    """A rule, what comes before it, and their options; `tau` is in the units of the gradients."""

    rule: str
    pre: tuple[str, ...] = ()
    tau: float | None = None

    @property
    def name(self) -> str:
        """The stages in their order."""
        return " + ".join((*self.pre, self.rule)) + (f" {self.tau:g}" if self.tau else "")


DEFAULT = Defence(DEFAULT_RULE, DEFAULT_PRE)
PLAIN = Defence("mean")
RULES = ("krum", "multi-krum", "median", "trimmed-mean", "geometric-median", "mean-around-median", "mda")
BEFORE: tuple[tuple[str, ...], ...] = ((), ("nnm",), ("bucketing",), ("arc", "nnm"))
DEFENCES = (
    PLAIN,
    Defence("bulyan"),
    *(Defence(rule, pre) for rule in RULES for pre in BEFORE),
    *(Defence("centred-clipping", pre, tau) for tau in (None, 1.0) for pre in BEFORE),
)
QUICK = (PLAIN, Defence("krum"), Defence("krum", ("nnm",)), DEFAULT)
AGAINST_MORE = (Defence("krum"), Defence("krum", ("nnm",)), Defence("median"), DEFAULT)
ON_DATACUBES = (PLAIN, Defence("krum"), Defence("median"), Defence("krum", ("nnm",)), DEFAULT)
Work = tuple[Defence, str, str, int]  # split, attack, liars


def run_robustness_bench(quick: bool, workers: int | None = None, out: Path | None = None) -> RobustnessResult:
    """Measure the table; `quick` has four defences, four attacks, one split and three seeds.

    Args:
        quick: a minute or two instead of an hour and a half of processor time.
        workers: processes that share the work; by default one for each core that this process may use.
        out: a file for the cells, each as soon as it is measured; those that it holds already are not measured again.

    Raises:
        DigitsMissing: scikit-learn, which ships the images, is not installed.
        OtherTable: `out` holds something else.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise DigitsMissing("the digits come with scikit-learn, which is not installed: pip install 'astrofed[bench]'")
    seeds, work = range(3 if quick else 5), planned(quick)
    store = CellStore(out, {"n": N, "f": F, "steps": STEPS, "seeds": len(seeds), "quick": quick})
    left = [item for item in work if _key(item) not in store.cells]
    workers = workers or len(os.sched_getaffinity(0))
    measure = partial(measure_cell, seeds=seeds)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # read where a new process loads its libraries; one thread each
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for cell in pool.map(measure, left) if left else ():
            store.add(cell)
    cells = with_findings(store.cells[_key(item)] for item in work)
    settings = {"n": N, "f": F, "steps": STEPS, "seeds": len(seeds), "quick": quick}
    return RobustnessResult(this_machine(), tuple(cells), judge(cells, DEFAULT.name, PLAIN.name, JUDGED), settings)


def planned(quick: bool) -> list[Work]:
    """Return the cells of the table, in its order."""
    splits: tuple[Split, ...] = (HARD,) if quick else (IID, HARD, "one class each")
    attacks = (NONE, "sign flip", "ipm 3", "alie 1.5") if quick else (NONE, *ATTACKS)
    work: list[Work] = [
        (defence, split, attack, F)
        for split in splits
        for defence in (QUICK if quick else DEFENCES)
        for attack in attacks
    ]
    work += [(defence, split, "alie 1.5", MORE) for split in splits[:2] for defence in AGAINST_MORE]
    if not quick:
        work += [(defence, SPLIT, attack, LIARS) for defence in ON_DATACUBES for attack in CUBE_ATTACKS]
    return work


def _key(work: Work) -> tuple[str, str, str, int]:
    return work[0].name, *work[1:]


def measure_cell(work: Work, seeds: Sequence[int], steps: int = STEPS) -> Cell:
    """Return one cell of the table."""
    defence, split, attack, f = work
    if split == SPLIT:
        return measure_datacube(defence.rule, defence.pre, defence.name, attack, seeds[:3])
    options = {} if defence.tau is None else {"tau": defence.tau}
    try:
        ours = [accuracy(_ours(defence, seed, f), attack, split, seed, steps, f) for seed in seeds]
    except TooFewReplies as error:
        return Cell(*_key(work), note=str(error))
    theirs = []
    for seed in seeds:
        aggregate = peer(defence.rule, defence.pre, f, options)
        if aggregate is None:
            break
        np.random.seed(derive_seed(seed, "byzfl") % 2**32)  # its bucketing draws from numpy's global generator
        theirs.append(accuracy(_theirs(aggregate), attack, split, seed, steps, f))
    return Cell(*_key(work), *interval(ours), *interval(theirs))


def accuracy(aggregate: Aggregation, attack: str, split: str, seed: int, steps: int = STEPS, f: int = F) -> float:
    """Train once and return the accuracy on the test images, in per cent.

    Args:
        aggregate: from the model, the participants' models and the number of the round to the next model.
        attack: a key of ATTACKS, or "none", in which case only the honest take part as if f of them might lie.
        split: how the images are shared out.
        seed: of everything drawn.
        steps: rounds.
        f: how many of the participants attack.
    """
    rng = np.random.default_rng(derive_seed(seed, "digits", split))
    sites = DigitsSites(N - f, cast(Split, split), rng)
    weights = initial_weights(rng)
    means = np.zeros((N - f, len(weights)), np.float32)
    flipped = np.zeros_like(means)
    liar = None if attack == NONE else _attack(*ATTACKS[attack])
    with np.errstate(all="ignore"):
        for number in range(1, steps + 1):
            images, labels = sites.draw(BATCH, rng)
            means += (1 - MOMENTUM) * (gradients(weights, images, labels) - means)
            honest = [weights - np.float32(RATE) * mean for mean in means]
            own = weights - np.float32(RATE) * means.mean(axis=0)
            if liar is not None and liar.poisons_data:
                flipped += (1 - MOMENTUM) * (gradients(weights, images, CLASSES - 1 - labels) - flipped)
                own = weights - np.float32(RATE) * flipped.mean(axis=0)
            sent = [] if liar is None else [_forged(liar, number, weights, own, honest, f, rng)] * f
            weights = aggregate(weights, [*honest, *sent], number)
            if not np.isfinite(weights).all():
                return 0.0
    return sites.accuracy(weights)


def _ours(defence: Defence, seed: int, f: int) -> Aggregation:
    options = {} if defence.tau is None else {"tau": defence.tau * RATE}
    pipeline = build_pipeline(defence.rule, defence.pre, 0 if defence == PLAIN else f, options)
    last = Step()

    def aggregate(weights: Floats, models: Sequence[Floats], number: int) -> Floats:
        old = {"w": weights}
        drawn = pipeline.seeded(derive_seed(seed, "rules", number))
        result = drawn.aggregate(old, [{"w": model} for model in models], onward=last.onward(old)).arrays
        last.remember(old, result)
        return result["w"]

    return aggregate


def _theirs(aggregate: Callable[[Any], Any]) -> Aggregation:
    def step(weights: Floats, models: Sequence[Floats], number: int) -> Floats:
        updates = (weights - np.stack(models)) / np.float32(RATE)
        return np.asarray(weights - np.float32(RATE) * aggregate(updates), np.float32)

    return step


def _attack(name: str, options: Mapping[str, Any]) -> Attack:
    cls: type[Attack] = registry.get("attacks", name)
    return cls(check_options(cls.Options, Named(name=name, options=dict(options)), "attack"))


def _forged(
    liar: Attack, number: int, weights: Floats, own: Floats, honest: Sequence[Floats], f: int, rng: np.random.Generator
) -> Floats:
    scene = Scene(number, {"w": weights}, {"w": own}, {}, tuple({"w": model} for model in honest), f, rng)
    forgery = liar.forge(scene)
    return own if forgery is None else np.asarray(forgery.arrays["w"], np.float32)
