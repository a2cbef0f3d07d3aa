"""The ledger: what is reserved is spent, whatever happens; nothing is spent twice, forgotten or taken back."""

import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from astrofed.client.privacy.ledger import FILE, BudgetSpent, Expense, Ledger
from astrofed.client.privacy.mistakes import AlreadySettled, LedgerUnusable
from astrofed.shared.privacy.accounting import Event, epsilon

EVENT = Event(1.0, 0.1, 20)
EXPENSE = Expense(
    run="trial", round=1, mode="federated", dataset="f" * 64, unit="planet", units=200, clipping_norm=1.0, event=EVENT
)
DELTA = 1e-5


def budget(rounds: int) -> float:
    return epsilon([EVENT] * rounds, DELTA)


def spend(ledger: Ledger, expense: Expense = EXPENSE, limit: float | None = None) -> None:
    ledger.settle(ledger.reserve(expense, limit, DELTA), expense, expense.event.steps)


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "home" if request.param == "file" else None)


def test_it_begins_empty_and_keeps_what_was_spent(ledger: Ledger) -> None:
    assert ledger.events(EXPENSE.dataset) == []
    spend(ledger)
    spend(ledger, replace(EXPENSE, round=2))
    assert ledger.events(EXPENSE.dataset) == [EVENT, EVENT]


def test_steps_not_taken_are_not_spent(ledger: Ledger) -> None:
    ledger.settle(ledger.reserve(EXPENSE, None, DELTA), EXPENSE, 7)
    assert ledger.events(EXPENSE.dataset) == [replace(EVENT, steps=7)]


def test_datasets_are_told_apart_by_content_and_runs_are_not(ledger: Ledger) -> None:
    spend(ledger)
    spend(ledger, replace(EXPENSE, run="another", mode="single"))
    spend(ledger, replace(EXPENSE, dataset="e" * 64))
    assert len(ledger.events(EXPENSE.dataset)) == 2


def test_over_budget_nothing_is_written_and_the_rest_is_named(ledger: Ledger) -> None:
    limit = budget(3)
    for number in (1, 2, 3):
        spend(ledger, replace(EXPENSE, round=number), limit)
    with pytest.raises(BudgetSpent, match=rf"round 4 of run 'trial'.*budget is {limit:g}.*left 0"):
        ledger.reserve(replace(EXPENSE, round=4), limit, DELTA)
    assert len(ledger.events(EXPENSE.dataset)) == 3


def test_without_a_budget_everything_is_only_counted(ledger: Ledger) -> None:
    for _ in range(4):
        spend(ledger)
    assert len(ledger.events(EXPENSE.dataset)) == 4


def test_another_object_on_the_same_home_knows_all(tmp_path: Path) -> None:
    spend(Ledger(tmp_path))
    assert Ledger(tmp_path).events(EXPENSE.dataset) == [EVENT]
    with pytest.raises(BudgetSpent):
        Ledger(tmp_path).reserve(EXPENSE, budget(1), DELTA)


def test_whole_numbers_and_those_of_numpy_are_kept_as_any_other(tmp_path: Path) -> None:
    expense = replace(EXPENSE, units=np.int64(9), clipping_norm=2, event=Event(np.float32(1.1), 1, np.int64(5)))
    ledger = Ledger(tmp_path)
    ledger.settle(ledger.reserve(expense, np.int64(100), DELTA), expense, np.int64(4))
    assert Ledger(tmp_path).events(EXPENSE.dataset) == [Event(float(np.float32(1.1)), 1.0, 4)]


def test_a_process_that_dies_after_reserving_has_spent(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            Ledger(tmp_path).reserve(EXPENSE, None, DELTA)
        finally:
            os._exit(9)
    os.waitpid(child, 0)
    assert Ledger(tmp_path).events(EXPENSE.dataset) == [EVENT]


@pytest.mark.parametrize("shared", [True, False], ids=["one object", "an object each"])
def test_two_threads_cannot_both_spend_the_last(tmp_path: Path, shared: bool) -> None:
    limit, barrier, common = budget(1), Barrier(2), Ledger(tmp_path)

    def last(_: int) -> bool:
        ledger = common if shared else Ledger(tmp_path)
        barrier.wait()
        try:
            ledger.reserve(EXPENSE, limit, DELTA)
        except BudgetSpent:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(last, range(2))) == [False, True]
    assert common.events(EXPENSE.dataset) == [EVENT]


@pytest.mark.parametrize("statement", ["DELETE FROM entry", "UPDATE entry SET steps = 0"])
def test_rows_can_neither_be_changed_nor_removed(tmp_path: Path, statement: str) -> None:
    spend(Ledger(tmp_path))
    connection = sqlite3.connect(tmp_path / FILE)
    with pytest.raises(sqlite3.IntegrityError, match="only added"):
        connection.execute(statement)
    connection.close()


def test_a_reservation_is_settled_once_and_for_no_more_than_it_says(ledger: Ledger) -> None:
    reservation = ledger.reserve(EXPENSE, None, DELTA)
    with pytest.raises(ValueError, match="21 steps were taken, 20 were reserved"):
        ledger.settle(reservation, EXPENSE, 21)
    ledger.settle(reservation, EXPENSE, 20)
    ledger.settle(reservation, EXPENSE, 20)  # asked again after an answer that was lost
    with pytest.raises(AlreadySettled, match="settled for 20 steps, not for 0"):
        ledger.settle(reservation, EXPENSE, 0)
    with pytest.raises(ValueError, match="row 2 reserves nothing on dataset fff"):
        ledger.settle(2, EXPENSE, 0)
    assert ledger.events(EXPENSE.dataset) == [EVENT]
    assert ledger.reserve(EXPENSE, None, DELTA) == 3  # the second settling wrote nothing


def test_a_round_that_is_repeated_after_a_resume_is_charged_again(tmp_path: Path) -> None:
    spend(Ledger(tmp_path))
    Ledger(tmp_path).reserve(EXPENSE, None, DELTA)  # the same run and round: its noise is fresh
    assert Ledger(tmp_path).events(EXPENSE.dataset) == [EVENT, EVENT]


def test_many_objects_on_a_new_home_write_every_row(tmp_path: Path) -> None:
    barrier = Barrier(8)

    def first(_: int) -> None:
        barrier.wait()
        for _ in range(3):
            spend(Ledger(tmp_path / "home"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(first, range(8)))
    assert len(Ledger(tmp_path / "home").events(EXPENSE.dataset)) == 24
    assert [path.name for path in (tmp_path / "home").iterdir() if "unfinished" in path.name] == []


def emptied(home: Path) -> None:
    home.mkdir()
    (home / FILE).touch()


def damaged(home: Path) -> None:
    home.mkdir()
    (home / FILE).write_bytes(b"no database" * 1000)


def folder_is_a_file(home: Path) -> None:
    home.write_text("in the way")


@pytest.mark.parametrize("harm", [emptied, damaged, folder_is_a_file])
def test_a_ledger_that_cannot_be_used_is_named_and_nothing_is_spent(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    harm(tmp_path / "home")
    with pytest.raises(LedgerUnusable, match=r"ledger\.sqlite can't be used.*nothing is trained"):
        Ledger(tmp_path / "home").reserve(EXPENSE, None, DELTA)


def test_what_is_spent_survives_power_loss(tmp_path: Path) -> None:
    with Ledger(tmp_path)._store.transaction() as transaction:
        connection = transaction._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
