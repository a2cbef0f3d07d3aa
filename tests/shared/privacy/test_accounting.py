"""What DP-SGD costs: exact cases, Opacus' own accountants, composition, and the noise that a budget needs."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from astrofed.shared.privacy import accounting
from astrofed.shared.privacy.accounting import (
    ORDERS,
    BudgetUnreachable,
    Event,
    epsilon,
    noise_multiplier_for,
    within,
)
from astrofed.shared.privacy.composition import coarser

HISTORIES = {
    "one kind": [Event(1.0, 0.1, 300)],
    "small rate": [Event(0.8, 0.02, 400)],
    "every unit each step": [Event(4.0, 1.0, 30)],
    "one step": [Event(1.0, 0.1, 1)],
    "two kinds": [Event(1.0, 0.1, 100), Event(0.9, 0.05, 50)],
    "twelve kinds": [Event(1.1 + 0.1 * number, 0.05 + 0.01 * number, 20) for number in range(12)],
}


def opacus(accountant: PRVAccountant | RDPAccountant, events: list[Event], delta: float) -> float:
    accountant.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in events]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if isinstance(accountant, RDPAccountant):
            return float(accountant.get_epsilon(delta, alphas=ORDERS.tolist()))
        return float(accountant.get_epsilon(delta))


def exact_gaussian(mu: float, delta: float) -> float:
    """Epsilon of Gaussian noise of 1/mu sensitivities (Balle & Wang 2018, theorem 8)."""

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)) - delta

    return float(brentq(excess, 0, 100))


@pytest.mark.parametrize("noise, steps", [(4.0, 1), (4.0, 30), (20.0, 100)])
def test_without_sampling_it_is_the_exact_gaussian_mechanism(noise: float, steps: int) -> None:
    exact = exact_gaussian(math.sqrt(steps) / noise, 1e-5)
    assert exact <= epsilon([Event(noise, 1.0, steps)], 1e-5) <= exact + 0.03


@pytest.mark.parametrize("events", HISTORIES.values(), ids=HISTORIES)
def test_it_is_the_smaller_of_what_opacus_says(events: list[Event]) -> None:
    renyi, numerical = opacus(RDPAccountant(), events, 1e-5), opacus(PRVAccountant(), events, 1e-5)
    assert epsilon(events, 1e-5) == pytest.approx(min(renyi, numerical), rel=1e-6)
    steps = accounting._merged(events)
    assert accounting._renyi(steps, 1e-5) == pytest.approx(renyi, rel=1e-12)
    assert accounting._numerical(steps, 1e-5) == pytest.approx(numerical, rel=1e-6)


@pytest.mark.parametrize("events", [events for events in HISTORIES.values() if len(events) != 1 or events[0].steps > 1])
def test_it_is_within_one_percent_of_another_library_that_counts_otherwise(events: list[Event]) -> None:
    accounting_library = pytest.importorskip("dp_accounting")
    accountant = accounting_library.pld.PLDAccountant(value_discretization_interval=1e-3)
    for event in events:
        step = accounting_library.GaussianDpEvent(event.noise_multiplier)
        accountant.compose(accounting_library.PoissonSampledDpEvent(event.sample_rate, step), event.steps)
    assert epsilon(events, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)


def test_fifty_rounds_cost_far_less_than_fifty_times_one() -> None:
    round_ = Event(1.0, 64 / 1437, 20)
    assert epsilon([round_] * 50, 1e-4) == pytest.approx(8.4, abs=0.05)
    assert 50 * epsilon([round_], 1e-4) > 60


def test_rounds_compose_to_what_one_accountant_says_of_the_whole() -> None:
    first, second = Event(1.1, 0.1, 20), Event(0.9, 0.2, 10)
    whole = [Event(1.1, 0.1, 100), Event(0.9, 0.2, 50)]
    assert epsilon([first, second] * 5, 1e-5) == epsilon(whole, 1e-5)


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0
    assert epsilon([Event(1.0, 0.1, 0)], 1e-5) == 0
    assert within([], 1e-5, 1e-9)


@settings(deadline=None, derandomize=True, max_examples=8)
@given(
    noise=st.floats(0.7, 10), rate=st.floats(0.001, 1), steps=st.integers(1, 300), delta=st.sampled_from([1e-7, 1e-4])
)
def test_more_steps_and_less_noise_cost_more(noise: float, rate: float, steps: int, delta: float) -> None:
    base = epsilon([Event(noise, rate, steps)], delta)
    assert 0 <= base <= epsilon([Event(noise, rate, 2 * steps)], delta)
    assert base <= epsilon([Event(0.8 * noise, rate, steps)], delta)


@pytest.mark.parametrize("target, rate, steps", [(8.0, 0.27, 192), (8.0, 1.0, 180), (1.0, 0.02, 1000), (0.2, 0.1, 50)])
def test_the_noise_found_spends_nearly_the_whole_budget_and_no_more(target: float, rate: float, steps: int) -> None:
    noise = noise_multiplier_for(target, 1e-5, rate, steps)
    assert 0.998 * target <= epsilon([Event(noise, rate, steps)], 1e-5) <= target


@pytest.mark.parametrize("rate", [1e-7, 2e-6])
def test_where_hardly_anything_is_sampled_little_noise_is_enough(rate: float) -> None:
    noise = noise_multiplier_for(8.0, 1e-5, rate, 1)
    assert 0.01 < noise < 0.3
    assert epsilon([Event(noise, rate, 1)], 1e-5) <= 8


def test_a_budget_that_no_noise_keeps_is_refused() -> None:
    with pytest.raises(BudgetUnreachable, match=r"epsilon = 0.001.*fewer rounds"):
        noise_multiplier_for(1e-3, 1e-5, 1.0, 100)


@pytest.mark.parametrize("target", [8.0, 6.2])
def test_noise_is_found_for_what_was_left_by_others(target: float) -> None:
    spent = [Event(1.1, 0.1, 60), Event(1.1, 0.1, 40)]  # epsilon 5.9
    noise = noise_multiplier_for(target, 1e-5, 0.1, 100, spent)
    assert 0.995 * target <= epsilon([*spent, Event(noise, 0.1, 100)], 1e-5) <= target
    assert noise > 1.1 * noise_multiplier_for(target, 1e-5, 0.1, 100)


def test_what_others_have_spent_is_named_where_nothing_is_left() -> None:
    with pytest.raises(BudgetUnreachable, match=r"within epsilon = 5 .*besides epsilon = 5\.92.* spent before"):
        noise_multiplier_for(5.0, 1e-5, 0.1, 100, [Event(1.1, 0.1, 100)])


def test_a_long_history_of_many_kinds_is_merged_into_one_that_costs_hardly_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = [Event(2.0 + 0.03 * number, 0.05 + 0.002 * (number % 7), 10) for number in range(24)]
    steps = accounting._merged(events)
    whole = accounting._numerical(steps, 1e-5)
    accounting._numerical.cache_clear()
    composed: list[int] = []
    compose = accounting.composed_epsilon
    monkeypatch.setattr(accounting, "POINTS", 1e6)
    monkeypatch.setattr(
        accounting, "composed_epsilon", lambda kinds, *rest: composed.append(len(kinds)) or compose(kinds, *rest)
    )
    merged = accounting._numerical(steps, 1e-5)
    accounting._numerical.cache_clear()
    assert 1 <= composed[0] < 24
    assert whole <= merged <= min(1.05 * whole, accounting._renyi(steps, 1e-5))


KINDS = st.tuples(st.floats(0.5, 20), st.floats(1e-4, 1), st.integers(1, 100))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(steps=st.lists(KINDS, min_size=1, max_size=8), most=st.integers(1, 5))
def test_merged_kinds_cost_at_least_as_much(steps: list[tuple[float, float, int]], most: int) -> None:
    merged = coarser(tuple(steps), most)
    assert len(merged) == min(most, len(steps))
    assert sum(count for _, _, count in merged) == sum(count for _, _, count in steps)
    for noise, rate, _ in steps:
        assert any(less <= noise and more >= rate for less, more, _ in merged)
    assert accounting._renyi(merged, 1e-5) >= (1 - 1e-12) * accounting._renyi(tuple(steps), 1e-5)


def test_a_budget_is_kept_if_either_bound_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def bounds(renyi: float, numerical: float) -> bool:
        monkeypatch.setattr(accounting, "_renyi", lambda *_: renyi)
        monkeypatch.setattr(accounting, "_numerical", lambda *_: numerical)
        return within([Event(1.0, 0.1, 10)], 1e-5, 2.0)

    assert bounds(1.9, 2.1) and bounds(2.1, 1.9)
    assert not bounds(2.1, 2.1)


def test_where_numerical_composition_fails_the_renyi_bound_stands() -> None:
    events = [Event(1.0, 0.1, 100)]  # delta is below what its mesh can tell
    assert epsilon(events, 1e-20) == accounting._renyi(accounting._merged(events), 1e-20)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Event(0.0, 0.1, 1),
        lambda: Event(math.nan, 0.1, 1),
        lambda: Event(1.0, 0.0, 1),
        lambda: Event(1.0, 1.1, 1),
        lambda: Event(1.0, 0.1, -1),
    ],
)
def test_events_that_make_no_sense_are_refused(make: Callable[[], Event]) -> None:
    with pytest.raises(ValueError, match=r"it must be|can't be"):
        make()
