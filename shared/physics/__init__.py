"""Physics as constraints on SI fields: dimensionless residuals, scores with stated tolerances, and a loss term.

A constraint is known by its name everywhere: in a plan's [physics.weights], in metrics, in reports. A cell complies
where |residual| is below the constraint's tolerance. Tolerances follow the noise floors of the shipped GCM worlds
(monthly means at T21, see their manifest), so that nobody is asked for less than what the data have; the numbers below
are the area-weighted compliance of those worlds' own fields, and that of fields that break the constraint.
"""

from collections.abc import Iterable

TOLERANCES = {
    # Layer thickness in units of the pressure scale height (1e-3 is about 8 m). Temperatures rounded by 0.07 K blur it
    # by up to 3e-4. The worlds' zg is integrated from their own ta and hus: 100 %; heights off by 20 m at random 14 to
    # 21 %.
    "hydrostatic": 1e-3,
    # Divergence in units of 1e-5 s-1. Monthly means leave out the covariance of wind and surface pressure (root mean
    # square 0.02 to 0.04): the worlds have 98.4 to 99.4 %; the same winds without vertical motion 71 to 81 %.
    "mass-continuity": 0.1,
    # Temperature gradient in units of 1 K per 100 km. Weather that a month doesn't average out leaves root mean squares
    # of 0.1 to 0.6: the worlds have 54 to 99 % (mean 84 %); winds with the opposite season's temperature 42 to 86 %
    # (mean 66 %).
    "thermal-wind": 0.3,
    # Net flux over a quarter of the stellar flux (0.06 is about 20 W m-2). A month's imbalance holds that of the year
    # (up to 0.04, the worlds are not in equilibrium) and the season's storage (about 0.04): 96 % of the worlds' months;
    # with a fifth more outgoing radiation 0 to 17 %.
    "energy": 0.06,
    # Relative change of the global mean since the last known month. Dry mass varies by 1.3e-4 to 4.8e-4 (standard
    # deviation) over the worlds' years: 97 % of months; with 100 Pa added everywhere: none.
    "dry-mass": 3e-4,
    # What the vapour gains beyond evaporation less precipitation, over the precipitation. Two months' fluxes stand for
    # what flowed between their middles: 99 % of the worlds' months; a tenth less rain: none.
    "water": 0.01,
    # What the atmosphere gains beyond what flows in, over a quarter of the stellar flux (0.01 is about 3.4 W m-2). The
    # GCM itself loses about 1.4 W m-2: 99 % of the worlds' months; a tenth less sunlight at the surface: none.
    "energy-budget": 0.01,
    # Lapse rate beyond the dry adiabatic one, over it. Convection and a warm ground leave it in the lowest layer: 99 %
    # of the worlds' cells; with levels 10 K warmer and colder in turn 57 to 61 %.
    "static-stability": 0.1,
    # Vapour pressure beyond saturation, over it. The GCM's own air is supersaturated over ice: 94 to 98 % of the
    # worlds' cells; with half as much vapour again 60 to 74 %.
    "saturation": 0.2,
    # Pressure over that which density and temperature give; no shipped world has density as a field of its own.
    "ideal-gas": 1e-3,
}
CONSTRAINTS: tuple[str, ...] = tuple(TOLERANCES)

GEOLOGICAL_TOLERANCES = {
    # Directions: a dimensionless state may go against its own by the single precision of the source. The shipped
    # histories keep all of them and the two below in every step.
    "radiogenic-decay": 1e-6,
    "cooling": 1e-6,
    "water-escape": 1e-6,
    "oxygen-build-up": 1e-6,
    "contraction": 1e-6,
    # Of the secular heat flow against the mantle's cooling; the histories' own steps differ by less.
    "secular-cooling": 0.05,
    # Of the ratio of XUV to bolometric luminosity.
    "xuv-saturation": 0.01,
}
"""Constraints on histories over geological time (task "deep-time"), by name."""
METRIC = "physics/"
_FAMILIES = (CONSTRAINTS, tuple(GEOLOGICAL_TOLERANCES))


def constraints_of(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return every constraint of the families that metrics' names ("physics/energy/compliance") tell of."""
    told = {name.split("/")[1] for name in metrics if name.startswith(METRIC)}
    return tuple(name for family in _FAMILIES if told & set(family) for name in family)
