"""`astrofed bench model`: what the datacube network costs and how good it gets, beside its peers, in one run."""

from collections.abc import Callable, Sequence

import torch

from astrofed.simulations.bench.datacube_costs import checkpointing_costs, inference_costs, physics_costs
from astrofed.simulations.bench.datacube_runs import OURS, PEER, PEER_RATES, PLAIN, TRAINED, UNSEEN, Fit, baselines, fit
from astrofed.simulations.bench.gpu_costs import gpu_costs
from astrofed.simulations.bench.model_result import ModelResult, Part, interval
from astrofed.simulations.bench.result import Target, this_machine

SEEDS, EPOCHS, PEER_SEEDS = 5, 6, 3
QUICK_SEEDS, QUICK_EPOCHS = 2, 3
FEWER_STEPS, COMPLIANCE = 0.3, 0.95
MASS_BOUND, ENERGY_BOUND = 1e-3, 0.09
"""Of a roll-out: relative change of the dry mass in 12 months, and a month's net flux over a quarter of the star's.

The shipped worlds' own months reach 1.05e-3, from the fourth month on, and 0.078."""


def run_model_bench(*, quick: bool, done: Callable[[str], None] = lambda _: None) -> ModelResult:
    """Measure costs and train all variants from several seeds; `done` is told after every epoch."""
    seeds, epochs, peers = (QUICK_SEEDS, QUICK_EPOCHS, QUICK_SEEDS) if quick else (SEEDS, EPOCHS, PEER_SEEDS)
    repeats = 3 if quick else 9
    machine = this_machine()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        costs = (physics_costs(2 * repeats), checkpointing_costs(repeats, quick=quick))
        first = [fit(PEER, 0, epochs, rate=rate, done=done) for rate in PEER_RATES]
        best = min(range(len(PEER_RATES)), key=lambda index: first[index].unseen[-1])
        fits = {
            OURS: [fit(OURS, seed, epochs, done=done) for seed in range(seeds)],
            PLAIN: [fit(PLAIN, seed, epochs, done=done) for seed in range(seeds)],
            PEER: [first[best], *(fit(PEER, s, epochs, rate=PEER_RATES[best], done=done) for s in range(1, peers))],
        }
        known = baselines(epochs)
    finally:
        torch.set_num_threads(threads)
    parts = (
        *costs,
        inference_costs(),
        gpu_costs(repeats),
        convergence(fits[OURS], fits[PLAIN]),
        compliance(fits[OURS], fits[PLAIN], known),
        skill(fits, known, PEER_RATES[best]),
        rolled(fits[OURS]),
    )
    settings = {"seeds": seeds, "epochs": epochs, "trained": TRAINED, "unseen": UNSEEN, "quick": quick}
    return ModelResult("The datacube network", machine, parts, settings)


def convergence(ours: Sequence[Fit], plain: Sequence[Fit]) -> Part:
    """How many fewer epochs the fits with physics need for the error that those without end with, on unseen worlds."""
    saved = [
        1 - epochs_until(with_.unseen, without.unseen[-1]) / len(without.unseen)
        for with_, without in zip(ours, plain, strict=True)
    ]
    found = interval(saved)
    rows = tuple(
        (
            str(epoch + 1),
            str(interval([f.unseen[epoch] for f in ours])),
            str(interval([f.unseen[epoch] for f in plain])),
        )
        for epoch in range(len(ours[0].unseen))
    )
    low = found.mean - (found.half or 0.0)
    target = Target("with physics the same held-out error in at least 30 % fewer steps", found.mean, low >= FEWER_STEPS)
    note = f"Error on unseen worlds by epoch; steps saved at the end: {found} of all (0: none, or never reached)."
    return Part("Convergence with and without physics", ("epoch", "with", "without"), rows, (target,), note,
                {"saved": saved})  # fmt: skip


def epochs_until(curve: Sequence[float], error: float) -> float:
    """Return at which epoch, interpolated, a curve first falls to an error; all of them where it never does."""
    before = None
    for epoch, value in enumerate(curve, start=1):
        if value <= error:
            if before is None or before == value:
                return float(epoch)
            return epoch - 1 + (before - error) / (before - value)
        before = value
    return float(len(curve))


def compliance(ours: Sequence[Fit], plain: Sequence[Fit], known: dict[str, float]) -> Part:
    """Compliance of predictions on unseen worlds, beside that of the worlds' own months."""
    rows, relative = [], []
    for key in sorted(key for key in ours[0].final if key.endswith("/compliance")):
        name = key.split("/")[1]
        data = known[f"unseen/baseline/data/{key}"]
        with_, without = (interval([each.final[key] for each in fits]) for fits in (ours, plain))
        relative.append(min(with_.mean / data, 1.0))
        rows.append((name, str(with_), str(without), f"{data:.4g}", f"{ours[0].final[f'physics/{name}/tolerance']:g}"))
    worst = min(relative)
    target = Target("compliance of at least 95 % of the data's own, of every constraint", worst, worst >= COMPLIANCE)
    columns = ("constraint", "with physics", "without", "the data's own", "tolerance")
    return Part("Compliance on unseen worlds", columns, tuple(rows), (target,), "", {"relative": relative})


def skill(fits: dict[str, list[Fit]], known: dict[str, float], peer_rate: float) -> Part:
    """Errors of all variants beside persistence, climatology and the ridge."""
    final = {name: (interval([f.held_out for f in each]), interval([f.unseen[-1] for f in each]))
             for name, each in fits.items()}  # fmt: skip
    rows = [(name, str(fits[name][0].parameters), *(str(each) for each in pair)) for name, pair in final.items()]
    for name in ("persistence", "climatology", "ridge"):
        values = [known.get(f"{prefix}baseline/{name}/loss") for prefix in ("", "unseen/")]
        rows.append((name, "", *("not evaluable" if value is None else f"{value:.4g}" for value in values)))
    ours, peer = final[OURS][1], final[PEER][1]
    above = ours.mean + (ours.half or 0.0)
    persistence, climatology = (known[f"unseen/baseline/{name}/loss"] for name in ("persistence", "climatology"))
    targets = (
        Target("ours is ahead of the peer on unseen worlds, intervals apart", peer.mean / ours.mean,
               above < peer.mean - (peer.half or 0.0)),
        Target("ours beats persistence on unseen worlds outside the seeds' spread", persistence / ours.mean,
               above < persistence),
        Target("ours beats climatology on unseen worlds outside the seeds' spread", climatology / ours.mean,
               above < climatology),
    )  # fmt: skip
    note = (
        "Error as a share of a typical month-to-month change, mean and 95 % interval over seeds. Climatology is the "
        "mean of the same months in a world's other epoch, which is more than a network knows of an unseen world. The "
        "peer's "
        f"learning rate, {peer_rate:g}, is the better of {PEER_RATES} on its first seed."
    )
    columns = ("network", "parameters", "held-out months", "unseen worlds")
    return Part("Error beside the peers", columns, tuple(rows), targets, note)


def rolled(ours: Sequence[Fit]) -> Part:
    """Roll-outs of unseen worlds: error by lead, mass and energy over all months."""
    every = [(name, rollout) for each in ours for name, rollout in each.rollouts.items()]
    rows = []
    for name in UNSEEN:
        found = [rollout for world, rollout in every if world == name]
        rows.append(
            (
                name,
                *(str(interval([rollout.error[lead] for rollout in found])) for lead in (0, 3, 7)),
                *(f"{found[0].persistence[lead]:.3g}" for lead in (3, 7)),
                f"{max(max(rollout.mass) for rollout in found):.1e}",
                f"{max(max(rollout.energy) for rollout in found):.3f}",
                f"{min(r.coldest for r in found):.0f} to {max(r.warmest for r in found):.0f}",
            )
        )
    stable = all(rollout.finite and rollout.coldest > 100 and rollout.warmest < 400 for _, rollout in every)
    mass = max(max(rollout.mass) for _, rollout in every)
    energy = max(max(rollout.energy) for _, rollout in every)
    ahead = min(rollout.error[-1] / rollout.persistence[-1] for _, rollout in every)
    behind = max(rollout.error[-1] / rollout.persistence[-1] for _, rollout in every)
    targets = (
        Target("12 months stay finite, between 100 and 400 K", None, stable),
        Target(f"dry mass changes by at most {MASS_BOUND:g}", mass, mass <= MASS_BOUND),
        Target(
            f"no month's net flux exceeds {ENERGY_BOUND:g} of a quarter of the star's", energy, energy <= ENERGY_BOUND
        ),
        Target("the error after 8 months stays below persistence's", behind, behind < 1),
    )
    columns = ("world", "error, month 1", "month 4", "month 8", "persistence, 4", "8", "dry mass", "net flux", "K")
    note = (
        f"Every seed, both epochs of each world; the best seed's error after 8 months is {ahead:.2f} of persistence's."
    )
    return Part("Roll-outs of unseen worlds over 12 months", columns, tuple(rows), targets, note)
