"""Aggregation through torch, as on a GPU, gives what the compiled passes give; a device that is not there is named."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from astrofed.server.aggregation import passes
from astrofed.server.aggregation.passes_torch import TorchPasses
from astrofed.server.aggregation.updates import Updates
from astrofed.server.strategies.robust import RobustStrategy, build_pipeline
from astrofed.shared.plan import PlanError

LARGEST = float(np.finfo(np.float32).max)
CASES: list[tuple[str, tuple[str, ...]]] = [
    ("mean", ()),
    ("median", ()),
    ("trimmed-mean", ()),
    ("mean-around-median", ()),
    ("krum", ()),
    ("multi-krum", ()),
    ("bulyan", ()),
    ("geometric-median", ("arc", "nnm")),
    ("centred-clipping", ()),
    ("mda", ()),
    ("trimmed-mean", ("nnm",)),
    ("mean-around-median", ("bucketing",)),
]


def models(dtype: Any, scale: float = 1.0) -> list[dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(0)
    made = [
        {"a": rng.normal(size=(13, 7)).astype(dtype), "b": rng.normal(size=5).astype(dtype), "n": np.arange(3) + i}
        for i in range(11)
    ]
    for liar in made[:2]:
        liar["a"] = np.full_like(liar["a"], scale)
    return made


@pytest.mark.parametrize(("rule", "pre"), CASES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_same_model_comes_out(rule: str, pre: tuple[str, ...], dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astrofed.server.aggregation.passes_torch.BLOCK_BYTES", 64 * 8 * 11)  # more than one block
    pipeline = build_pipeline(rule, pre, None if rule == "mean" else 2, {})
    reference, replies = models(dtype)[5], models(dtype, 100.0)
    compiled = pipeline.aggregate(reference, replies)
    found = replace(pipeline, device=TorchPasses("cpu")).aggregate(reference, replies)
    for name, array in compiled.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        scale = 100.0 if rule == "mean" else 1.0
        np.testing.assert_allclose(
            found.arrays[name], array, rtol=2 * np.finfo(dtype).eps, atol=scale * max(2e-7, np.finfo(dtype).eps)
        )
    assert found.left_out.keys() == compiled.left_out.keys()


@pytest.mark.parametrize(("rule", "pre"), CASES)
def test_float32s_largest_values_stay_finite(rule: str, pre: tuple[str, ...]) -> None:
    pipeline = replace(build_pipeline(rule, pre, None if rule == "mean" else 2, {}), device=TorchPasses("cpu"))
    found = pipeline.aggregate(models(np.float32)[5], models(np.float32, -LARGEST))
    assert all(np.isfinite(array).all() for array in found.arrays.values())


def test_distances_are_those_of_the_compiled_pass() -> None:
    rows = [{"w": row} for row in 1000 + 1e-4 * np.random.default_rng(0).normal(size=(6, 4_099))]
    updates = Updates(rows[0], rows)
    np.testing.assert_allclose(TorchPasses("cpu").distances(updates), passes.distances(updates), rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_named_with_the_mend(device: str) -> None:
    if device.startswith("cuda") and torch.cuda.device_count() > 99:
        pytest.skip("this machine has a hundred GPUs")
    with pytest.raises(PlanError, match=rf"strategy\.device: '{device}' can't be used on this machine .* leave it out"):
        RobustStrategy("median", f=1, options={"device": device})


def test_a_plan_may_name_the_device() -> None:
    strategy = RobustStrategy("median", f=1, options={"device": "cpu"})
    assert isinstance(strategy.pipeline.device, TorchPasses)
