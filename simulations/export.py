"""A finished run's network as an ONNX file, with the plan and the pooled statistics in its metadata."""

import json
from pathlib import Path

from astrofed.server.beginning import STATISTICS
from astrofed.server.checkpoint import load_arrays
from astrofed.shared.models.base import Model
from astrofed.shared.models.exporting import Exported, export_onnx
from astrofed.simulations.result import read_result


def export_run(run: Path, path: Path, *, provider: str | None = None, threads: int | None = None) -> Exported:
    """Export the final model of a run; see `export_onnx`.

    The metadata are "astrofed.plan" (the resolved plan), "astrofed.axes" (the axes of each input by name) and
    "astrofed.statistics" (what inputs were standardised with), each JSON.

    Raises:
        NoRun, RecordBroken, CheckpointDamaged: the folder holds no whole run.
        NoSignature, ProviderMissing, ExportedModelDiffers, CannotWrite: see `export_onnx`.
    """
    result = read_result(run)
    model = result.load_model()
    assert isinstance(model, Model)
    pooled = load_arrays(run / STATISTICS) if (run / STATISTICS).exists() else {}
    metadata = {
        "plan": result.plan.to_json(),
        "statistics": json.dumps({name: values.tolist() for name, values in pooled.items()}),
    }
    return export_onnx(model, path, metadata=metadata, provider=provider, threads=threads)
