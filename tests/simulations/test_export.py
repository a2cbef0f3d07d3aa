"""`astrofed export` on a real run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import astrofed
from astrofed.simulations.result import read_result

onnxruntime = pytest.importorskip("onnxruntime")


def test_a_run_s_model_is_exported_with_its_plan_and_statistics(tmp_path: Path, small: dict[str, Any]) -> None:
    result = astrofed.simulate({**small, "rounds": 1}, out=tmp_path / "run")
    file = tmp_path / "planets.onnx"
    command = [sys.executable, "-m", "astrofed.cli", "export", str(result.run), "--onnx", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["provider"] == "cpu" and told["bytes"] == file.stat().st_size and len(told["checks"]) == 4
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["astrofed.plan"])["name"] == "small"
    assert json.loads(about["astrofed.statistics"]) == {}, "the planets task standardises by public numbers"
    model = read_result(tmp_path / "run").load_model()
    rows = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"rows": rows.numpy()})[0], model(rows).numpy(), atol=1e-5)


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "astrofed.cli", "export", str(tmp_path), "--onnx", str(tmp_path / "x.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "x.onnx").exists()
