"""Transits put into a star's own flux: its noise is kept, its real transits stay out, and what is put in comes out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from astrofed.client.tasks.transits_folding import folded
from astrofed.client.tasks.transits_photometry import Known, Photometry, read_photometry
from astrofed.client.tasks.transits_physics import Transit, central_duration, light_curve, scaled_axis
from astrofed.client.tasks.transits_samples import TooFewTransits, injected, real, samples
from astrofed.client.tasks.transits_templates import fitted, standard
from astrofed.shared.models.transit_layout import SCALARS, TARGETS
from astrofed.simulations.bundled import resolve_bundled


@pytest.fixture(scope="module")
def star() -> Photometry:
    return read_photometry(resolve_bundled("transits/k2_3"))


def silent(noise: float) -> Photometry:
    """A star like the Sun over 60 days of Kepler's cadence, with white noise and a slope."""
    time = np.arange(0, 60, 0.02)
    flux = 1 + 1e-4 * time + np.random.default_rng(1).normal(0, noise, len(time))
    known = Known(mass_msun=1.0, radius_rsun=1.0, exposure_s=1765.5, planets=())
    return Photometry("silent", time, flux, np.zeros((0, len(time)), dtype=np.bool_), known, "star", "0" * 64)


def test_no_real_transit_leaks_into_what_is_trained_on(star: Photometry) -> None:
    spoilt = replace(star, flux=np.where(star.quiet, star.flux, 0.5))
    everywhere = np.ones(len(star.time), dtype=np.bool_)
    honest, leaky = (injected(each, everywhere, 40, seed=1) for each in (star, spoilt))
    assert torch.equal(honest.seen.series, leaky.seen.series) and torch.equal(honest.seen.scalars, leaky.seen.scalars)
    assert not torch.equal(real(star).seen.series, real(spoilt).seen.series)


def test_training_and_tests_share_no_cadence(star: Photometry) -> None:
    early = star.time < 2030
    changed = replace(star, flux=np.where(early, star.flux, star.flux[::-1]))
    assert torch.equal(injected(star, early, 20, 1).seen.series, injected(changed, early, 20, 1).seen.series)
    assert not torch.equal(injected(star, ~early, 20, 1).seen.series, injected(changed, ~early, 20, 1).seen.series)


def test_an_injection_keeps_the_stars_noise(star: Photometry) -> None:
    """With and without the transit, what is folded differs by the transit and by nothing else."""
    period, epoch = 7.3, 1980.0
    planet = Transit(period, epoch, 0.03, 0.2, scaled_axis(period, star.known.density), (0.4, 0.25))
    time, flux = star.time[star.quiet], star.flux[star.quiet]
    shape = light_curve(time, planet, star.known.exposure)
    with_it, without = (folded(time, each, star, period, epoch) for each in (flux * shape, flux))
    alone = folded(time, shape, star, period, epoch)
    assert with_it is not None and without is not None and alone is not None
    np.testing.assert_allclose(with_it.missing - without.missing, alone.missing, atol=1e-6)
    assert with_it.scatter == pytest.approx(without.scatter, rel=1e-3)
    assert 4e-5 < without.scatter < 1e-4  # the star's own


def test_a_slope_is_divided_out_and_the_depth_comes_back() -> None:
    star = silent(1e-6)
    period, epoch = 8.0, 3.0
    planet = Transit(period, epoch, 0.1, 0.0, scaled_axis(period, 1.0), (0.0, 0.0))
    fold = folded(star.time, star.flux * light_curve(star.time, planet, star.known.exposure), star, period, epoch)
    assert fold is not None and fold.transits == 8
    assert fold.depth == pytest.approx(0.01, rel=0.05)
    assert fold.width_days == pytest.approx(planet.duration, rel=0.3)
    beside = np.abs(fold.phase) > 0.75  # not where a bin is empty
    assert beside.sum() > 10 and np.abs(fold.missing[beside]).max() < 5e-6
    assert fold.central_days == central_duration(period, 1.0)


def test_a_fit_finds_what_was_put_in() -> None:
    star = silent(2e-5)
    q1, q2 = 0.4, 0.35
    limb = (2 * q1**0.5 * q2, q1**0.5 * (1 - 2 * q2))
    folds, truths = [], []
    for ratio, impact in ((0.03, 0.2), (0.08, 0.6), (0.12, 0.8)):
        planet = Transit(6.137, 2.0, ratio, impact, scaled_axis(6.137, 1.0), limb)
        fold = folded(star.time, star.flux * light_curve(star.time, planet, star.known.exposure), star, 6.137, 2.0)
        assert fold is not None
        folds.append(fold)
        truths.append([standard(TARGETS[0], ratio), standard(TARGETS[1], 24 * planet.duration)])
    off = np.abs(fitted(folds)[..., 0] - np.array(truths))
    assert off[:, 0].max() * TARGETS[0].width < 0.01 and off[:, 1].max() * TARGETS[1].width < 0.01


def test_samples_are_finite_dimensionless_and_seeded(star: Photometry) -> None:
    everywhere = np.ones(len(star.time), dtype=np.bool_)
    found, again, other = (injected(star, everywhere, 50, seed) for seed in (1, 1, 2))
    assert torch.equal(found.seen.series, again.seen.series) and not torch.equal(found.targets, other.targets)
    for tensor in (found.seen.series, found.seen.scalars, found.targets):
        assert tensor.isfinite().all() and tensor.abs().max() < 12
    assert found.given.all() and found.seen.scalars.shape == (50, len(SCALARS))
    known = real(star)
    assert known.given.tolist() == [[1.0, 0.0]] * 3  # durations are not published in the catalogue that ships


def test_a_star_without_known_planets_has_no_real_samples() -> None:
    assert len(real(silent(1e-4))) == 0 and samples([], []).seen.series.shape[0] == 0


def test_where_nothing_fits_it_is_said(star: Photometry) -> None:
    with pytest.raises(TooFewTransits, match="K2-3: 100 chance transits found no place in 0 quiet cadences"):
        injected(star, np.zeros(len(star.time), dtype=np.bool_), 1, 1)
