"""Grids of any size for analytic atmospheres, in double precision."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from astrofed.shared.physics.grid import Grid
from astrofed.shared.planet import Planet

EARTH = Planet("earth", 6.371e6, 9.81, 86164.0, 23.4, 0.0167, 5772.0, molar_mass_kg_mol=28.97e-3)
MakeGrid = Callable[..., Grid]


@pytest.fixture
def make_grid() -> MakeGrid:
    def make(lev: int = 4, lat: int = 16, lon: int = 32, planet: Planet = EARTH, gaussian: bool = False) -> Grid:
        sigma = np.exp(np.linspace(np.log(0.1), np.log(0.8), lev))
        even = 90 - (np.arange(lat) + 0.5) * 180 / lat
        latitude = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(lat)[0]))[::-1] if gaussian else even
        return Grid.of(sigma, latitude, np.arange(lon) * 360 / lon, planet, torch.float64)

    return make


@pytest.fixture
def earth() -> Planet:
    return EARTH
