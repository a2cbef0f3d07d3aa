"""The Ray engine runs the same apps and ends with the same model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astrofed.server.checkpoint import load_arrays
from astrofed.server.enrolment import NotEnrolled
from astrofed.simulations.simulate import simulate

# Ray leaves files of its own open when it is shut down.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.slow
def test_both_engines_give_the_same_model(tmp_path: Path, small: dict[str, Any]) -> None:
    small["rounds"] = 3
    small["participants"][3]["attack"] = {"name": "sign-flip"}
    small["strategy"] = {"name": "robust", "rule": "trimmed-mean", "f": 1}
    embedded = simulate(small, out=tmp_path / "embedded")
    ray = simulate({**small, "engine": {"name": "ray", "workers": 2, "threads": 1}}, out=tmp_path / "ray")
    first, second = load_arrays(embedded.model_path), load_arrays(ray.model_path)
    assert max(float(np.abs(first[name] - second[name]).max()) for name in first) <= 1e-5
    assert [entry.accepted for entry in embedded.rounds] == [entry.accepted for entry in ray.rounds]
    assert ray.metrics["loss"] == pytest.approx(embedded.metrics["loss"], rel=1e-4)


@pytest.mark.slow
def test_mistakes_come_through(tmp_path: Path, small: dict[str, Any]) -> None:
    small["participants"][0]["data"] = str(tmp_path / "nowhere.parquet")
    small["engine"] = {"name": "ray"}
    with pytest.raises(NotEnrolled, match="tess can't take part"):
        simulate(small, out=tmp_path / "run")
