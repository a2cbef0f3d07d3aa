"""Weights are found where they lie, and found anew when a model has changed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astrofed.shared.arrays import from_model, from_state_dict, load_into, to_numpy
from astrofed.shared.slots import find_slots


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Flatten())


def same(model: nn.Module) -> None:
    assert from_model(model) == from_state_dict(model.state_dict())


def test_the_record_is_that_of_the_state_dictionary() -> None:
    model = network()
    slots = find_slots(model)
    assert slots is not None and [slot.name for slot in slots] == list(model.state_dict())
    same(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1
    model(torch.randn(5, 2, 6))  # the running mean moves
    same(model)
    assert find_slots(model) is slots


def assign(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.ones(3, 2, 3))


def assign_data(model: nn.Sequential) -> None:
    model[0].weight.data = torch.full((3, 2, 3), 7.0)


def reshape(model: nn.Sequential) -> None:
    model[0].weight.data = model[0].weight.data.view(2, 3, 3)


def retype(model: nn.Sequential) -> None:
    model.double()


def add_module(model: nn.Sequential) -> None:
    model[2].append(nn.Linear(4, 1))


def replace_module(model: nn.Sequential) -> None:
    model[2][0] = nn.Linear(4, 4)


def add_parameter(model: nn.Sequential) -> None:
    model[3].register_parameter("extra", nn.Parameter(torch.ones(2)))


def drop_parameter(model: nn.Sequential) -> None:
    model[0].bias = None


def add_buffer(model: nn.Sequential) -> None:
    model[3].register_buffer("steps", torch.tensor(3))


@pytest.mark.parametrize(
    "change",
    [assign, assign_data, reshape, retype, add_module, replace_module, add_parameter, drop_parameter, add_buffer],
)
def test_a_changed_model_is_looked_at_anew(change: Callable[[Any], None]) -> None:
    model = network()
    same(model)
    change(model)
    same(model)
    wanted = {name: np.asarray(array + 1) for name, array in to_numpy(from_model(model)).items()}
    load_into(model, from_state_dict({name: torch.tensor(array) for name, array in wanted.items()}))
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), wanted[name], strict=True)


def test_loading_writes_every_value_into_the_models_own_memory() -> None:
    model, other = network(), network()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(3)
    places = [weight.data_ptr() for weight in model.parameters()]
    load_into(model, from_model(other))
    same(model)
    assert from_model(model) == from_model(other)
    assert [weight.data_ptr() for weight in model.parameters()] == places


class Scaled(nn.Linear):
    """Keeps another state than its parameters."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"] * 2


def hooked() -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_state_dict_post_hook(drop_bias)
    return model


def drop_bias(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    del state[prefix + "bias"]


def transposed() -> nn.Module:
    model = nn.Linear(2, 3)
    model.weight = nn.Parameter(torch.arange(6.0).view(2, 3).t())
    return model


@pytest.mark.parametrize("make", [lambda: Scaled(2, 2), hooked, transposed, lambda: nn.ReLU()])
def test_what_is_not_plain_goes_torchs_own_way(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert find_slots(model) is None
    same(model)


def test_tied_weights_and_buffers_that_are_not_kept() -> None:
    model = nn.Module()
    model.a, model.b = nn.Linear(2, 2), nn.Linear(2, 2)
    model.b.weight = model.a.weight
    model.register_buffer("passing", torch.ones(2), persistent=False)
    assert find_slots(model) is not None
    same(model)


def test_a_model_is_let_go() -> None:
    import gc
    import weakref

    model = network()
    find_slots(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_two_models_never_share_slots() -> None:
    first, second = network(), network()
    kept: Tensor = second[0].weight.detach().clone()
    from_model(second)
    with torch.no_grad():
        first[0].weight.zero_()
    load_into(first, from_model(first))
    assert torch.equal(second[0].weight, kept)
