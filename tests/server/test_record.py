"""The run record: chained, complete or not there, and what a resumed run may take over."""

import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from astrofed.server.checkpoint import Checkpoint, CheckpointDamaged, save_checkpoint
from astrofed.server.record import (
    LINES,
    NoRun,
    OtherPlan,
    RecordBroken,
    RunExists,
    RunRecord,
    read_plan,
    read_record,
    verify_run,
)
from astrofed.shared.files import torn_files
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.record import Round, Start

PLAN = {
    "name": "trial",
    "rounds": 3,
    "task": "planets",
    "model": "mlp",
    "participants": [{"name": "a", "data": "/data/a"}, {"name": "b", "data": "/data/b"}],
}


@pytest.fixture
def plan() -> Plan:
    return load_plan(PLAN)


def fill(record: RunRecord, rounds: int) -> None:
    record.append(
        Start(previous=record.previous, time="t", versions={}, engine="embedded", parameters=1, enrolled=(), refused=())
    )
    for number in range(rounds):
        name, digest = save_checkpoint(record.folder, number, Checkpoint({}, {}, {"round": number}))
        record.append(
            Round(
                previous=record.previous,
                round=number,
                loss=1.0 / (number + 1),
                seconds=0.1,
                bytes=10,
                checkpoint=name,
                checkpoint_sha256=digest,
            )
        )


def test_what_is_written_is_read(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path / "run", plan)
    fill(record, 3)
    start, rounds = read_record(tmp_path / "run")
    assert start == record.start and rounds == record.rounds
    assert read_plan(tmp_path / "run") == plan
    found = verify_run(tmp_path / "run")
    assert (found.lines, found.rounds, found.checkpoints) == (4, 3, 3)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunExists, match="--resume"):
        RunRecord.create(tmp_path, plan)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_folder_whose_run_completed_no_round_is_free_for_another_plan(tmp_path: Path, plan: Plan) -> None:
    """So that a plan which named data that are not there can be mended and run with the same --out."""
    fill(RunRecord.create(tmp_path, plan), 0)
    (tmp_path / "report.html").write_text("refused")
    (tmp_path / "sites").mkdir()
    mended = load_plan({**PLAN, "rounds": 5})
    record = RunRecord.create(tmp_path, mended)
    assert read_plan(tmp_path) == mended and record.start is None
    fill(record, 1)
    with pytest.raises(RunExists):
        RunRecord.create(tmp_path, mended)


@pytest.mark.parametrize("other", ["search", "central_privacy.jsonl", "note.txt"])
def test_what_a_run_spent_or_found_before_its_first_round_is_kept(tmp_path: Path, plan: Plan, other: str) -> None:
    RunRecord.create(tmp_path, plan)
    (tmp_path / other).write_text("{}")
    with pytest.raises(RunExists):
        RunRecord.create(tmp_path, plan)


def test_a_torn_last_line_is_dropped_on_resuming(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path, plan)
    fill(record, 2)
    whole = (tmp_path / LINES).read_bytes()
    for torn in range(1, 60, 7):
        (tmp_path / LINES).write_bytes(whole + whole.splitlines()[-1][:torn])
        again = RunRecord.resume(tmp_path, plan)
        assert again.rounds == record.rounds and again.previous == record.previous
        assert (tmp_path / LINES).read_bytes() == whole


def test_a_run_without_a_complete_round_begins_anew(tmp_path: Path, plan: Plan) -> None:
    """So that data which could not enrol can be mended before going on."""
    fill(RunRecord.create(tmp_path, plan), 0)
    record = RunRecord.resume(tmp_path, plan)
    assert record.start is None and (tmp_path / LINES).read_bytes() == b""
    fill(record, 1)
    assert verify_run(tmp_path).rounds == 1


def test_resuming_where_nothing_is_begins(tmp_path: Path, plan: Plan) -> None:
    assert RunRecord.resume(tmp_path / "new", plan).rounds == []


def dies(work: Callable[[], object], at: int) -> bool:
    """Do something in a process that is gone at its Nth call that makes a file last or gives it its name."""
    child = os.fork()
    if not child:
        calls = count(1)

        def or_die(call: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any) -> Any:
                if next(calls) == at:
                    os._exit(9)
                return call(*args)

            return called

        os.fsync, os.replace = or_die(os.fsync), or_die(os.replace)
        Path.replace = or_die(Path.replace)  # type: ignore[method-assign]
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("again", [RunRecord.resume, RunRecord.create])
def test_a_run_that_was_killed_while_it_wrote_goes_on(
    tmp_path: Path, plan: Plan, again: Callable[[Path, Plan], RunRecord]
) -> None:
    """The plan is fsynced, renamed, and its folder fsynced: until it has its name nothing was begun."""
    for at in count(1):
        run = tmp_path / str(at)
        if not dies(lambda run=run: fill(RunRecord.resume(run, plan), 2), at):
            break
        if again == RunRecord.create and (run / "plan.toml").is_file() and read_record(run)[1]:
            with pytest.raises(RunExists):
                RunRecord.create(run, plan)
        else:
            record = again(run, plan)
            rounds = [entry.round for entry in record.rounds]
            assert rounds == list(range(len(rounds)))
            assert not torn_files(run) | torn_files(run / "checkpoints")
            if not rounds:
                fill(record, 2)
            assert verify_run(run).rounds == len(record.rounds)
    assert at > 9


@pytest.mark.parametrize("line", [1, 2, 3])
def test_an_edited_line_is_found(tmp_path: Path, plan: Plan, line: int) -> None:
    fill(RunRecord.create(tmp_path, plan), 3)
    lines = (tmp_path / LINES).read_text().splitlines()
    entry = json.loads(lines[line - 1])
    entry["time" if line == 1 else "loss"] = "later" if line == 1 else 0.001
    lines[line - 1] = json.dumps(entry)
    (tmp_path / LINES).write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordBroken, match=f"line {line + 1}"):
        verify_run(tmp_path)


def test_missing_and_swapped_lines_are_found(tmp_path: Path, plan: Plan) -> None:
    fill(RunRecord.create(tmp_path, plan), 3)
    lines = (tmp_path / LINES).read_text().splitlines()
    for changed in ([lines[0], *lines[2:]], [lines[0], lines[2], lines[1], lines[3]], lines[1:]):
        (tmp_path / LINES).write_text("\n".join(changed) + "\n")
        with pytest.raises(RecordBroken):
            read_record(tmp_path)


def test_an_edited_plan_is_found(tmp_path: Path, plan: Plan) -> None:
    fill(RunRecord.create(tmp_path, plan), 1)
    path = tmp_path / "plan.toml"
    path.write_text(path.read_text().replace("rounds = 3", "rounds = 30"))
    with pytest.raises(RecordBroken, match="line 1"):
        verify_run(tmp_path)


def test_a_changed_or_missing_checkpoint_is_found(tmp_path: Path, plan: Plan) -> None:
    fill(RunRecord.create(tmp_path, plan), 2)
    last = tmp_path / "checkpoints" / "round-00001.safetensors"
    data = last.read_bytes()
    last.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointDamaged, match="SHA-256"):
        verify_run(tmp_path)
    last.unlink()
    with pytest.raises(CheckpointDamaged, match="can't be read"):
        verify_run(tmp_path)


def test_a_last_round_without_its_checkpoint_is_done_again(tmp_path: Path, plan: Plan) -> None:
    """A power cut can take what was not flushed yet."""
    record = RunRecord.create(tmp_path, plan)
    fill(record, 3)
    (tmp_path / "checkpoints" / "round-00002.safetensors").write_bytes(b"")
    again = RunRecord.resume(tmp_path, plan)
    assert again.rounds == record.rounds[:2]
    assert verify_run(tmp_path).rounds == 2


def test_another_plan_is_refused_by_its_keys(tmp_path: Path, plan: Plan) -> None:
    fill(RunRecord.create(tmp_path, plan), 1)
    with pytest.raises(OtherPlan, match="rounds, seed"):
        RunRecord.resume(tmp_path, load_plan({**PLAN, "rounds": 4, "seed": 5}))
    elsewhere = load_plan({**PLAN, "engine": {"workers": 2}})
    assert RunRecord.resume(tmp_path, elsewhere).rounds  # the engine may change


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match=r"plan\.toml"):
        read_record(tmp_path)
