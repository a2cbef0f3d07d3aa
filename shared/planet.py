"""The constants of a world: what turns a generic primitive-equation atmosphere into that planet's own.

Gas constants follow the atmosphere's composition (specific gas constant R = R* / M, molar mass M), never Earth's by
default: the GCM worlds are N2 + CO2 at 28.02 g/mol. SI units throughout.
"""

import math
from dataclasses import dataclass

MOLAR_GAS_CONSTANT = 8.314462618  # J mol-1 K-1 (CODATA 2018)
MOLAR_MASS_WATER = 18.01528e-3  # kg mol-1
EARTH_RADIUS = 6.371e6  # m, the mean radius that GCMs use


@dataclass(frozen=True)
class Planet:
    """Planetary constants in SI units.

    `solar_day_s` is the rotation period as the GCM takes it; `molar_mass_kg_mol` is that of dry air.
    """

    name: str
    radius_m: float
    gravity_m_s2: float
    rotation_period_s: float
    obliquity_deg: float
    eccentricity: float
    star_temperature_k: float
    molar_mass_kg_mol: float = 28.02e-3
    heat_capacity_j_kg_k: float = 1004.64  # c_p of dry air
    mixed_layer_depth_m: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "name" and not math.isfinite(value):
                raise ValueError(f"planet {self.name!r}: {name} is {value}; it must be a finite number in SI units")
        for field in ("radius_m", "gravity_m_s2", "rotation_period_s", "molar_mass_kg_mol", "heat_capacity_j_kg_k"):
            value = getattr(self, field)
            if value <= 0:
                raise ValueError(f"planet {self.name!r}: {field} is {value}; it must be a positive number in SI units")
        if not 0 <= self.eccentricity < 1:
            raise ValueError(f"planet {self.name!r}: eccentricity is {self.eccentricity}; it must lie in [0, 1)")

    @property
    def gas_constant(self) -> float:
        """Specific gas constant of dry air, J kg-1 K-1."""
        return MOLAR_GAS_CONSTANT / self.molar_mass_kg_mol

    @property
    def angular_velocity(self) -> float:
        """Rotation rate Ω, rad s-1."""
        return 2 * math.pi / self.rotation_period_s

    @property
    def virtual_temperature_factor(self) -> float:
        """The 0.608 of Tv = T (1 + 0.608 q), for this atmosphere's own molar mass: M_dry / M_water − 1."""
        return self.molar_mass_kg_mol / MOLAR_MASS_WATER - 1
