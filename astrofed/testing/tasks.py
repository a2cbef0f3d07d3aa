"""The contract of tasks: what leaves is finite, training follows from its seed, and evaluation changes nothing."""

import torch

from astrofed.client.app import open_task
from astrofed.client.task import Statistics, Task, TrainInstruction
from astrofed.server.beginning import STATISTICS
from astrofed.server.checkpoint import load_arrays
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan
from astrofed.simulations.sites import open_simulated_site
from astrofed.testing.contract import expect, finite, run, scratch, shortened


def check_task(plan: Plan) -> list[str]:
    """Run the contract tests on a plan's task, at its first training participant, and return what was seen to hold."""
    short = shortened(plan, privacy=None)
    with scratch() as folder:
        statistics: Statistics = load_arrays(run(short, folder / "run").run / STATISTICS)
    task, twin = _open(short), _open(short)
    seen = [
        expect(task.summary() == twin.summary(), "a site enrols the same way each time", "two different summaries"),
        expect(task.summary().num_units >= 1, "a site says how many privacy units it has", "none"),
        expect(
            set(task.statistics()) == set(twin.statistics()) and all(finite(v) for v in task.statistics().values()),
            "statistics are finite and have the same keys each time",
            "others",
        ),
    ]
    state = torch.get_rng_state()
    one, two = (_train(each, short, statistics) for each in (task, twin))
    alike = all(torch.equal(one[name], two[name]) for name in one)
    seen.append(expect(alike, "the same seed trains the same model", "two different ones"))
    kept = torch.equal(state, torch.get_rng_state())
    seen.append(expect(kept, "torch's global generator is left as it was", "it moved on"))
    model = build_model(short)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = task.evaluate(model, statistics, with_baselines=True)
    seen.append(expect("loss" in metrics, "evaluation tells a loss", f"only {', '.join(sorted(metrics))}"))
    seen.append(expect(all(finite(v) for v in metrics.values()), "metrics are finite", "one is not"))
    same = all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return [*seen, expect(same, "evaluation leaves the model as it is", "a weight changed")]


def _open(plan: Plan) -> Task:
    return open_task(plan, open_simulated_site(plan, plan.participants.index(plan.trainers[0]), None))


def _train(task: Task, plan: Plan, statistics: Statistics) -> dict[str, torch.Tensor]:
    model = build_model(plan)
    task.train(model, statistics, TrainInstruction(round=1, seed=5))
    return {name: value.clone() for name, value in model.state_dict().items()}
