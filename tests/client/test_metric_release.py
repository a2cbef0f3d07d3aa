"""Metrics with a policy: its list, enough units, digits, and noise that is charged to the ledger."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from astrofed.client.app import open_task
from astrofed.client.metric_release import NoisyRelease, releasable, rounded
from astrofed.client.policy import DataRules, MetricNoise, Policy
from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.mistakes import BudgetSpent
from astrofed.client.refusing import Withheld
from astrofed.client.site import Site, SiteSummary
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan
from astrofed.shared.privacy.accounting import epsilon
from astrofed.shared.privacy.events import Event

Send, Asked, Place = Callable[..., Message], Callable[..., Plan], Callable[..., Site]
Allowing = Callable[..., Policy]
NAMES = ("loss", "rmse/a", "rmse/b", "loss/each")


def units(name: str) -> int:
    return {"rmse/b": 3}.get(name, 40)


def test_only_listed_metrics_of_enough_units_leave() -> None:
    rules = DataRules(metrics=("loss", "rmse/*"), min_units=10)
    assert releasable(NAMES, rules, units) == ["loss", "rmse/a"]
    assert releasable(NAMES, rules, units, ["rmse/a"]) == ["rmse/a"]
    assert releasable(NAMES, DataRules(metrics=("*",), min_units=3), units) == list(NAMES)
    assert releasable(['"; a name', "loss"], DataRules(metrics=("*",)), units) == ["loss"]


@pytest.mark.parametrize(
    ("rules", "asked", "reason"),
    [
        (DataRules(), None, "none of the metrics may leave; the site's policy allows none"),
        (DataRules(metrics=("mae",)), None, "allows mae"),
        (DataRules(metrics=("rmse/b",)), None, "no metric is of the 10 units"),
        (DataRules(metrics=("rmse/*",)), ["rmse/b"], "'rmse/b' is of fewer than the 10 units"),
        (DataRules(metrics=("loss",)), ["rmse/a"], "doesn't let metric 'rmse/a' out; it allows loss"),
        (DataRules(metrics=("*",)), ["median"], "no metric 'median'"),
    ],
)
def test_refusals_say_what_the_policy_allows(rules: DataRules, asked: list[str] | None, reason: str) -> None:
    with pytest.raises(Withheld, match=reason):
        releasable(NAMES, rules, units, asked)


def test_rounding_is_to_significant_digits() -> None:
    assert [rounded(value, 2) for value in (0.123456, 98765.0, -3.0, 0.0)] == [0.12, 99000.0, -3.0, 0.0]
    assert rounded(0.123456789, None) == 0.123456789


def noisy(home: Path | None, plan: Plan, multiplier: float = 2.0, **rules: Any) -> NoisyRelease:
    noise = MetricNoise(multiplier=multiplier, bounds={"loss": 2.0, "rmse/*": 100.0})
    given = DataRules(**{"metrics": ("*",), "epsilon": 50.0, "noise": noise, **rules})
    return NoisyRelease(plan, Site("K2", Path("nowhere"), home=home), given, noise)


SUMMARY = SiteSummary("K2", "train", 431, 115, 431, "planet", "f" * 64, "")


def test_noise_has_the_width_that_the_ledger_is_charged_for(asked: Asked) -> None:
    release = noisy(None, asked(), epsilon=1e6)
    errors = {"loss": np.full(200, 1.0), "rmse/a": np.full(50, 50.0**2)}
    told = [release.release(["loss", "rmse/a", "mae"], errors, number, SUMMARY) for number in range(300)]
    assert all(set(each) == {"loss", "rmse/a"} for each in told)
    # the sums over units in b², from what was told: 200 · 1/4 and 50 · 1/4, each with noise of 2 · √2
    sums = np.array([[200 * (each["loss"] / 2) ** 2, 50 * (each["rmse/a"] / 100) ** 2] for each in told])
    assert sums.mean(axis=0) == pytest.approx([50, 12.5], abs=4 * 2 * math.sqrt(2 / 300))
    assert sums.std(axis=0) == pytest.approx([2 * math.sqrt(2)] * 2, rel=0.2)
    book = release._ledger.book()
    assert len(book.settled) == 300 and book.spending("f" * 64)[0].mode == "federated, metrics"
    assert {row.event for row in book.spending("f" * 64)} == {Event(2.0, 1.0, 1)}


def test_no_unit_counts_for_more_than_its_bound(tmp_path: Path, asked: Asked) -> None:
    release = noisy(tmp_path, asked(), multiplier=0.3, epsilon=1e6)
    calm, one_wild = np.zeros(100), np.zeros(100)
    one_wild[3] = 1e30
    told = [release.release(["loss"], {"loss": errors}, 1, SUMMARY)["loss"] for errors in (calm, one_wild)]
    assert all(value <= 2.0 * math.sqrt((1 + 8.5 * 0.3) / 100) for value in told)  # 8.5 deviations are the tails' end


def test_releases_compose_until_the_budget_is_spent_and_then_nothing_is_told(tmp_path: Path, asked: Asked) -> None:
    budget = epsilon([Event(2.0, 1.0, 3)], 1e-6)
    errors = {"loss": np.ones(100)}
    for number in range(3):  # each time as another process would
        assert noisy(tmp_path, asked(), epsilon=budget, delta=1e-6).release(["loss"], errors, number, SUMMARY)
    with pytest.raises(BudgetSpent, match="left"):
        noisy(tmp_path, asked(), epsilon=budget, delta=1e-6).release(["loss"], errors, 3, SUMMARY)
    assert epsilon(Ledger(tmp_path).events("f" * 64), 1e-6) == budget


@pytest.mark.parametrize("errors", [np.ones((10, 2)), np.full(100, np.nan), -np.ones(100)])
def test_errors_that_are_none_are_not_told(tmp_path: Path, asked: Asked, errors: Any) -> None:
    with pytest.raises(Withheld, match="not one finite number for each"):
        noisy(tmp_path, asked()).release(["loss"], {"loss": errors}, 1, SUMMARY)
    with pytest.raises(Withheld, match="no metric can be hidden"):
        noisy(tmp_path, asked()).release(["mae"], {"mae": np.ones(100)}, 1, SUMMARY)
    assert Ledger(tmp_path).book().last == 0


def test_planets_errors_by_unit_are_those_of_the_scores(place: Place, asked: Asked) -> None:
    site, plan = place(policy=None, home=None), asked(privacy=None)
    task, model = open_task(plan, site), build_model(plan)
    errors, metrics = task.unit_errors(model, {}), task.evaluate(model, {}, with_baselines=True)
    for name, found in errors.items():
        assert len(found) == task.evaluated_units(name) == task.evaluated_units(f"baseline/constant/{name}")
        if name != "loss":  # there a unit's mean is over one target or two
            assert math.sqrt(found.mean()) == pytest.approx(metrics[name], rel=1e-9)
    assert math.sqrt(errors["loss"].mean()) == pytest.approx(metrics["loss"], rel=0.1)
    assert errors.keys() == {name for name in metrics if not name.startswith("baseline/")}
    assert task.evaluated_units("loss") == 115 and task.evaluated_units("loss/each") == 0


def test_a_private_run_leaves_room_for_its_noisy_metrics_and_stays_within_its_budget(
    tmp_path: Path, send: Send, place: Place, asked: Asked, allowing: Allowing
) -> None:
    noise = {"multiplier": 4.0, "bounds": {"loss": 3.0}}
    site, plan = place(policy=allowing(noise=noise)), asked()
    told = []
    for number in range(plan.rounds + 1):
        if number:
            assert not send(site, "train", plan, **{"server-round": number}).has_error()
        reply = send(site, "evaluate", plan, **{"server-round": number, "with-baselines": number == 0})
        told.append(dict(reply.content.metric_records["metrics"]))
    assert all(set(each) == {"loss", "num-examples"} for each in told)
    (dataset,) = Ledger(tmp_path / "home").book().datasets
    events = Ledger(tmp_path / "home").events(dataset)
    assert [event for event in events if event.noise_multiplier == 4.0] == [Event(4.0, 1.0, 1)] * 3
    assert 0.95 * 4 <= epsilon(events, 1e-5) <= 4
