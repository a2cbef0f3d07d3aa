"""Derivatives on the sphere against fields whose derivatives are known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astrofed.shared.physics.grid import Grid, UnfitGrid
from astrofed.shared.planet import Planet

PLANET = Planet("test", 5e6, 9.0, 80000.0, 20.0, 0.0, 5800.0)


def longitude(grid: Grid, lon: int) -> torch.Tensor:
    return torch.arange(lon, dtype=torch.float64) * 2 * math.pi / lon


def root_mean_square(grid: Grid, error: torch.Tensor) -> float:
    return float(grid.global_mean(error.square()).mean().sqrt())


def test_cells_share_out_the_sphere(make_grid: Any) -> None:
    for gaussian in (False, True):
        grid = make_grid(gaussian=gaussian)
        assert float(grid.global_mean(torch.ones(16, 32, dtype=torch.float64))) == pytest.approx(1.0)
        assert float(grid.thickness.sum()) == pytest.approx(1.0)
    # sin² φ has the mean 1/3
    assert float(grid.global_mean(grid.latitude.sin().square().expand(16, 32))) == pytest.approx(1 / 3, abs=2e-3)


@pytest.mark.parametrize("gaussian", [False, True])
def test_derivatives_are_exact_eastward_and_of_sixth_order_northward(make_grid: Any, gaussian: bool) -> None:
    """Of sin φ (1 + cos φ sin λ): metric terms (the radius, cos φ) coordinates in radians, not index differences."""
    errors = []
    for n in (8, 16, 32):
        grid = make_grid(lat=n, lon=2 * n, planet=PLANET, gaussian=gaussian)
        phi, lam = grid.latitude, longitude(grid, 2 * n)
        field = phi.sin() + phi.cos() * phi.sin() * lam.sin()
        north = (phi.cos() + (2 * phi).cos() * lam.sin()) / PLANET.radius_m
        east = phi.sin() * lam.cos() / PLANET.radius_m
        torch.testing.assert_close(grid.eastward(field), east, rtol=0, atol=1e-11 / PLANET.radius_m)
        errors.append(root_mean_square(grid, grid.northward(field) - north) * PLANET.radius_m)
    assert (np.log2(np.divide(errors[:-1], errors[1:])) > 5.5).all()
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("gaussian", [False, True])
def test_divergence_and_vorticity_of_a_harmonic_flow_converge(make_grid: Any, gaussian: bool) -> None:
    """∇χ and k × ∇ψ for χ = ψ = cos φ cos λ, of which the Laplacian is −2/a² times itself; it crosses the poles."""
    errors = []
    for n in (8, 16, 32):
        grid = make_grid(lat=n, lon=2 * n, planet=PLANET, gaussian=gaussian)
        phi, lam = grid.latitude, longitude(grid, 2 * n)
        along, across = -lam.sin().expand(n, -1) / PLANET.radius_m, -phi.sin() * lam.cos() / PLANET.radius_m
        laplacian = -2 * phi.cos() * lam.cos() / PLANET.radius_m**2
        off = [
            grid.divergence(along, across) - laplacian,
            grid.vorticity(-across, along) - laplacian,
            grid.divergence(-across, along),
        ]
        errors.append([root_mean_square(grid, error) * PLANET.radius_m**2 for error in off])
    assert (np.log2(np.divide(errors[:-1], errors[1:])) > 4.5).all()
    assert max(errors[-1]) < 1e-5


def test_uniform_northward_wind_converges_towards_the_pole(make_grid: Any) -> None:
    """∇·v = −v tan φ / a: nothing, were the convergence of meridians left out."""
    grid = make_grid(lat=64, planet=PLANET)
    wind = torch.full((64, 32), 10.0, dtype=torch.float64)
    found = grid.divergence(torch.zeros_like(wind), wind)[20]
    expected = -10.0 * grid.latitude[20].tan() / PLANET.radius_m
    torch.testing.assert_close(found, expected.expand(32), rtol=2e-3, atol=0)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 2**31), st.integers(3, 12), st.integers(3, 12))
def test_no_flow_creates_mass_on_the_whole_sphere(seed: int, lat: int, lon: int) -> None:
    generator = np.random.default_rng(seed)
    edges = np.sort(generator.uniform(-90, 90, lat + 1))
    latitude = edges[:-1] / 2 + edges[1:] / 2
    latitude[[0, -1]] = [-89.0, 89.0]
    grid = Grid.of([0.2, 0.9], latitude, np.arange(lon) * 360 / lon, PLANET, torch.float64)
    u, v = torch.from_numpy(generator.normal(size=(2, lat, lon)))
    scale = grid.divergence(u, v).abs().max()
    assert float(grid.global_mean(grid.divergence(u, v)).abs()) < 1e-12 * float(scale)


def test_axes_may_run_either_way() -> None:
    lev, lat, lon = np.array([0.1, 0.4, 0.9]), np.array([70.0, 30.0, 0.0, -40.0, -80.0]), np.arange(8) * 45.0
    field = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 5, 8)))
    grid = Grid.of(lev, lat, lon, PLANET, torch.float64)
    flipped = Grid.of(lev[::-1], lat[::-1], lon[::-1], PLANET, torch.float64)
    axes = (-3, -2, -1)
    turned = field.flip(axes)
    torch.testing.assert_close(flipped.eastward(turned).flip(axes), grid.eastward(field))
    torch.testing.assert_close(flipped.northward(turned).flip(axes), grid.northward(field))
    torch.testing.assert_close(flipped.divergence(*turned).flip((-3, -2, -1)), grid.divergence(*field))
    torch.testing.assert_close(flipped.thickness.flip(-3), grid.thickness)
    torch.testing.assert_close(flipped.area.flip(-2), grid.area)


@pytest.mark.parametrize(
    ("lev", "lat", "lon", "message"),
    [
        ([0.5], [60, 0, -60], [0, 120, 240], "at least 2 levels"),
        ([0.2, 0.9], [45, -45], [0, 120, 240], "at least 2 levels, 3 latitudes"),
        ([0.2, 0.9], [30, 20, 10], [0, 120, 240], "whole sphere"),
        ([0.2, 0.9], [80, 60, 40, 20], [0, 120, 240], "whole sphere"),
        ([0.2, 0.9], [60, 0, -60], [0, 90, 180], "even longitudes"),
        ([0.2, 0.9], [60, 0, -60], [0, 100, 240], "even longitudes"),
    ],
)
def test_a_grid_that_is_no_sphere_is_refused(lev: Any, lat: Any, lon: Any, message: str) -> None:
    with pytest.raises(UnfitGrid, match=message):
        Grid.of(lev, lat, lon, PLANET)
