"""What a transmission spectrum's network takes and gives: the range of wavelengths, and the depth's name and scale.

Public constants of the field, so that no site has to tell anything of its bins before training begins.
"""

from astrofed.shared.models.surrogate_layout import Target

SHORTEST, LONGEST = 0.3, 30.0
"""Wavelengths in um between which bins may lie; JWST's instruments see 0.6 to 28."""
DEPTH = Target("depth", "ppm", "share of the star's light that the planet takes away in transit", 21_000.0, 500.0)
"""Centre and width are a hot giant's before a star like the Sun, and plans may give others."""
TARGETS = (DEPTH,)
