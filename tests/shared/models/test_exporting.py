"""Networks as ONNX files: the same numbers on any sizes, and no file where they are not."""

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astrofed.shared.models import exporting
from astrofed.shared.models.base import Model, NoSignature
from astrofed.shared.models.datacube_layout import SIGMA, DatacubeLayout
from astrofed.shared.models.datacube_net import DatacubeNet
from astrofed.shared.models.exporting import ExportedModelDiffers, ProviderMissing, export_onnx
from astrofed.shared.models.mlp import MLP
from astrofed.shared.models.signature import Axis, Input
from astrofed.shared.plan import Plan, Section

onnxruntime = pytest.importorskip("onnxruntime")


def drawn(model: Model) -> Model:
    """A network whose every weight is drawn, so that no part of it is hidden by a start at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture(scope="module")
def climate(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatacubeNet, Path]:
    layout = DatacubeLayout(variables=("ta", "ua", "ps"), months_in=2, months_out=2, ages=True)
    net = drawn(DatacubeNet(layout, base_features=8, coarse_features=12, film=True, across=True))
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    done = export_onnx(net, path, metadata={"plan": "{}"}, provider="cpu", threads=1)
    assert done.size == path.stat().st_size and done.opset >= 18
    assert max(check.deviation for check in done.checks) < 1e-4 and all(check.seconds > 0 for check in done.checks)
    assert len({tuple(check.sizes.values()) for check in done.checks}) == 4
    assert isinstance(net, DatacubeNet)
    return net, path


@pytest.mark.slow  # tracing the network takes the time, once for three tests
def test_the_datacube_network_serves_other_grids_than_it_was_traced_on(climate: tuple[DatacubeNet, Path]) -> None:
    net, path = climate
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["state", "forcing"]
    for sizes in ({"batch": 1, "geological_time": 1, "lev": 3, "lat": 12, "lon": 24}, {"batch": 3, "lat": 8, "lon": 8}):
        tensors = [given.example(sizes, seed=9) for given in net.signature()]
        with torch.no_grad():
            expected = net(*tensors).numpy()
        found = session.run(None, {"state": tensors[0].numpy(), "forcing": tensors[1].numpy()})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.std())


@pytest.mark.slow  # tracing the network takes the time, once for three tests
def test_there_is_still_no_seam_in_longitude(climate: tuple[DatacubeNet, Path]) -> None:
    net, path = climate
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    state, forcing = (given.example({"batch": 1, "lat": 8, "lon": 16}, seed=4) for given in net.signature())
    forcing[:, SIGMA] = torch.linspace(0.05, 0.98, forcing.shape[3])[:, None, None]
    forcing[:, -1] = torch.tensor([4.0, 2.5])[:, None, None, None]  # the ages of its two epochs

    def run(state: Tensor, forcing: Tensor) -> Any:
        return session.run(None, {"state": state.numpy(), "forcing": forcing.numpy()})[0]

    turned = run(state.roll(4, -1), forcing.roll(4, -1))
    np.testing.assert_allclose(turned, np.roll(run(state, forcing), 4, axis=-1), rtol=1e-3, atol=1e-3)


@pytest.mark.slow  # tracing the network takes the time, once for three tests
def test_the_file_says_its_axes_and_carries_what_it_was_given(climate: tuple[DatacubeNet, Path]) -> None:
    session = onnxruntime.InferenceSession(climate[1], providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert about["astrofed.plan"] == "{}"
    axes = json.loads(about["astrofed.axes"])
    assert axes["state"] == ["batch", 3, 2, "geological_time", "lev", "lat", "lon"]


def test_the_perceptron(tmp_path: Path) -> None:
    done = export_onnx(drawn(MLP(5, 2, hidden=(8,))), tmp_path / "mlp.onnx", metadata={}, provider="cpu")
    assert [check.sizes for check in done.checks] == [{"batch": size} for size in (1, 32, 33, 1)]


class Wandering(Model):
    """Gives other numbers each time, as a network with a random draw in it would."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        raise NotImplementedError

    def signature(self) -> tuple[Input, ...]:
        return (Input("rows", (Axis("batch", 4), 3)),)

    def forward(self, rows: Tensor) -> Tensor:
        self.calls += 1
        return rows * float(self.calls)


def test_a_network_that_onnxruntime_runs_differently_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ExportedModelDiffers, match=r"differs from torch by .* more than 0\.0001"):
        export_onnx(Wandering(), tmp_path / "net.onnx", metadata={}, provider="cpu")
    assert list(tmp_path.iterdir()) == []


class Silent(Wandering):
    """Doesn't say its inputs."""

    def signature(self) -> tuple[Input, ...]:
        return Model.signature(self)


def test_what_can_t_be_exported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSignature, match="Silent doesn't say what its forward takes; give it a method `signature`"):
        export_onnx(Silent(), tmp_path / "net.onnx", metadata={})
    with pytest.raises(ProviderMissing, match="no execution provider 'tpu'; there are: cpu, cuda, tensorrt"):
        export_onnx(Silent(), tmp_path / "net.onnx", metadata={}, provider="tpu")
    monkeypatch.setattr(exporting, "_available", lambda: ("CPUExecutionProvider",))
    with pytest.raises(ProviderMissing, match=r"has no TensorrtExecutionProvider .* take --provider cpu"):
        export_onnx(Silent(), tmp_path / "net.onnx", metadata={}, provider="tensorrt")


@pytest.mark.parametrize(("usual", "multiple"), [(1, 1), (6, 4), (4, 0)])
def test_an_axis_that_can_t_be_traced_is_refused(usual: int, multiple: int) -> None:
    with pytest.raises(ValueError, match="must be at least 2 and a multiple of"):
        Axis("lat", usual, multiple)
