"""Randomness for privacy: its distribution, and that nobody can foresee or repeat it."""

import numpy as np
import pytest
import torch
from scipy import stats

from astrofed.shared.privacy import box_muller, noise
from astrofed.shared.privacy.noise import GRID_BITS, Randomness, UnsafeSeededRandomness

MANY = 400_000


def test_normal_numbers_are_standard_normal() -> None:
    values = UnsafeSeededRandomness(1).normal(MANY)
    assert values.shape == (MANY,) and values.dtype == np.float64
    assert abs(values.mean()) < 4 / np.sqrt(MANY)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / MANY)
    assert abs(stats.skew(values)) < 4 * np.sqrt(6 / MANY)
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24 / MANY)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert (np.abs(values) > 4).mean() == pytest.approx(2 * stats.norm.sf(4), rel=0.5)


def test_uniform_numbers_are_uniform_and_never_one() -> None:
    values = UnsafeSeededRandomness(2).uniform(MANY)
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert (values * 2**53 == np.floor(values * 2**53)).all()


def test_calls_are_independent_of_each_other() -> None:
    random = UnsafeSeededRandomness(3)
    first, second = random.normal(MANY), random.normal(MANY)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(MANY)
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 4 / np.sqrt(MANY)
    assert abs(np.corrcoef(np.abs(first), np.abs(second))[0, 1]) < 4 / np.sqrt(MANY)


def test_seeding_the_global_generators_repeats_nothing() -> None:
    drawn = []
    for _ in range(2):
        np.random.seed(0)
        torch.manual_seed(0)
        drawn.append(Randomness().normal(8))
    assert not np.isin(drawn[0], drawn[1]).any()


def test_drawing_leaves_the_global_generators_alone() -> None:
    numpy, torch_ = np.random.get_state(legacy=True)[1], torch.get_rng_state()
    Randomness().normal(8)
    np.testing.assert_array_equal(np.random.get_state(legacy=True)[1], numpy)
    assert torch.equal(torch.get_rng_state(), torch_)


def test_only_the_one_called_unsafe_can_be_repeated() -> None:
    np.testing.assert_array_equal(UnsafeSeededRandomness(7).normal(8), UnsafeSeededRandomness(7).normal(8))
    assert not np.isin(UnsafeSeededRandomness(7).normal(8), UnsafeSeededRandomness(8).normal(8)).any()


@pytest.mark.parametrize("count", [0, 1])
def test_as_many_as_asked_for(count: int) -> None:
    assert Randomness().normal(count).shape == Randomness().uniform(count).shape == (count,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("deviation", [1.0, 0.3, 7e-4, 5e3])
def test_hidden_numbers_have_the_noise_asked_for_and_keep_their_type_and_shape(
    dtype: torch.dtype, deviation: float
) -> None:
    values = torch.linspace(-3, 3, MANY).reshape(2, -1).to(dtype) * deviation
    noisy = UnsafeSeededRandomness(4).hidden(values, deviation)
    assert noisy.dtype == dtype and noisy.shape == values.shape
    errors = (noisy.double() - values.double()).flatten().numpy() / deviation
    assert abs(errors.mean()) < 4 / np.sqrt(MANY) and abs(errors.var() - 1) < 4 * np.sqrt(2 / MANY)
    assert stats.kstest(errors[:20_000], "norm").pvalue > 1e-3  # more would see the grid


@pytest.mark.parametrize("deviation", [1.0, 0.3, 6.5])
def test_what_leaves_lies_on_one_grid_whatever_was_hidden(deviation: float) -> None:
    step = 2.0 ** (np.floor(np.log2(deviation)) - GRID_BITS)
    assert 2**GRID_BITS <= deviation / step < 2 ** (GRID_BITS + 1)
    random = UnsafeSeededRandomness(5)
    hidden = [random.hidden(torch.full((1000,), value, dtype=torch.float64), deviation) for value in (0.0, 0.1, 1 / 3)]
    for noisy in hidden:
        assert bool((noisy / step == (noisy / step).round()).all())


def test_in_plain_float64_last_bits_tell_what_was_hidden() -> None:
    """Only what was hidden at 0 has bits below 2⁻⁶⁰: one such number tells 0 from 0.1, whatever epsilon is."""
    zero, tenth = (value + UnsafeSeededRandomness(5).normal(20_000) for value in (0.0, 0.1))
    assert ((zero * 2.0**60) % 1 != 0).any() and not ((tenth * 2.0**60) % 1 != 0).any()


def test_every_number_of_a_large_tensor_is_hidden_by_noise_of_its_own() -> None:
    """Over several blocks, the last with an odd number: none is left out, none has another's noise."""
    count = 3 * noise._BLOCK + 1
    noisy = UnsafeSeededRandomness(6).hidden(torch.zeros(count, dtype=torch.float64), 1.0)
    assert int((noisy == 0).sum()) < count / 2**GRID_BITS
    blocks = noisy[:-1].reshape(3, -1)
    assert float((torch.corrcoef(blocks) - torch.eye(3)).abs().max()) < 4 / np.sqrt(noise._BLOCK)
    assert float(noisy[-1]) != 0


def test_compiled_numbers_are_box_and_mullers_to_the_last_places() -> None:
    """Words with the smallest and largest uniform numbers, and random ones; both bits that choose the quarter."""
    half = 3 * box_muller.PIECE + 5
    words = np.random.default_rng(1).integers(0, 2**64, 2 * half, dtype=np.uint64)
    words[:3] = 0, 2**64 - 1, 2**12
    u, turn = (words[:half] >> np.uint64(12)) * 2.0**-52, (words[half:] >> np.uint64(12)) * 2.0**-52
    radius, angle = np.sqrt(-2 * np.log1p(-u)), (turn - 0.5) * np.pi / 2
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    x = np.where(words[half:] & np.uint64(2), -x, x)
    swaps = (words[half:] & np.uint64(1)) != 0
    found = np.empty(2 * half)
    box_muller.fill_normal(words, found)
    expected = np.concatenate([np.where(swaps, y, x), np.where(swaps, x, y)])
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-300)
