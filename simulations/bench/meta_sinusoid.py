"""MAML on sinusoids through mode 'meta' as users run it, and the time of an iteration beside a bare torch.func loop.

The bare loop is the same mathematics in as few lines as torch.func needs: the same draws, network, rates and optimiser.
"""

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from astrofed.client.meta.adaptation import Adapter
from astrofed.client.meta.algorithms import MetaLoss
from astrofed.client.meta.episodes import Stacked
from astrofed.client.optimizers import make_optimizer
from astrofed.client.privacy.gradients import Units
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.client.training import train_locally
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, load_plan
from astrofed.simulations.bench.modes_result import ModeRow, at_most
from astrofed.simulations.bench.result import Target
from astrofed.simulations.bench.sinusoid import Sinusoids, draw, squared_error
from astrofed.simulations.bench.turns import Call, alternate, ratio
from astrofed.simulations.simulate import simulate

ITERATIONS = 30_000
BOUNDS = {1: 0.42, 5: 0.16, 10: 0.13}  # mean squared error after so many steps
WORK = "sinusoids, K = 10"


def sinusoid_plan(iterations: int, *, test_tasks: int = 600, seed: int = 1) -> Plan:
    """Return the plan of MAML on sinusoids: inner rate 0.01, Adam at 1e-3, 25 tasks a step."""
    return load_plan(
        {
            "name": "sinusoids",
            "mode": "meta",
            "seed": seed,
            "task": {"name": "sinusoids", "test_tasks": test_tasks},
            "model": "sinusoid-net",
            "training": {"optimizer": "adam", "learning_rate": 1e-3, "batch_size": 25},
            "meta": {
                "algorithm": "maml",
                "episodes": 25 * iterations,
                "support_shots": 10,
                "query_shots": 10,
                "inner_rate": 0.01,
            },
            "strategy": "FedAvg",
            "engine": {"threads": 1},
            "participants": [{"name": "one", "data": "sinusoids:7"}],
        }
    )


def sinusoid_rows(iterations: int = ITERATIONS, *, many: int = 10_000) -> list[ModeRow]:
    """Train, test on 600 tasks and, for a sharper number, on `many`; targets hold for the full number of iterations."""
    plan = sinusoid_plan(iterations)
    with tempfile.TemporaryDirectory() as folder:
        model = simulate(plan, out=Path(folder) / "run").load_model()
    rows = []
    for tasks in (600, many):
        for steps, bound in BOUNDS.items():
            error = _tested(plan, model, tasks, steps)
            targets: tuple[Target, ...] = ()
            if iterations == ITERATIONS and tasks == 600:
                targets = (at_most(f"mean squared error after {steps} steps at most {bound}", error, bound),)
            measure = f"mean squared error after {steps} step{'s' * (steps > 1)}"
            rows.append(
                ModeRow("meta", WORK, measure, error, count=tasks, targets=targets, note=f"{iterations:,} iterations")
            )
    return rows


def iteration_rows(block: int = 100, rounds: int = 9) -> list[ModeRow]:
    """Time blocks of iterations of the mode's own loop and of the bare one, in turns."""
    plan = sinusoid_plan(block)
    assert plan.meta is not None
    model, bare = build_model(plan), Bare(plan)
    loss = MetaLoss(model, squared_error, plan.meta)
    training = plan.training.model_copy(update={"max_steps": block})

    def source(generator: torch.Generator) -> Iterator[Stacked]:
        return itertools.islice(endless(generator), block)

    def ours() -> object:
        return train_locally(model, source, loss, training, TrainInstruction(1, seed=1), rounds=1)

    calls = {"ours": Call(lambda _: ours()), "bare": Call(lambda _: bare.run(block))}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = alternate(calls, rounds + 1, patience=float("inf"))
    finally:
        torch.set_num_threads(threads)
    mine, other = times["ours"][1:], times["bare"][1:]
    found = ratio(mine, other)
    target = at_most("an iteration takes at most 1.5 times a bare torch.func loop's", found, 1.5)
    each = f"{1e3 * statistics.median(mine) / block:.2f} ms; bare {1e3 * statistics.median(other) / block:.2f} ms"
    return [ModeRow("meta", WORK, "time of an iteration / bare", found, count=rounds, targets=(target,), note=each)]


class Bare:
    """The bare loop."""

    def __init__(self, plan: Plan) -> None:
        self.model = build_model(plan)
        self._training = plan.training

    def run(self, iterations: int) -> None:
        """Train on so many batches of 25 tasks with a new optimiser."""
        model = self.model
        optimizer = make_optimizer(model, self._training, self._training.learning_rate)
        draws = endless(torch.Generator().manual_seed(1))

        def value(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = torch.nn.functional.mse_loss(functional_call(model, weights, (x,)), y)
            return found

        def one(weights: dict[str, Tensor], support: Units, query: Units) -> Tensor:
            slopes = grad(value)(weights, *support)
            return value({name: w - 0.01 * slopes[name] for name, w in weights.items()}, *query)

        def mean(weights: dict[str, Tensor], batch: Stacked) -> Tensor:
            found: Tensor = vmap(one, in_dims=(None, 0, 0))(weights, batch.support, batch.query).mean()
            return found

        parameters = dict(model.named_parameters())
        for _ in range(iterations):
            batch = next(draws)
            slopes = grad(mean)({name: p.detach() for name, p in parameters.items()}, batch)
            for name, parameter in parameters.items():
                parameter.grad = slopes[name]
            optimizer.step()


def endless(generator: torch.Generator) -> Iterator[Stacked]:
    """Yield batches of 25 tasks of 10 + 10 points."""
    while True:
        yield draw(generator, 25, 10, 10)


def _tested(plan: Plan, model: torch.nn.Module, tasks: int, steps: int) -> float:
    """The error of a model on test tasks after so many steps, by the mode's own adaptation."""
    assert plan.meta is not None
    meta = plan.meta.model_copy(update={"adaptation_steps": steps})
    own = plan.model_copy(update={"meta": meta})
    task = Sinusoids(own, Sinusoids.Options(test_tasks=tasks), Site("one", Path("sinusoids:7")))
    scores = Sinusoids.few_shot(task).evaluate(model, {}, Adapter(meta, squared_error), with_baselines=False)
    return scores.after["loss"]
