"""A dataset's budget is for ever: runs, modes and trials compose in the site's ledger, and what is left is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from astrofed.client.policy import Policy
from astrofed.client.privacy.dpsgd import sampling
from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.lifetime import besides, lifetime
from astrofed.client.privacy.spending import Budget, budget_for, forecast
from astrofed.client.site import Site
from astrofed.shared.plan import Plan, Privacy
from astrofed.shared.privacy.accounting import epsilon
from astrofed.shared.privacy.events import Event

Send, Asked, Place = Callable[..., Message], Callable[..., Plan], Callable[..., Site]
Allowing = Callable[..., Policy]
DELTA = 1e-5


def test_two_runs_and_a_search_of_ten_compose_and_a_fourth_run_is_refused_with_what_is_left(
    tmp_path: Path, send: Send, place: Place, asked: Asked, allowing: Allowing
) -> None:
    def plan(name: str, noise: float, **changes: Any) -> Plan:
        privacy = {"unit": "planet", "noise_multiplier": noise, "delta": DELTA}
        return asked(name=name, rounds=1, privacy=privacy, **changes)

    first, second = plan("first", 1.5), plan("second", 2.0, mode="single")
    trials = [plan(f"search {number}", 4.0) for number in range(1, 11)]
    rate, steps = sampling(first.training, 431)
    expected = [Event(noise, rate, steps) for noise in (1.5, 2.0, *[4.0] * 10)]
    budget = epsilon(expected, DELTA) + 0.01
    site = place(policy=allowing({"modes": ["federated", "single"]}, epsilon=budget))
    for each in (first, second, *trials):
        assert not send(site, "query.enrol", each).has_error()
        assert not send(site, "train", each, **{"server-round": 1}).has_error()
    ledger = Ledger(tmp_path / "home")
    (dataset,) = ledger.book().datasets
    assert ledger.events(dataset) == expected
    assert epsilon(expected, DELTA) < 0.5 * sum(epsilon([event], DELTA) for event in expected)  # composed, not added
    fourth = plan("fourth", 4.0)
    for kind, settings in (("query.enrol", {}), ("train", {"server-round": 1})):
        reply = send(site, kind, fourth, **settings)
        assert reply.has_error()
        assert f"the site's budget is {budget:.6g}, spent are {epsilon(expected, DELTA):.4g}" in reply.error.reason
        assert "left 0.01" in reply.error.reason
    assert ledger.events(dataset) == expected


def test_a_plan_with_its_own_epsilon_is_held_to_it_and_one_without_to_the_sites() -> None:
    site = Budget(6.0, 1e-5)
    assert budget_for(Privacy(epsilon=2.0, delta=1e-7, unit="planet"), site) == Budget(2.0, 1e-7)
    given = Privacy(noise_multiplier=1.0, delta=1e-7, unit="planet")
    assert budget_for(given, site) == site and budget_for(given, None) == Budget(None, 1e-7)
    found = forecast([], given, 0.1, 20, "f" * 64, lifetime=site)
    assert found.budget == 6.0 and found.delta == 1e-5 and found.left == pytest.approx(6 - found.epsilon_after)


def test_noise_leaves_room_for_what_else_a_run_spends(place: Place, asked: Asked, allowing: Allowing) -> None:
    noise = {"multiplier": 6.0, "bounds": {"loss": 1.0}}
    site, plan = place(policy=allowing(noise=noise)), asked(rounds=7, evaluate_every=3)
    later = besides(plan, site)
    assert [later(first) for first in (0, 1, 4, 7)] == [[Event(6.0, 1.0, count)] for count in (4, 3, 2, 1)]
    assert besides(plan, place())(0) == [] and lifetime(place()) == Budget(6.0, 1e-5)
    assert lifetime(place(policy=None)) is None
    assert plan.privacy is not None
    alone = forecast([], plan.privacy, 0.1, 40, "f" * 64)
    beside = forecast([], plan.privacy, 0.1, 40, "f" * 64, besides=later(0))
    assert beside.event.noise_multiplier > alone.event.noise_multiplier
    assert 0.99 * 4 <= epsilon([beside.event, *later(0)], 1e-5) <= 4
