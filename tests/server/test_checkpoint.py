"""Checkpoints: exact, deterministic in their bytes, and never half-written."""

from pathlib import Path

import numpy as np
import pytest

from astrofed.server.checkpoint import (
    Checkpoint,
    CheckpointDamaged,
    drop_old_checkpoints,
    load_arrays,
    load_checkpoint,
    save_arrays,
    save_checkpoint,
)

MODEL = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(3.5),
    "count": np.array([1, 2], dtype=np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "view": np.arange(12.0).reshape(3, 4).T,
}


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = Checkpoint(MODEL, {"m/weight": np.ones(3)}, {"beta": 0.1, "nothing": None})
    name, digest = save_checkpoint(tmp_path, 7, saved)
    loaded = load_checkpoint(tmp_path, name, digest)
    assert loaded.strategy_scalars == saved.strategy_scalars
    np.testing.assert_array_equal(loaded.strategy_arrays["m/weight"], np.ones(3))
    assert loaded.model.keys() == MODEL.keys()
    for key, array in MODEL.items():
        assert loaded.model[key].dtype == array.dtype and loaded.model[key].shape == array.shape
        np.testing.assert_array_equal(loaded.model[key], array)


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    digests = set()
    for index, order in enumerate((sorted(MODEL), sorted(MODEL, reverse=True))):
        arrays = {key: MODEL[key] for key in order}
        checkpoint = Checkpoint(arrays, {}, dict(sorted({"a": 1, "b": 2}.items(), reverse=bool(index))))
        digests.add(save_checkpoint(tmp_path / str(index), 1, checkpoint)[1])
    assert len(digests) == 1


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    names = [save_checkpoint(tmp_path, number, Checkpoint({}, {}, {}))[0] for number in range(12)]
    drop_old_checkpoints(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names[-2:]


def test_the_model_alone(tmp_path: Path) -> None:
    save_arrays(tmp_path / "model.safetensors", MODEL)
    loaded = load_arrays(tmp_path / "model.safetensors")
    assert all(np.array_equal(loaded[key], MODEL[key]) for key in MODEL)
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(CheckpointDamaged, match="safetensors"):
        load_arrays(tmp_path / "model.safetensors")
