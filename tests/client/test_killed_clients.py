"""The real client, killed at any moment while it trains privately on real data: no spent epsilon is lost or doubled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_hundred_clients_killed_at_random_moments_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("killing_apps.py")), str(tmp_path), "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 200 and found["told"] > 50
    assert found["at"]["reserved and not settled"] > 20 and found["at"]["settled and not told"] > 0  # in every phase
