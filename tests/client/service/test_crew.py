"""Several devices of a site, as processes on the CPU: the same training as one process's, and words when one fails."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from astrofed.client.service import messages
from astrofed.client.service.executor import Executor, TaskFailed, _group
from astrofed.client.service.home import BadSiteFile, Home, site_toml
from astrofed.client.service.sealed import Sealed
from astrofed.shared import packing
from astrofed.shared.arrays import to_numpy
from astrofed.simulations.bundled import resolve_bundled

IMPATIENT = """
import sys
from astrofed.client.service import crew, executor_process
crew.STEP_S, crew.GRACE_S = 3.0, 1.0
executor_process.main()
"""
SLOW = """
import os, time
from astrofed.client.tasks import planets
from astrofed.client.tasks.planets import PlanetSurrogate
whole = planets.train_locally

def slowly(model, batches, *rest, **named):
    def source(generator):
        for batch in batches(generator):
            open(os.path.join(os.environ["ASTROFED_TEST"], str(os.getpid())), "a").write("x")
            time.sleep(float(open(os.path.join(os.environ["ASTROFED_TEST"], "pause")).read()))
            yield batch
    return whole(model, source, *rest, **named)

planets.train_locally = slowly

class Plugin(PlanetSurrogate):
    "Nothing of its own: a plug-in file has to define one."
"""


def never() -> bool:
    return False


@pytest.fixture
def home(tmp_path: Path) -> Callable[..., Path]:
    """Make a site's home whose policy lets the plan in, with lines of its own in [limits]."""

    def make(limits: str, plugins: tuple[str, ...] = ()) -> Path:
        folder = tmp_path / f"home{len(list(tmp_path.iterdir()))}"
        (folder / "logs").mkdir(parents=True)
        text = site_toml("k2", "somebody", {"planets": str(resolve_bundled("planets/k2"))})
        (folder / "site.toml").write_text(f"{text.split('[limits]')[0]}[limits]\nthreads = 2\n{limits}\n")
        names = json.dumps(["astrofed", *plugins])
        (folder / "policy.toml").write_text(
            f'modes = ["federated"]\ntasks = ["planets"]\nmodels = ["mlp"]\nplugins = {names}\n'
            '[data]\nprivacy = "optional"\nepsilon = 20.0\ndelta = 1e-4\nmetrics = ["*"]\ndigits = 17\nmin_units = 1\n'
        )
        return folder

    return make


@pytest.fixture
def start() -> Iterator[Callable[..., Executor]]:
    """Return the executor of a home; all are ended afterwards."""
    made: list[Executor] = []

    def make(folder: Path, *program: str) -> Executor:
        said: list[str] = []
        found = Executor(folder, Home.open(folder).file.limits, said.append, *([program] if program else []))
        made.append(found)
        return found

    yield make
    for each in made:
        each.kill()


@pytest.fixture
def ask(plan: str, model: ArrayRecord) -> Callable[..., Sealed]:
    """Return a question for the plan, whose keys can be changed."""

    def make(kind: str = "train", **changes: Any) -> Sealed:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
        text = json.dumps(json.loads(plan) | changes)
        content = RecordDict({"config": ConfigRecord({"plan": text})})
        if kind != "query.enrol":
            content["config"] = ConfigRecord({"plan": text, "server-round": 1})
            content["arrays"] = model
        return messages.seal_reply(Message(packing.pack(content), 2, kind))

    return make


def content(reply: Sealed) -> RecordDict:
    found = messages.content_of(reply)
    return packing.unpack(found) if packing.is_packed(found) else found


def arrays(reply: Sealed) -> dict[str, Any]:
    return to_numpy(content(reply).array_records["arrays"])


def metrics(reply: Sealed) -> dict[str, Any]:
    return dict(content(reply).metric_records["metrics"])


NODE = '[[limits.nodes]]\nlaunch = ["env", "GLOO_SOCKET_IFNAME=lo"]\ndevices = ["cpu"]'


@pytest.mark.parametrize("limits", ['devices = ["cpu", "cpu"]', f'devices = ["cpu"]\n{NODE}'])
def test_two_processes_take_the_steps_of_one(
    home: Any, start: Any, ask: Any, limits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    training = {"batch_size": 32, "learning_rate": 0.003, "optimizer": "adam", "epochs": 2, "max_steps": 5}
    alone, two = start(home("")), start(home(limits))
    two.start()
    for question in (
        ask(training=training),
        ask(training=training | {"accumulate": 2, "gradient_clip": 0.1}),
        ask(training=training | {"batch_size": 1, "max_steps": 3}),  # too small to share: one process has nothing
    ):
        one, both = alone.answer(question, 2, never), two.answer(question, 2, never)
        for name, values in arrays(one).items():
            np.testing.assert_allclose(arrays(both)[name], values, rtol=0, atol=1e-6)
        assert metrics(both) == pytest.approx(metrics(one), rel=1e-5)
    assert len(_group(two.pid)) == 2 and two.memory() > alone.memory()


def test_what_can_not_be_shared_is_answered_by_the_first_alone(home: Any, start: Any, ask: Any) -> None:
    folder = home('devices = ["cpu", "cpu"]')
    two = start(folder)
    enrolled = two.answer(ask("query.enrol"), 2, never)
    assert content(enrolled).config_records["site"]["name"] == "k2"
    private = {"epsilon": 8.0, "delta": 1e-5, "unit": "planet"}
    for _ in range(2):
        assert "epsilon" in metrics(two.answer(ask(privacy=private), 2, never))
    sophia = {"optimizer": "sophia", "batch_size": 32, "learning_rate": 1e-4, "max_steps": 2}
    assert metrics(two.answer(ask(training=sophia), 2, never))["loss"] > 0
    log = (folder / "logs" / "executor.log").read_text()
    assert log.count("plans with [privacy] train on cpu alone") == 1 and log.count("one device trains alone") == 1
    assert len(list(folder.glob("privacy-ledger*"))) or (folder / "ledger.sqlite").exists()


@pytest.mark.parametrize(
    ("blow", "words"),
    [(signal.SIGKILL, r"process on cpu was killed \(SIGKILL\)"), (signal.SIGSTOP, "process on cpu does not answer")],
)
def test_a_follower_that_dies_or_hangs_is_named_and_replaced(
    home: Any, start: Any, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blow: signal.Signals, words: str
) -> None:
    plugin, marks = tmp_path / "slow.py", tmp_path / "marks"
    plugin.write_text(SLOW)
    marks.mkdir()
    (marks / "pause").write_text("0.3")
    monkeypatch.setenv("ASTROFED_TEST", str(marks))
    two = start(home('devices = ["cpu", "cpu"]', (str(plugin),)), sys.executable, "-c", IMPATIENT)
    question = ask(training={"batch_size": 32, "optimizer": "sgd", "learning_rate": 0.01, "epochs": 50})

    def strike() -> None:
        while len(list(marks.iterdir())) < 3:
            time.sleep(0.02)
        (follower,) = (each for each in _group(two.pid) if each != two.pid)
        os.kill(follower, blow)

    striker = threading.Thread(target=strike)
    striker.start()
    begun = time.monotonic()
    with pytest.raises(TaskFailed, match=words):
        two.answer(question, 2, never)
    striker.join()
    assert time.monotonic() - begun < 60
    (marks / "pause").write_text("0")
    assert arrays(two.answer(ask(training={"batch_size": 32, "max_steps": 2}), 2, never))


def test_a_follower_that_fails_is_named(home: Any, start: Any, ask: Any, tmp_path: Path) -> None:
    plugin = tmp_path / "lame.py"
    plugin.write_text(
        "import sys\nfrom astrofed.client.tasks.planets import PlanetSurrogate, TooFewPlanets\n"
        "def train(*_):\n    raise TooFewPlanets('this disk has no planets')\n"
        "if 'follower' in sys.argv[0]:\n    PlanetSurrogate.train = train\n"
        "class Plugin(PlanetSurrogate):\n    pass\n"
    )
    two = start(home('devices = ["cpu", "cpu"]', (str(plugin),)), sys.executable, "-c", IMPATIENT)
    with pytest.raises(TaskFailed, match="the process on cpu failed: the site could not do it"):
        two.answer(ask(), 2, never)


def test_a_device_that_is_not_there_stops_the_start(home: Any, start: Any, ask: Any) -> None:
    with pytest.raises(TaskFailed, match=r"limits\.devices: 'cuda:9'"):
        start(home('devices = ["cuda:9"]')).answer(ask(), 2, never)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ('devices = ["gpu"]', r"limits\.devices.*'gpu' is no device; give \"cpu\""),
        ('devices = ["cpu", "cuda:0"]', "all GPUs, or all"),
        ('devices = ["cuda:1", "cuda:1"]', "'cuda:1' is there twice"),
        ("devices = []", r"limits\.devices"),
    ],
)
def test_devices_that_do_not_go_together_are_refused(home: Any, limits: str, words: str) -> None:
    with pytest.raises(BadSiteFile, match=words):
        Home.open(home(limits))
