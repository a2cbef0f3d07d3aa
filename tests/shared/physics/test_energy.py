"""The energy budget at the top of the atmosphere."""

from typing import Any

import pytest
import torch

from astrofed.shared.physics import TOLERANCES
from astrofed.shared.physics.energy import energy_residual

STEFAN_BOLTZMANN = 5.670374419e-8
SOLAR = torch.tensor(1361.0, dtype=torch.float64)


def earth_fluxes(emission: float, temperature: float, albedo: float = 0.306) -> tuple[torch.Tensor, torch.Tensor]:
    rst = torch.full((16, 32), 1361.0 * (1 - albedo) / 4, dtype=torch.float64)
    return rst, torch.full_like(rst, -emission * STEFAN_BOLTZMANN * temperature**4)


@pytest.mark.parametrize(("emission", "temperature"), [(1.0, 254.0), (0.605, 288.0)])
def test_earth_is_in_balance_at_its_equilibrium_temperature(
    make_grid: Any, emission: float, temperature: float
) -> None:
    """S (1 − A) / 4 = 236 W/m² = σ T⁴ at 254 K, and ε σ T⁴ with ε = 0.605 at 288 K."""
    residual = energy_residual(*earth_fluxes(emission, temperature), SOLAR, make_grid())
    assert abs(float(residual)) < 1e-3


@pytest.mark.parametrize(
    ("emission", "temperature", "albedo", "sign"),
    [(1.0, 288.0, 0.306, 1), (1.0, 254.0, 0.15, 1), (1.0, 254.0, 0.306, -1), (0.605, 310.0, 0.306, 1)],
)
def test_what_is_out_of_balance_is_seen(
    make_grid: Any, emission: float, temperature: float, albedo: float, sign: int
) -> None:
    """No greenhouse, too dark, outgoing counted as incoming, too hot."""
    rst, rlut = earth_fluxes(emission, temperature, albedo)
    assert abs(float(energy_residual(rst, sign * rlut, SOLAR, make_grid()))) > TOLERANCES["energy"]


def test_transport_from_warm_to_cold_places_is_no_imbalance(make_grid: Any) -> None:
    grid = make_grid(lat=64)
    sine = grid.latitude.sin().square().expand(64, 32)
    rst, rlut = earth_fluxes(1.0, 254.0)
    local = 100.0 * (1 / 3 - sine)
    assert abs(float(energy_residual(rst[0, 0] + local, rlut[0, 0] + 0 * local, SOLAR, grid))) < 2e-3


def test_each_epoch_is_held_against_its_own_star(make_grid: Any) -> None:
    rst, rlut = (flux.expand(3, 2, -1, -1) for flux in earth_fluxes(1.0, 260.0))
    flux = torch.tensor([1361.0, 680.5], dtype=torch.float64)
    residual = energy_residual(rst, rlut, flux, make_grid())
    assert residual.shape == (3, 2)
    torch.testing.assert_close(residual[:, 1], 2 * residual[:, 0])
