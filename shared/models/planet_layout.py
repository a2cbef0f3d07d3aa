"""What a planet surrogate takes and gives: names that the server and every site know from the plan alone."""

INPUTS = ("pl_orbper", "pl_orbsmax", "pl_orbeccen", "st_teff", "st_rad", "st_mass", "st_met", "st_logg")
"""Columns of the archive's tables, in the order of the features; each has a second feature that says it is missing."""
TARGETS = ("pl_eqt", "pl_rade")
FEATURES = 2 * len(INPUTS)
