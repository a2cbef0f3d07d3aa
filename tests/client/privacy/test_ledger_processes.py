"""The ledger between processes: several spend at once, or are killed at any moment; nothing is lost or spent twice."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from astrofed.client.privacy.ledger import Ledger
from astrofed.shared.privacy.accounting import Event, epsilon

HERE = Path(__file__).parent


def run(*arguments: str | Path) -> Any:
    command = [sys.executable, str(HERE / "killing_clients.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_processes_that_spend_at_once_cannot_together_spend_more_than_there_is(tmp_path: Path) -> None:
    fits = 5
    budget = epsilon([Event(1.0, 0.1, 20 * fits)], 1e-5)
    command = [sys.executable, str(HERE / "spending_client.py"), str(tmp_path), str(budget)]
    clients = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for client in clients:
        assert client.stdout is not None and client.stdout.readline() == "ready\n"
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
    got = []
    for client in clients:
        out, errors = client.communicate(timeout=120)
        assert client.returncode == 0, errors
        got.append(int(out))
    assert sum(got) == fits
    assert epsilon(Ledger(tmp_path).events("f" * 64), 1e-5) <= budget


@pytest.mark.slow
def test_clients_killed_at_random_moments_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    done = run("moments", tmp_path, "220")
    assert done["kills"] == 220
    assert {"reserved and not told", "settled and not told", "settles"} <= set(done["at"])  # killed in every phase


@pytest.mark.slow
def test_a_client_killed_before_any_statement_of_the_ledger_loses_nothing(tmp_path: Path) -> None:
    memory = Path("/dev/shm")  # no power is cut here, so nothing has to reach a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        done = run("statements", folder)
    assert done["kills"] > 300
    assert {"nothing", "reserved and not told", "settled and not told", "settles"} <= set(done["at"])
