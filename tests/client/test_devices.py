"""Networks on a device of the operator's choice: moved there and back, with all that losses hold, and refused in words.

The GPU is a pretended one (`astrofed.testing.pretended_gpu`): what it computes has to be what the CPU gives.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from astrofed.client.app import open_task
from astrofed.client.data.cube import write_cube
from astrofed.client.devices import DeviceUnavailable, check_devices, placed, to_device
from astrofed.client.privacy.clipping import Flat
from astrofed.client.privacy.dpsgd import Mechanism, train_privately
from astrofed.client.privacy.units import Rows
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.client.tasks.datacube_scales import Scales
from astrofed.client.training import train_locally
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Training, load_plan
from astrofed.shared.privacy.events import Event
from astrofed.shared.privacy.noise import UnsafeSeededRandomness
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.simulate import simulate
from astrofed.simulations.synthetic import synthetic_world
from astrofed.testing.pretended_gpu import GPU, pretended_gpu

DATACUBE: dict[str, Any] = {
    "task": {"name": "datacube", "variables": ["ta", "hus", "ua", "va", "zg", "ps", "ts", "rst", "rlut"]},
    "model": {"name": "datacube-net", "base_features": 4, "coarse_features": 4},
    "training": {"batch_size": 2},
}
SURROGATE: dict[str, Any] = {
    "mode": "multimodal",
    "task": {"name": "surrogate", "belts": 8, "sectors": 4},
    "model": {"name": "surrogate", "width": 8, "heads": 1, "depth": 1},
    "training": {"batch_size": 24, "optimizer": "sgd"},
}
PLANETS: dict[str, Any] = {"task": "planets", "model": "mlp", "training": {"batch_size": 64, "optimizer": "adamw"}}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "planets": (PLANETS, "planets/k2"),
    "planets, fedprox, accumulated": (
        {**PLANETS, "training": {"optimizer": "sgd", "batch_size": 32, "accumulate": 2, "gradient_clip": 0.1}},
        "planets/k2",
    ),
    "meta": ({**PLANETS, "mode": "meta", "meta": {"episodes": 8, "support_shots": 4}, "rounds": 2}, "planets/k2"),
    "deep-time": (
        {"task": {"name": "deep-time", "stride": 10, "horizon": 3}, "model": "history-net"},
        "histories/earth_interior",
    ),
    "transits": (
        {
            "task": {"name": "transits", "injections": 60, "tests": 40},
            "model": {"name": "transit-net", "width": 8},
            "training": {"optimizer": "sgd"},
        },
        "transits/k2_3",
    ),
    "spectrum": (
        {"task": "spectrum", "model": {"name": "spectrum-net", "width": 8}, "training": {"batch_size": 16}},
        "spectra/wasp39b_miri_lrs",
    ),
    "surrogate": (SURROGATE, "worlds/earthlike"),
    "surrogate, crps": (
        {**SURROGATE, "task": {**SURROGATE["task"], "objective": "crps", "balance": "uncertainty", "consistency": 0.1}},
        "worlds/earthlike",
    ),
    "datacube": (DATACUBE, ""),
    "datacube, physics": ({**DATACUBE, "physics": {"weights": {"energy": 0.1, "thermal-wind": 0.1}}}, ""),
    "datacube, fixers": ({**DATACUBE, "physics": {"fixers": ["mass", "hydrostatic", "radiation"]}}, ""),
    "datacube, balanced": (
        {**DATACUBE, "physics": {"weights": {"dry-mass": 0.1, "saturation": 0.1}, "balance": "gradient"}},
        "",
    ),
}


@pytest.fixture
def gpu() -> Iterator[str]:
    with pretended_gpu() as name:
        yield name


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def case(name: str, folder: Path) -> Callable[[str], tuple[Tensor, float, dict[str, float]]]:
    """What trains a case's model for a round on a device, and evaluates it: weights, loss and metrics."""
    keys, data = CASES[name]
    path = resolve_bundled(data) if data else folder / "world.zarr"
    if not data:
        write_cube(synthetic_world(1, lev=4, lat=8, lon=16), path)
    plan = load_plan({"name": "t", "rounds": 1, **keys, "participants": [{"name": "a", "data": str(path)}]})
    task = open_task(plan, Site("a", path))
    statistics = task.statistics()

    def run(device: str) -> tuple[Tensor, float, dict[str, float]]:
        model = build_model(plan)
        with placed(model, device):
            outcome = task.train(model, statistics, TrainInstruction(1, seed=3, proximal_mu=0.1))
            metrics = task.evaluate(model, statistics, with_baselines=False)
        return weights(model), outcome.metrics["loss"], metrics

    return run


@pytest.mark.parametrize("name", CASES)
def test_every_task_trains_and_evaluates_there_as_here(name: str, tmp_path: Path) -> None:
    run = case(name, tmp_path)
    here = run("cpu")
    with pretended_gpu() as gpu:
        there = run(gpu)
    torch.testing.assert_close(there[0], here[0], rtol=0, atol=1e-7)
    assert there[1] == pytest.approx(here[1], rel=1e-6) and there[2].keys() == here[2].keys()
    for key, value in there[2].items():
        assert value == pytest.approx(here[2][key], rel=1e-4, abs=1e-6), key


def test_a_constant_left_on_the_cpu_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = case("datacube", tmp_path)
    monkeypatch.setattr(Scales, "to", lambda self, _: self)
    with pretended_gpu() as gpu, pytest.raises(RuntimeError, match="found meta and cpu"):
        run(gpu)


def test_a_model_answers_where_it_is_asked_and_lies_where_it_lay(gpu: str) -> None:
    model, inputs = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(5, 3)
    tensors = [*model.parameters(), *model.buffers()]
    places, before = [tensor.data_ptr() for tensor in tensors], weights(model)
    with placed(model, gpu):
        assert model(inputs).device.type == "cpu" and model(inputs.to(GPU)).device == GPU
        with torch.no_grad():
            model[0].weight.add_(1.0)
    assert [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())] == places
    assert all(tensor is now for tensor, now in zip(tensors, (*model.parameters(), *model.buffers()), strict=True))
    torch.testing.assert_close(weights(model)[:12], before[:12] + 1)
    assert int(model.get_buffer("1.num_batches_tracked")) == 2 and not model._forward_hooks


def test_private_training_gives_the_same_there() -> None:
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    training = Training(optimizer="adam", learning_rate=0.1, batch_size=16)

    def run(device: str) -> Tensor:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        units = Rows((inputs, inputs[:, :1]), lambda net, batch: (net(batch[0]) - batch[1]).square().mean())
        mechanism = Mechanism(Event(noise_multiplier=1.0, sample_rate=0.4, steps=3), Flat(1.0))
        with placed(model, device):
            train_privately(model, units, training, TrainInstruction(1, 2), 1, mechanism, UnsafeSeededRandomness(7))
        return weights(model)

    here = run("cpu")
    with pretended_gpu() as gpu:
        there = run(gpu)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-6)


def test_all_kinds_of_batches_are_moved(gpu: str) -> None:
    batch = {"a": (torch.ones(2), [torch.ones(1), "b"]), "c": 3}
    moved = to_device(batch, GPU)
    assert moved["a"][0].device == moved["a"][1][0].device == GPU and moved["a"][1][1] == "b" and moved["c"] == 3


def test_a_loss_of_a_plug_in_is_taken_on_the_device(gpu: str) -> None:
    model, seen = nn.Linear(2, 1), set[torch.device]()

    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        seen.add(batch.device)
        found: Tensor = net(batch).square().mean()
        seen.add(found.device)
        return found

    with placed(model, gpu):
        train_locally(model, lambda _: iter([torch.ones(3, 2)]), loss, Training(), TrainInstruction(1, 1), 1)
    assert seen == {GPU}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu0", "no device"),
        ("cuda", "no device"),
        ("cuda:0", r"limits\.devices: 'cuda:0'.*built without CUDA.*\"cpu\""),
    ],
)
def test_what_is_not_there_is_named(name: str, words: str) -> None:
    if name == "cuda:0" and torch.cuda.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(DeviceUnavailable, match=words):
        check_devices(["cpu", name], "limits.devices")


def test_a_simulation_says_so_before_it_begins(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="device: 'cuda:77'"):
        simulate(small, out=tmp_path / "run", device="cuda:77")
    assert not (tmp_path / "run").exists()
