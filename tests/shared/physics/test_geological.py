"""A brightening star and a carbon budget in years."""

import pytest
import torch

from astrofed.shared.physics.geological import (
    carbon_dioxide_forcing,
    carbon_residual,
    gough_luminosity,
    stellar_flux_residual,
)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_sun_began_at_five_sevenths() -> None:
    found = gough_luminosity(double(0.0, 4.57))
    assert found.tolist() == pytest.approx([1 / 1.4, 1.0])


def test_a_star_that_does_not_brighten_is_seen() -> None:
    ages, today = double(1.0, 2.5, 4.57), torch.tensor(1361.0, dtype=torch.float64)
    right = today * gough_luminosity(ages)
    assert float(stellar_flux_residual(right, ages, today).abs().max()) < 1e-12
    assert float(stellar_flux_residual(today.expand(3), ages, today)[0]) > 0.3


def test_doubled_carbon_dioxide_forces_by_three_point_seven_watts() -> None:
    assert float(carbon_dioxide_forcing(double(56.0), double(28.0))) == pytest.approx(3.708, abs=1e-3)


@pytest.mark.parametrize("order", [1, -1])
def test_carbon_that_relaxes_to_balance_converges_with_second_order_of_the_interval(order: int) -> None:
    """C' = V − k C from 0 on uneven slices; weathering by the interval's middle, not its mean, is off by Δt²."""
    outgassing, k, worst = 1e-5, 1e-6, []
    for slices in (20, 40, 80):
        years = 2e6 * torch.linspace(0, 1, slices, dtype=torch.float64) ** 1.5
        pco2 = outgassing / k * (1 - torch.exp(-k * years))
        middle = 0.5 * (years[1:] + years[:-1])
        weathering = outgassing * (1 - torch.exp(-k * middle))
        given = (pco2, torch.full_like(middle, outgassing), weathering, years)
        if order < 0:
            given = tuple(each.flip(0) for each in given)  # type: ignore[assignment]
        values, counted = carbon_residual(*given)
        assert bool(counted.all())
        worst.append(float(values.abs().max()))
    assert worst[0] / worst[1] == pytest.approx(4, rel=0.3) and worst[1] / worst[2] == pytest.approx(4, rel=0.3)


def test_a_jump_is_seen_unless_it_is_declared() -> None:
    years = double(0.0, 1e6, 1.5e6, 4e6)
    pco2, flux = double(30.0, 30.0, 3000.0, 3000.0), double(1e-5, 1e-5, 1e-5)
    values, _ = carbon_residual(pco2, flux, flux, years)
    assert float(values[1]) > 100 and not values[[0, 2]].any()
    _, counted = carbon_residual(pco2, flux, flux, years, torch.tensor([False, True, False]))
    assert counted.tolist() == [True, False, True]


def test_gradients_are_exact() -> None:
    inputs = [double(30.0, 40.0, 35.0), double(2.0, 3.0), double(1.0, 2.0), double(0.0, 1.0, 3.0)]
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: carbon_residual(*given)[0], inputs)
    ages, flux, today = double(1.0, 2.0).requires_grad_(), double(900.0, 1000.0).requires_grad_(), double(1361.0)
    assert torch.autograd.gradcheck(lambda f, a: stellar_flux_residual(f, a, today[0]), (flux, ages))
    assert torch.autograd.gradcheck(
        lambda p: carbon_dioxide_forcing(p, double(28.0)), (double(30.0, 60.0).requires_grad_(),)
    )
