"""What runs spend together on one dataset: noise found for what is left, every run and trial composed, refusals."""

from pathlib import Path

import pytest

from astrofed.client.privacy.ledger import Expense, Ledger
from astrofed.client.privacy.mistakes import BudgetSpent
from astrofed.client.privacy.spending import Account, Forecast, forecast
from astrofed.shared.plan import Plan, Privacy, load_plan
from astrofed.shared.privacy.accounting import BudgetUnreachable, Event, epsilon

DATASET, DELTA, RATE, STEPS = "f" * 64, 1e-5, 0.1, 10  # STEPS: of a round
TARGET = Privacy(epsilon=8.0, delta=DELTA, unit="planet")
GIVEN = Privacy(noise_multiplier=1.3, delta=DELTA, unit="planet")


def plan(name: str = "trial", privacy: Privacy = TARGET, rounds: int = 4) -> Plan:
    section = privacy.model_dump(exclude_none=True)
    participants = [{"name": "K2", "data": "bundled:planets/k2"}]
    return load_plan({"name": name, "rounds": rounds, "task": "planets", "model": "mlp", "privacy": section,
                      "participants": participants})  # fmt: skip


def account(home: Path, given: Plan) -> Account:
    return Account(Ledger(home), given, DATASET, "planet", 200, RATE, STEPS)


def train(at: Account, first: int, last: int) -> list[Event]:
    events = []
    for number in range(first, last + 1):
        with at.round(number) as event:
            events.append(event)
    return events


def test_a_target_finds_noise_and_noise_reports_epsilon_before_anything_is_spent() -> None:
    found = forecast([], TARGET, RATE, 40, DATASET)
    assert 0.998 * 8 <= found.epsilon_after <= 8 and found.epsilon_before == 0 and found.left == 8 - found.epsilon_after
    told = forecast([], GIVEN, RATE, 40, DATASET)
    assert told == Forecast(Event(1.3, RATE, 40), DELTA, 0.0, epsilon([Event(1.3, RATE, 40)], DELTA), None)
    assert told.left is None


def test_a_run_after_another_gets_the_noise_that_the_rest_allows(tmp_path: Path) -> None:
    modest = plan("first", GIVEN)
    train(account(tmp_path, modest), 1, 4)
    first = epsilon(Ledger(tmp_path).events(DATASET), DELTA)
    assert 0 < first < 8
    events = train(account(tmp_path, plan("second")), 1, 4)
    assert len(set(events)) == 1  # one noise for the whole run
    assert events[0].noise_multiplier > forecast([], TARGET, RATE, 40, DATASET).event.noise_multiplier
    assert 0.995 * 8 <= epsilon(Ledger(tmp_path).events(DATASET), DELTA) <= 8
    with pytest.raises(BudgetSpent, match=r"nothing worth training with is left.*budget is 8, spent are 7\.9.*left 0"):
        train(account(tmp_path, plan("third")), 1, 1)


def test_a_run_that_died_in_a_round_goes_on_with_noise_for_the_rounds_that_are_left(tmp_path: Path) -> None:
    given = plan(rounds=6)
    train(account(tmp_path, given), 1, 2)
    with pytest.raises(KeyboardInterrupt), account(tmp_path, given).round(3):
        raise KeyboardInterrupt
    assert len(Ledger(tmp_path).events(DATASET)) == 3  # the dead round is spent
    events = train(account(tmp_path, given), 3, 6)
    assert len(Ledger(tmp_path).events(DATASET)) == 7
    assert events[0].noise_multiplier > forecast([], TARGET, RATE, 60, DATASET).event.noise_multiplier
    assert 0.99 * 8 <= epsilon(Ledger(tmp_path).events(DATASET), DELTA) <= 8


def test_the_same_plan_run_again_in_one_process_is_another_run(tmp_path: Path) -> None:
    at = account(tmp_path, plan())
    train(at, 1, 4)
    with pytest.raises(BudgetSpent):
        train(at, 1, 1)


def test_the_outlook_says_before_training_what_a_run_will_spend(tmp_path: Path) -> None:
    at = account(tmp_path, plan())
    outlook = at.outlook()
    (event, *_) = train(at, 1, 4)
    assert outlook == f"noise multiplier {event.noise_multiplier:.4g}, which brings epsilon to {at.epsilon():.4g}"
    assert account(tmp_path, plan()).outlook() == f"epsilon {at.epsilon():.4g} spent so far"  # a resumed run
    with pytest.raises(BudgetSpent, match="left"):
        account(tmp_path, plan("another")).outlook()
    later = account(tmp_path, plan("open-ended", GIVEN)).outlook()
    assert later.startswith(f"noise multiplier 1.3, which brings epsilon from {at.epsilon():.4g} to ")


def test_what_no_noise_can_do_is_refused_before_training(tmp_path: Path) -> None:
    tight = Privacy(epsilon=0.001, delta=DELTA, unit="planet")
    with pytest.raises(BudgetUnreachable):
        account(tmp_path, plan(privacy=tight)).outlook()
    assert Ledger(tmp_path).events(DATASET) == []


def test_two_runs_and_a_search_of_ten_candidates_compose_and_a_fourth_run_is_refused(tmp_path: Path) -> None:
    def expense(run: str, mode: str, number: int, event: Event) -> Expense:
        return Expense(run, number, mode, DATASET, "planet", 200, 1.0, event)

    trained = [Event(1.4, 0.1, 60), Event(1.1, 0.05, 80)]
    tried = [Event(2.0, 0.1 + 0.01 * (candidate % 3), 15) for candidate in range(10)]
    everything = [*trained, *tried]
    budget = epsilon(everything, DELTA)
    spending = [
        expense("first", "federated", 1, trained[0]),
        expense("second", "single", 1, trained[1]),
        *(expense("search", "nas", candidate, event) for candidate, event in enumerate(tried, 1)),
    ]
    for each in spending:
        ledger = Ledger(tmp_path)  # a process of its own, as far as the ledger can tell
        ledger.settle(ledger.reserve(each, budget, DELTA), each, each.event.steps)
    assert Ledger(tmp_path).events(DATASET) == everything
    assert budget < 0.5 * sum(epsilon([event], DELTA) for event in everything)  # composed, not added
    assert budget > max(epsilon([event], DELTA) for event in trained)
    fourth = expense("fourth", "federated", 1, Event(1.4, 0.1, 10))
    with pytest.raises(BudgetSpent, match=rf"budget is {budget:g}, spent are {budget:.4g}, left 0\."):
        Ledger(tmp_path).reserve(fourth, budget, DELTA)
    assert len(Ledger(tmp_path).events(DATASET)) == 12


def test_an_adaptive_norm_outlives_the_process_in_the_ledger(tmp_path: Path) -> None:
    given = plan(privacy=GIVEN)
    first = account(tmp_path, given)
    assert first.clipping_norm() is None
    for number, norm in ((1, 1.0), (2, 0.7)):
        with first.round(number, norm):
            pass
    assert account(tmp_path, given).clipping_norm() == 0.7
    assert account(tmp_path, plan("another", GIVEN)).clipping_norm() is None
    with account(tmp_path, given).round(3):
        pass
    assert account(tmp_path, given).clipping_norm() == GIVEN.clipping_norm
