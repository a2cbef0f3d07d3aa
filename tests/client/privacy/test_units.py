"""Privacy units of many samples: each counts once, whatever it holds, and none is more than its clipping norm."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astrofed.client.privacy.clipping import Flat
from astrofed.client.privacy.dpsgd import clipped_sum
from astrofed.client.privacy.gradients import Units
from astrofed.client.privacy.refusals import WrongPrivacyUnit, check_unit
from astrofed.client.privacy.units import Parts, Rows, padded
from astrofed.shared.models.mlp import MLP
from astrofed.shared.seeds import torch_seeded


def drawn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    with torch_seeded(1):
        return MLP(3, 2, hidden=(8,))


KEYS = np.array(["b", "a", "b", "c", "b", "a"])
ROWS, TARGETS = drawn(6, 3), drawn(6, 2, seed=3)


def own_mean(model: nn.Module, batch: Units) -> Tensor:
    rows, targets, counted = (tensor.flatten(0, 1) for tensor in batch)
    value: Tensor = ((model(rows) - targets).square().sum(dim=1) * counted).sum() / counted.sum()
    return value


def part(model: nn.Module, piece: tuple[Tensor, Tensor, int]) -> Tensor:
    value: Tensor = (model(piece[0]) - piece[1]).square().sum() / piece[2]
    return value


def in_rows() -> Rows:
    index, counted = padded(KEYS)
    return Rows((ROWS[index], TARGETS[index], counted.float()), own_mean)


def in_parts() -> Parts[tuple[Tensor, Tensor, int]]:
    owned = [torch.from_numpy(np.flatnonzero(key == KEYS)) for key in "abc"]
    return Parts([lambda own=own: ((ROWS[i][None], TARGETS[i][None], len(own)) for i in own) for own in owned], part)


def test_padding_gives_every_row_to_its_unit_once() -> None:
    index, counted = padded(KEYS)
    assert index.shape == (3, 3) and counted.sum(dim=1).tolist() == [2, 3, 1]
    for unit, key in enumerate("abc"):
        assert index[unit][counted[unit]].tolist() == np.flatnonzero(key == KEYS).tolist()
    empty, none = padded(np.array([], dtype=np.str_))
    assert empty.shape == none.shape == (0, 0)


@pytest.mark.parametrize("make", [in_rows, in_parts])
def test_a_units_gradient_is_that_of_the_mean_over_its_own_samples(make: type[Rows]) -> None:
    model, units = network(), make()  # type: ignore[call-arg]
    assert len(units) == 3
    for unit, key in enumerate("abc"):
        own = torch.from_numpy(np.flatnonzero(key == KEYS))
        model.zero_grad()
        (model(ROWS[own]) - TARGETS[own]).square().sum(dim=1).mean().backward()
        found = clipped_sum(model, units, np.array([unit]), Flat(1e9))
        for gradient, parameter in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [in_rows, in_parts])
def test_a_unit_with_more_samples_counts_for_no_more(make: type[Rows]) -> None:
    """Clipping each row instead would let unit b, of three rows, move the sum three times as far."""
    model, units = network(), make()  # type: ignore[call-arg]
    for unit in range(3):
        length = torch.stack([g.norm() for g in clipped_sum(model, units, np.array([unit]), Flat(0.01))]).norm()
        assert float(length) == pytest.approx(0.01, rel=1e-4)
    both = clipped_sum(model, units, np.array([0, 1, 2]), Flat(0.01))
    each = [clipped_sum(model, units, np.array([unit]), Flat(0.01)) for unit in range(3)]
    for whole, *single in zip(both, *each, strict=True):
        torch.testing.assert_close(whole, sum(single[1:], single[0]), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("make", [in_rows, in_parts])
def test_no_unit_drawn_means_no_gradient(make: type[Rows]) -> None:
    found = clipped_sum(network(), make(), np.array([], dtype=np.intp), Flat(1.0))  # type: ignore[call-arg]
    assert not any(bool(gradient.any()) for gradient in found)


def test_another_unit_than_the_contracts_is_refused_with_the_mend() -> None:
    check_unit("world", "world", "here")
    with pytest.raises(WrongPrivacyUnit, match=r"^here: privacy\.unit is 'month', .* parts of one world .* = 'world'"):
        check_unit("month", "world", "here")
