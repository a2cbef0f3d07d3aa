"""The server's account of central privacy: what is charged, that it stays within the plan, and that it can't be cut."""

import shutil
from pathlib import Path

import pytest

from astrofed.server.privacy.accounting import FILE, AccountBroken, AccountCopied, CentralAccount, Price
from astrofed.shared.plan import CentralPrivacy
from astrofed.shared.privacy.accounting import BudgetUnreachable, Event, epsilon

SAMPLED = CentralPrivacy(epsilon=4.0, delta=1e-4, sampling_rate=0.2)
TREE = CentralPrivacy(noise_multiplier=3.0, delta=1e-4, mechanism="tree", cohorts=5)


def test_an_uninterrupted_run_spends_what_the_plan_says(tmp_path: Path) -> None:
    account = CentralAccount(tmp_path, SAMPLED, 20, None)
    noises = {account.charge(number) for number in range(1, 21)}
    assert len(noises) == 1
    spent = account.spent(1.0)
    assert spent.epsilon == epsilon([Event(noises.pop(), 0.2, 20)], 1e-4) <= 4.0
    assert spent.epsilon > 3.95 and spent.charges == 20
    assert Price(SAMPLED).epsilon(20) == spent.epsilon


def test_a_tree_is_charged_once_as_one_mechanism_over_the_nodes_that_a_round_is_part_of() -> None:
    """Five rounds: a round is part of three nodes, so a participant moves the vector of nodes by √3 norms."""
    price = Price(TREE)
    assert price.charges(10) == 2 and price.charges(11) == 3
    assert price.event(3.0) == Event(3.0 / 3**0.5, 1.0, 1)
    assert price.epsilon(10) == epsilon([Event(3.0 / 3**0.5, 1.0, 2)], 1e-4)
    found = Price(CentralPrivacy(epsilon=2.0, delta=1e-4, mechanism="tree", cohorts=5))
    assert found.epsilon(10) <= 2.0 and found.epsilon(10) > 1.97


def test_repeated_rounds_are_charged_again_and_the_rest_gets_more_noise(tmp_path: Path) -> None:
    first = CentralAccount(tmp_path, SAMPLED, 20, None)
    noise = [first.charge(number) for number in range(1, 11)][-1]
    record = first.spent(1.0)
    first.charge(11)  # charged, and the process ends before the round is in the record
    again = CentralAccount(tmp_path, SAMPLED, 20, record)
    more = [again.charge(number) for number in range(11, 21)][-1]
    spent = again.spent(1.0)
    assert spent.charges == 21 and more > noise
    assert spent.epsilon == epsilon([Event(noise, 0.2, 11), Event(more, 0.2, 10)], 1e-4) <= 4.0


def test_a_given_noise_is_kept_and_epsilon_grows(tmp_path: Path) -> None:
    given = CentralPrivacy(noise_multiplier=2.0, delta=1e-4)
    account = CentralAccount(tmp_path, given, 2, None)
    assert [account.charge(1), account.charge(1), account.charge(2)] == [2.0] * 3
    assert account.spent(1.0).epsilon == epsilon([Event(2.0, 1.0, 3)], 1e-4)


def test_when_too_much_is_spent_nothing_more_is_released(tmp_path: Path) -> None:
    plenty = CentralAccount(tmp_path, CentralPrivacy(noise_multiplier=0.3, delta=1e-4), 3, None)
    plenty.charge(1)
    account = CentralAccount(tmp_path, SAMPLED, 3, plenty.spent(1.0))
    with pytest.raises(BudgetUnreachable, match="spent before"):
        account.charge(2)
    assert len((tmp_path / FILE).read_bytes().splitlines()) == 1


def test_an_account_that_was_cut_edited_or_lost_is_found(tmp_path: Path) -> None:
    account = CentralAccount(tmp_path, SAMPLED, 5, None)
    for number in (1, 2, 3):
        account.charge(number)
    record, path = account.spent(1.0), tmp_path / FILE
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (b"", b"".join(lines[:2]), whole.replace(b'"round":2', b'"round":9'), b"".join(lines[1:]), b"{}\n"):
        path.write_bytes(damaged)
        with pytest.raises(AccountBroken, match=FILE):
            CentralAccount(tmp_path, SAMPLED, 5, record)
    last_replaced = whole.replace(b'"round":3', b'"round":4')
    path.write_bytes(last_replaced)
    with pytest.raises(AccountBroken, match="3 charges"):
        CentralAccount(tmp_path, SAMPLED, 5, record)
    path.unlink()
    with pytest.raises(AccountBroken, match="lost"):
        CentralAccount(tmp_path, SAMPLED, 5, record)


def test_a_torn_line_was_never_used(tmp_path: Path) -> None:
    account = CentralAccount(tmp_path, SAMPLED, 5, None)
    account.charge(1)
    record, path = account.spent(1.0), tmp_path / FILE
    path.write_bytes(path.read_bytes() + b'{"previous":"')
    again = CentralAccount(tmp_path, SAMPLED, 5, record)
    again.charge(2)
    assert CentralAccount(tmp_path, SAMPLED, 5, again.spent(1.0)).spent(1.0).charges == 2


def test_a_copy_is_refused_and_the_original_goes_on_wherever_it_is_moved(tmp_path: Path) -> None:
    original = tmp_path / "run"
    original.mkdir()
    account = CentralAccount(original, SAMPLED, 5, None)
    account.charge(1)
    record = account.spent(1.0)
    shutil.copytree(original, tmp_path / "copy")
    with pytest.raises(AccountCopied, match=r"copy.*resume the original folder"):
        CentralAccount(tmp_path / "copy", SAMPLED, 5, record)
    moved = original.rename(tmp_path / "moved")
    assert CentralAccount(moved, SAMPLED, 5, record).charge(2) > 0


def test_two_processes_never_charge_behind_each_others_back(tmp_path: Path) -> None:
    """Each would find noise for what it knows alone to be spent."""
    one, other = (CentralAccount(tmp_path, SAMPLED, 5, None) for _ in range(2))
    one.charge(1)
    with pytest.raises(AccountBroken, match="another process"):
        other.charge(1)
    one.charge(2)
    assert len((tmp_path / FILE).read_bytes().splitlines()) == 2
