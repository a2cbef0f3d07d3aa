"""A ledger that was edited, cut, rolled back, replaced or copied is found; nothing is spent until that is accepted."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from astrofed.client.privacy.ledger import FILE, Ledger
from astrofed.client.privacy.ledger_rows import NAMES, Row
from astrofed.client.privacy.ledger_seal import HEAD, KEY, Head, Seal
from astrofed.client.privacy.mistakes import (
    LedgerCopied,
    LedgerCut,
    LedgerEdited,
    LedgerInDoubt,
    LedgerUnsigned,
    LedgerUnusable,
)
from astrofed.shared.privacy.events import Event, Expense

DATASET = "f" * 64
EXPENSE = Expense("trial", 1, "federated", DATASET, "planet", 200, 1.0, Event(1.0, 0.1, 20))
DELTA = 1e-5
FREE = "DROP TRIGGER IF EXISTS entry_stays; DROP TRIGGER IF EXISTS entry_is_kept;"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three rounds of 20 steps, the second settled for 12."""
    found = tmp_path / "home"
    for steps in (20, 12, 20):
        spend(found, steps)
    return found


def spend(home: Path, steps: int = 20) -> None:
    ledger = Ledger(home)
    ledger.settle(ledger.reserve(EXPENSE, None, DELTA), EXPENSE, steps)


def steps(home: Path) -> int:
    return sum(event.steps for event in Ledger(home).events(DATASET))


def tamper(home: Path, script: str) -> None:
    with closing(sqlite3.connect(home / FILE)) as connection:
        connection.executescript(FREE + script)


def forge(home: Path, script: str = "") -> None:
    """Change rows as `script` says, then chain all rows anew, as anybody can who knows how hashes are made."""
    tamper(home, script)
    with closing(sqlite3.connect(home / FILE)) as connection:
        (name,) = connection.execute("SELECT name FROM ledger").fetchone()
        chain = hashlib.sha256(f"privacy ledger {name}".encode()).hexdigest()
        for values in connection.execute(f"SELECT {', '.join(NAMES)} FROM entry ORDER BY id").fetchall():
            chain = Row(*values).after(chain)
            connection.execute("UPDATE entry SET hash = ? WHERE id = ?", (chain, values[0]))
        connection.commit()


def add_forged_row(home: Path) -> None:
    """Open a reservation, then settle it for nothing behind the ledger's back."""
    Ledger(home).reserve(EXPENSE, None, DELTA)
    with closing(sqlite3.connect(home / FILE)) as connection:
        *values, last, signature = connection.execute("SELECT * FROM entry ORDER BY id DESC LIMIT 1").fetchone()
        row = replace(Row(*values), id=8, kind="settle", reservation=7, steps=0, delta=None)
        marks = ", ".join("?" * (len(NAMES) + 2))
        connection.execute(f"INSERT INTO entry VALUES ({marks})", (*astuple(row), row.after(last), signature))
        connection.commit()


def rolled_back(home: Path) -> None:
    before = (home / FILE).read_bytes()
    spend(home)
    (home / FILE).write_bytes(before)


def replaced(home: Path) -> None:
    spend(home.parent / "new")
    (home / FILE).write_bytes((home.parent / "new" / FILE).read_bytes())


def put_back_whole(home: Path) -> None:
    """What restoring a backup of the folder does: the same bytes in new files, whose inodes are others."""
    shutil.copytree(home, home.with_name("backup"))
    spend(home)
    home.rename(home.with_name("spent"))  # removed, its inodes might be given to the new files
    shutil.copytree(home.with_name("backup"), home)


def head_of_another_key(home: Path) -> None:
    spend(home.parent / "new")
    (home / KEY).write_bytes((home.parent / "new" / KEY).read_bytes())


def head_changed(home: Path) -> None:
    note, _, signature = (home / HEAD).read_bytes().rpartition(b"\n")
    data = json.loads(note)
    (home / HEAD).write_bytes(json.dumps({**data, "row": data["row"] - 1}).encode() + b"\n" + signature)


HARMS: dict[str, tuple[Callable[[Path], None], type[LedgerInDoubt]]] = {
    "fewer steps": (lambda home: tamper(home, "UPDATE entry SET steps = 1 WHERE id = 5;"), LedgerEdited),
    "more noise": (lambda home: tamper(home, "UPDATE entry SET noise_multiplier = 9 WHERE id = 1;"), LedgerEdited),
    "another dataset": (lambda home: tamper(home, "UPDATE entry SET dataset = 'e' WHERE id = 1;"), LedgerEdited),
    "another time": (lambda home: tamper(home, "UPDATE entry SET time = '2020' WHERE id = 6;"), LedgerEdited),
    "chained anew": (lambda home: forge(home, "UPDATE entry SET steps = 1 WHERE id = 5;"), LedgerEdited),
    "last row settled for less": (lambda home: forge(home, "UPDATE entry SET steps = 0 WHERE id = 6;"), LedgerEdited),
    "bytes for a name": (lambda home: tamper(home, "UPDATE entry SET run = x'00ff' WHERE id = 3;"), LedgerEdited),
    "no number": (lambda home: tamper(home, "UPDATE entry SET budget = 9e999 WHERE id = 3;"), LedgerEdited),
    "a row in the middle gone": (lambda home: tamper(home, "DELETE FROM entry WHERE id = 4;"), LedgerEdited),
    "a row added": (add_forged_row, LedgerEdited),
    "the last row gone": (lambda home: tamper(home, "DELETE FROM entry WHERE id = 6;"), LedgerCut),
    "all rows gone": (lambda home: tamper(home, "DELETE FROM entry;"), LedgerCut),
    "rolled back": (rolled_back, LedgerCut),
    "file gone": (lambda home: (home / FILE).unlink(), LedgerCut),
    "another, empty ledger": (replaced, LedgerCopied),
    "backup put back": (put_back_whole, LedgerCopied),
    "head gone": (lambda home: (home / HEAD).unlink(), LedgerUnsigned),
    "head changed": (head_changed, LedgerUnsigned),
    "head garbled": (lambda home: (home / HEAD).write_bytes(b"\xff\xfe"), LedgerUnsigned),
    "key gone": (lambda home: (home / KEY).unlink(), LedgerUnsigned),
    "key garbled": (lambda home: (home / KEY).write_bytes(b"short"), LedgerUnsigned),
    "another key": (head_of_another_key, LedgerUnsigned),
}


@pytest.mark.parametrize(("harm", "doubt"), HARMS.values(), ids=HARMS)
def test_it_is_found_and_nothing_is_spent_until_the_operator_decides(
    home: Path, harm: Callable[[Path], None], doubt: type[LedgerInDoubt]
) -> None:
    harm(home)
    for _ in range(2):  # it doesn't go away by itself
        with pytest.raises(doubt, match=r"ledger\.sqlite is in doubt: .*--accept"):
            Ledger(home).reserve(EXPENSE, None, DELTA)
        with pytest.raises(doubt):
            Ledger(home).events(DATASET)


@pytest.mark.parametrize("name", HARMS)
def test_what_is_accepted_is_on_record_and_forgets_nothing_that_the_head_knew(home: Path, name: str) -> None:
    HARMS[name][0](home)
    noted = Seal(home).salvage()
    known = noted.totals if noted is not None else {}
    doubt = Ledger(home).accept()
    assert doubt
    book = Ledger(home).book()
    assert all(book.totals[cost] >= count for cost, count in known.items())
    assert [row.note for row in book.accepted] == [doubt] and book.last > (noted.row if noted is not None else 0)
    assert Ledger(home).accept() is None  # nothing is in doubt any more
    before = steps(home)
    spend(home)
    assert steps(home) == before + 20
    tamper(home, "UPDATE entry SET note = '' WHERE kind = 'accept';")
    with pytest.raises(LedgerEdited):
        Ledger(home).book()


def test_a_copy_is_accepted_with_all_that_was_spent_and_the_original_goes_on(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "copy")
    doubt = Ledger(tmp_path / "copy").accept()
    assert doubt is not None and "copy" in doubt
    assert steps(tmp_path / "copy") == steps(home) == 52
    spend(home)


@pytest.mark.parametrize("old_head", [1, 2, 5])
def test_a_head_that_lags_behind_is_brought_up_to_date(tmp_path: Path, old_head: int) -> None:
    heads = []
    for _ in range(3):
        reservation = Ledger(tmp_path).reserve(EXPENSE, None, DELTA)
        heads.append((tmp_path / HEAD).read_bytes())
        Ledger(tmp_path).settle(reservation, EXPENSE, 20)
        heads.append((tmp_path / HEAD).read_bytes())
    (tmp_path / HEAD).write_bytes(heads[old_head - 1])
    assert steps(tmp_path) == 60
    assert (tmp_path / HEAD).read_bytes() == heads[-1]


@pytest.mark.parametrize("missing", [(HEAD, KEY), (KEY,)])
def test_a_ledger_whose_making_was_interrupted_is_finished(tmp_path: Path, missing: tuple[str, ...]) -> None:
    assert Ledger(tmp_path).events(DATASET) == []
    for name in missing:  # the file comes first, then the head, then the key
        (tmp_path / name).unlink()
    spend(tmp_path)
    assert steps(tmp_path) == 20


def test_a_process_that_is_running_notices_too(home: Path) -> None:
    ledger = Ledger(home)
    old_file, old_head = (home / FILE).read_bytes(), (home / HEAD).read_bytes()
    ledger.settle(ledger.reserve(EXPENSE, None, DELTA), EXPENSE, 20)
    new_file = (home / FILE).read_bytes()
    (home / HEAD).write_bytes(old_head)
    with pytest.raises(LedgerUnsigned, match="head is of row 6, but row 8"):
        ledger.reserve(EXPENSE, None, DELTA)
    (home / FILE).write_bytes(old_file)  # both are old now, as after a backup that was put back in place
    with pytest.raises(LedgerInDoubt):
        ledger.reserve(EXPENSE, None, DELTA)
    (home / FILE).write_bytes(new_file)
    assert Ledger(home).book().last == 8


def test_head_and_key_in_another_place_tell_when_the_whole_home_is_rolled_back(tmp_path: Path) -> None:
    home, seals = tmp_path / "home", tmp_path / "other disk"
    seals.mkdir()
    ledger = Ledger(home, seals)
    ledger.reserve(EXPENSE, None, DELTA)
    before = (home / FILE).read_bytes()
    Ledger(home, seals).reserve(EXPENSE, None, DELTA)
    assert sorted(path.name for path in home.iterdir()) == [FILE]
    (home / FILE).write_bytes(before)
    with pytest.raises(LedgerCut, match="ends with row 1, but 2 rows were signed"):
        Ledger(home, seals).reserve(EXPENSE, None, DELTA)
    shutil.rmtree(home)
    with pytest.raises(LedgerCut, match="file is gone"):
        Ledger(home, seals).reserve(EXPENSE, None, DELTA)


def test_only_the_owner_can_read_the_key(home: Path) -> None:
    assert (home / KEY).stat().st_mode & 0o777 == 0o600
    (home / KEY).chmod(0o640)
    with pytest.raises(LedgerUnusable, match=rf"chmod 600 .*{KEY}"):
        Ledger(home).book()


def test_a_ledger_of_another_format_is_named(home: Path) -> None:
    tamper(home, "PRAGMA user_version = 1;")
    with pytest.raises(LedgerUnusable, match="format 1, this software writes 2"):
        Ledger(home).book()


def test_what_is_accepted_again_after_an_interruption_counts_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tamper(home, "DELETE FROM entry WHERE id = 5;")

    def interrupted(seal: Seal, head: Head) -> None:
        written(seal, head)
        raise KeyboardInterrupt

    written = Seal.write
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Seal, "write", interrupted)
        Ledger(home).accept()
    with pytest.raises(LedgerInDoubt):
        Ledger(home).book()
    assert Ledger(home).accept()
    assert steps(home) == 52
