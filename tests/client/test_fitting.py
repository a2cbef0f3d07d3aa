"""Batches in pieces: what samples are found to need, the same steps in whatever pieces, and memory that runs out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from astrofed.client import fitting
from astrofed.client.app import open_task
from astrofed.client.data.cube import write_cube
from astrofed.client.fitting import COLUMNS, SampleTooLarge, saved_bytes
from astrofed.client.site import Site
from astrofed.client.task import Task, TrainInstruction
from astrofed.client.training import LocalFit, train_locally
from astrofed.shared.models.base import Model, build_model
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.shared.models.datacube_net import DatacubeNet
from astrofed.shared.plan import Training, load_plan
from astrofed.shared.seeds import torch_seeded
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.synthetic import synthetic_world

Batch = tuple[Tensor, Tensor]
INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.sin(INPUTS @ torch.randn(4, 2, generator=torch.Generator().manual_seed(2)))
SAMPLE = 4 * (4 + 16 + 2 + 2)
"""Bytes: the first layer keeps its input, ReLU and the second layer the 16 between them, the error its two sides."""


def network(dropout: float = 0.0) -> nn.Sequential:
    with torch_seeded(3):
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))


def batches(size: int) -> Callable[[torch.Generator], Iterator[Batch]]:
    def source(_: torch.Generator) -> Iterator[Batch]:
        for start in range(0, len(INPUTS), size):
            yield INPUTS[start : start + size], TARGETS[start : start + size]

    return source


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def fit(
    model: nn.Module, size: int = 12, split: Any = COLUMNS, of: Any = loss, at_once: int = 1, **keys: Any
) -> LocalFit:
    given = {"learning_rate": 0.1, "optimizer": "sgd", "batch_size": size, **keys}
    training, instruction = Training.model_validate(given), TrainInstruction(1, 5, proximal_mu=0.1)
    return train_locally(model, batches(size), of, training, instruction, 1, split=split, at_once=at_once)


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many bytes are free."""
    return lambda size: monkeypatch.setattr(fitting, "free_memory", lambda: size)


def test_what_is_saved_is_counted_to_the_byte() -> None:
    model, batch = network(), (INPUTS[:6].clone(), TARGETS[:6].clone())
    assert saved_bytes(lambda: loss(model, batch), model) == 6 * SAMPLE


@pytest.mark.parametrize("keys", [{}, {"accumulate": 2}, {"gradient_clip": 0.1}, {"precision": "bf16"}])
def test_steps_in_pieces_are_the_same_steps(
    free: Callable[[int], None], caplog: pytest.LogCaptureFixture, keys: dict[str, Any]
) -> None:
    whole, apart = network(), network()
    fits = fit(whole, split=None, epochs=3, **keys)
    free(2 * 5 * SAMPLE + 2)
    pieces = fit(apart, epochs=3, **keys)
    low = "precision" in keys
    torch.testing.assert_close(weights(apart), weights(whole), rtol=0, atol=1e-3 if low else 1e-6)
    assert pieces.steps == fits.steps and pieces.loss == pytest.approx(fits.loss, rel=1e-3 if low else 1e-6)
    if not low:
        words = "batches of 12 samples are taken in pieces of 5: one needs 1,152 bytes, 962 bytes are free"
        assert caplog.messages == [words]


def test_clients_that_train_at_once_share_the_memory(
    free: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    free(24 * SAMPLE)
    fit(network(), at_once=1)
    assert not caplog.messages
    fit(network(), at_once=3)
    assert "in pieces of 4" in caplog.text


def test_it_is_looked_once_at_what_a_shape_needs_and_never_again() -> None:
    model, sizes = network(), []

    def counting(model: nn.Module, batch: Batch) -> Tensor:
        sizes.append(len(batch[0]))
        return loss(model, batch)

    fit(model, of=counting)
    assert sizes == [1, 2, 12, 12]
    fit(model, of=counting)
    assert sizes[4:] == [12, 12]


def test_looking_draws_nothing() -> None:
    plain, looked = network(dropout=0.5), network(dropout=0.5)
    assert fit(plain, split=None) == fit(looked) and torch.equal(weights(plain), weights(looked))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), MemoryError(), RuntimeError("x: can't allocate memory: y")]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_runs_out_of_memory_begins_again_in_smaller_pieces(
    free: Callable[[int], None], caplog: pytest.LogCaptureFixture, error: Exception, accumulate: int
) -> None:
    """At its second pass as well, when gradients have been added already; smaller pieces stay for all later steps."""
    whole, apart = network(), network()
    fits = fit(whole, split=None, size=8, epochs=2, accumulate=accumulate)
    free(4 * 8 * SAMPLE)  # enough, but not amply
    sizes: list[int] = []

    def failing(model: nn.Module, batch: Batch) -> Tensor:
        sizes.append(len(batch[0]))
        if sizes[-1] > 4 or len(sizes) == 5:
            raise error
        return loss(model, batch)

    pieces = fit(apart, size=8, epochs=2, accumulate=accumulate, of=failing)
    torch.testing.assert_close(weights(apart), weights(whole), rtol=0, atol=1e-6)
    assert pieces.loss == pytest.approx(fits.loss, rel=1e-6) and pieces.steps == fits.steps
    assert sizes[:6] == [1, 2, 8, 4, 4, 2] and set(sizes[6:]) == {2}
    assert "in pieces of 4" in caplog.messages[0] and "in pieces of 2" in caplog.messages[1]


def test_a_sample_that_does_not_fit_is_an_error_that_names_the_mend(free: Callable[[int], None]) -> None:
    free(SAMPLE - 1)
    words = "training.batch_size = 12: one sample alone saves 96 bytes .* 95 bytes .* set training.checkpoint = true"
    with pytest.raises(SampleTooLarge, match=words):
        fit(network())


def test_memory_that_runs_out_with_one_sample_is_the_same_error_and_leaves_no_gradient(
    free: Callable[[int], None],
) -> None:
    free(4 * 12 * SAMPLE)
    model, calls = network(), [0]

    def failing(model: nn.Module, batch: Batch) -> Tensor:
        calls[0] += 1
        if calls[0] > 2 and calls[0] != 5:
            raise torch.OutOfMemoryError
        return loss(model, batch)

    before = weights(model).clone()
    with pytest.raises(SampleTooLarge, match="one sample alone saves"):
        fit(model, of=failing)
    assert torch.equal(weights(model), before) and all(weight.grad is None for weight in model.parameters())


def test_other_errors_pass_through_and_leave_no_gradient(free: Callable[[int], None]) -> None:
    free(2 * 5 * SAMPLE)
    model, calls = network(), [0]

    def failing(model: nn.Module, batch: Batch) -> Tensor:
        calls[0] += 1
        if calls[0] == 4:
            raise RuntimeError("something else")
        return loss(model, batch)

    with pytest.raises(RuntimeError, match="something else"):
        fit(model, of=failing)
    assert all(weight.grad is None for weight in model.parameters())


def test_checkpointing_needs_less_and_is_on_again_after_the_look(free: Callable[[int], None]) -> None:
    free(1 << 40)
    needs = []
    for checkpoint in (False, True):
        with torch_seeded(1):
            model = DatacubeNet(DatacubeLayout(variables=("ta", "ps")), base_features=8, coarse_features=8, depth=2)
        shapes = [[axis if isinstance(axis, int) else 8 for axis in given.axes[1:]] for given in model.signature()]
        batch = tuple(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)) for shape in shapes)
        seen: list[bool] = []

        def mean_square(net: nn.Module, given: Any, seen: list[bool] = seen) -> Tensor:
            seen.append(bool(net.checkpointing))
            return (net(*given) - 1).square().mean()

        def source(_: torch.Generator, batch: Any = batch) -> Iterator[Any]:
            yield batch

        training = Training(checkpoint=checkpoint)
        train_locally(model, source, mean_square, training, TrainInstruction(1, 5), 1, split=COLUMNS)
        assert seen[-1] == checkpoint and not model.checkpointing
        needs.append(next(iter(fitting._known[model].values())).each)
    assert needs[1] < needs[0]


def planets(_: Path, home: Path | None = None, **changes: Any) -> Task:
    return opened(resolve_bundled("planets/k2"), "planets", "mlp", 48, home, **changes)


def deep_time(_: Path) -> Task:
    task, model = {"name": "deep-time", "stride": 10, "horizon": 4}, {"name": "history-net", "width": 16}
    return opened(resolve_bundled("histories/trappist1_b"), task, model, 7)


def transits(_: Path) -> Task:
    task, model = {"name": "transits", "injections": 40, "tests": 40}, {"name": "transit-net", "width": 8}
    return opened(resolve_bundled("transits/k2_3"), task, model, 7)


def spectrum(_: Path) -> Task:
    return opened(resolve_bundled("spectra/wasp39b_miri_lrs"), "spectrum", {"name": "spectrum-net", "width": 8}, 7)


def surrogate(_: Path, **options: Any) -> Task:
    task, model = {"name": "surrogate", "belts": 8, "sectors": 4, **options}, {"name": "surrogate", "width": 8}
    return opened(resolve_bundled("worlds/earthlike"), task, model, 10, mode="multimodal")


def weighed_surrogate(folder: Path) -> Task:
    return surrogate(folder, objective="crps", balance="uncertainty", consistency=0.5)


def datacube(folder: Path, **changes: Any) -> Task:
    write_cube(synthetic_world(1, lev=3, lat=8, lon=8), folder / "world.zarr")
    task = {"name": "datacube", "variables": ["ta", "hus", "ua", "va", "ps", "rst"]}
    model = {"name": "datacube-net", "base_features": 8, "coarse_features": 8}
    return opened(folder / "world.zarr", task, model, 3, **changes)


def physical_datacube(folder: Path) -> Task:
    return datacube(folder, physics={"weights": {"thermal-wind": 10.0, "mass-continuity": 0.1}, "fixers": ["mass"]})


def opened(data: Path, task: Any, model: Any, size: int, home: Path | None = None, **changes: Any) -> Task:
    training = {"batch_size": size, "max_steps": 3, "optimizer": "sgd", "learning_rate": 0.01}
    people = [{"name": "a", "data": str(data)}]
    plan = {"name": "t", "rounds": 4, "task": task, "model": model, "training": training, "participants": people}
    return open_task(load_plan({**plan, **changes}), Site("a", data, home=home))


def trained(task: Task) -> tuple[Model, float]:
    model = build_model(task.plan)
    return model, task.train(model, task.statistics(), TrainInstruction(1, 7)).metrics["loss"]


@pytest.mark.parametrize(
    "make", [planets, deep_time, transits, spectrum, surrogate, weighed_surrogate, datacube, physical_datacube]
)
def test_each_task_learns_the_same_one_sample_after_the_other(
    make: Callable[[Path], Task],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = make(tmp_path)
    whole, once = trained(task)
    assert not caplog.messages
    monkeypatch.setattr(fitting, "SHARE", 0.0)
    apart, again = trained(task)
    assert "in pieces of 1:" in caplog.text
    assert again == pytest.approx(once, rel=1e-5)
    torch.testing.assert_close(weights(apart), weights(whole), rtol=0, atol=1e-6)
    assert not torch.equal(weights(whole), weights(build_model(task.plan)))


def test_a_loss_that_is_no_mean_over_samples_is_not_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fitting, "SHARE", 0.0)
    trained(datacube(tmp_path, physics={"weights": {"thermal-wind": 10.0}, "balance": "gradient"}))
    fit(network(), optimizer="sophia")
    assert not caplog.messages


def test_with_privacy_nothing_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There `privacy.micro_batch` says how many units' gradients are taken at once."""

    def never() -> int:
        raise AssertionError("the free memory was asked for")

    monkeypatch.setattr(fitting, "free_memory", never)
    privacy = {"unit": "planet", "epsilon": 6.0, "delta": 1e-5, "clipping_norm": 2.0, "micro_batch": 16}
    task = planets(tmp_path, privacy=privacy, home=tmp_path)
    assert "epsilon" in str(task.train(build_model(task.plan), {}, TrainInstruction(1, 7)).metrics)
    with pytest.raises(AssertionError):
        trained(planets(tmp_path))
