"""The executor's process dies, hangs, hoards or leaks: the node gets an error in words, and a new process."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.common.serde import message_to_proto

from astrofed.client.service.executor import Executor, Stopped, TaskFailed
from astrofed.client.service.home import Limits
from astrofed.client.service.messages import envelope
from astrofed.client.service.sealed import Sealed

SCRIPTED = (sys.executable, str(Path(__file__).parent / "scripted_executor.py"))


@pytest.fixture
def question() -> Sealed:
    from flwr.app.message import make_message
    from flwr.app.metadata import Metadata

    outside = Metadata(1, "a" * 64, 1, 2, "", "", 1.8e9, 1e6, "train")
    outside.delivered_at = ""
    return Sealed(message_to_proto(make_message(outside, error=None, content=_empty())).SerializeToString(), b"")


def _empty() -> Any:
    from flwr.app import RecordDict

    return RecordDict()


class Scripted:
    def __init__(self, home: Path) -> None:
        (home / "logs").mkdir()
        self.home = home
        self.said: list[str] = []
        self.executor: Executor | None = None

    def make(self, script: str, **limits: float) -> Executor:
        self.write(script)
        self.executor = Executor(self.home, Limits.model_validate(limits), self.said.append, SCRIPTED)
        return self.executor

    def write(self, script: str) -> None:
        (self.home / "script").write_text(script)

    @property
    def starts(self) -> int:
        return len((self.home / "starts").read_text())


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    made = Scripted(tmp_path)
    yield made
    if made.executor is not None:
        made.executor.kill()


def never() -> bool:
    return False


def test_one_process_answers_question_after_question(scripted: Scripted, question: Sealed) -> None:
    executor = scripted.make("answer")
    for _ in range(3):
        assert envelope(executor.answer(question, 2, never)).reply_to == "a" * 64
    assert scripted.starts == 1


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("die", r"killed while it worked \(SIGKILL\)"),
        ("exit", r"ended while it worked \(status 3\)"),
        ("hang", r"longer than the 0\.6 s"),
        ("stop listening", r"longer than the 0\.6 s"),
        ("garbage", "something that is no reply"),
    ],
)
def test_a_process_that_fails_is_replaced(scripted: Scripted, question: Sealed, script: str, words: str) -> None:
    executor = scripted.make(script, task_s=0.6)
    with pytest.raises(TaskFailed, match=words):
        executor.answer(question, 2, never)
    assert executor.pid is None
    assert len(scripted.said) == 1
    scripted.write("answer")
    executor.answer(question, 2, never)
    assert scripted.starts == 2


def test_a_process_that_takes_too_much_memory_is_ended(scripted: Scripted, question: Sealed) -> None:
    executor = scripted.make("hoard", memory_gb=0.4)
    with pytest.raises(TaskFailed, match=r"more than the 0\.4 GB"):
        executor.answer(question, 2, never)


def test_a_process_that_leaks_is_replaced_between_questions(scripted: Scripted, question: Sealed) -> None:
    executor = scripted.make("answer", memory_gb=50)
    executor.answer(question, 2, never)
    held = executor.memory() / 1e9
    executor.kill()
    executor = scripted.make("leak", memory_gb=(held + 0.14) / 0.8)
    for _ in range(2):
        executor.answer(question, 2, never)
    assert len(scripted.said) == 2 and all("is replaced" in line for line in scripted.said)


def test_an_error_in_words_does_not_end_the_process(scripted: Scripted, question: Sealed) -> None:
    executor = scripted.make("complain")
    for _ in range(2):
        with pytest.raises(TaskFailed, match="ValueError; its log says where"):
            executor.answer(question, 2, never)
    assert scripted.starts == 1


def test_a_process_that_can_not_start_says_why(scripted: Scripted, question: Sealed) -> None:
    executor = scripted.make("can't start")
    with pytest.raises(TaskFailed, match="no plug-in"):
        executor.answer(question, 2, never)


def test_stopping_ends_the_work(scripted: Scripted, question: Sealed) -> None:
    executor = scripted.make("hang")
    asked = scripted.home / "asked"
    with pytest.raises(Stopped):
        executor.answer(question, 2, asked.exists)
    assert executor.pid is None


def test_cores_are_limited(scripted: Scripted, question: Sealed) -> None:
    import os

    executor = scripted.make("answer", threads=1)
    executor.answer(question, 2, never)
    assert executor.pid is not None
    assert len(os.sched_getaffinity(executor.pid)) == 1
