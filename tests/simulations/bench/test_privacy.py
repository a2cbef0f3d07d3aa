"""The bench of private training compares like with like; its times are not tested."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from astrofed.simulations.bench.privacy import HISTORIES, epsilon_row, step_rows
from astrofed.simulations.bench.privacy_memory import peaks_apart
from astrofed.simulations.bench.privacy_peers import OURS, PLAIN
from astrofed.simulations.bench.privacy_result import PrivacyResult
from astrofed.simulations.bench.privacy_work import Work, works
from astrofed.simulations.bench.result import this_machine


class Folding(nn.Module):
    """Folds its rows into the batch, where Opacus takes each for a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x.reshape(-1, 3, 1)).reshape(len(x), -1, 4).sum(dim=1)
        return out


@pytest.fixture
def small() -> Work:
    inputs, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 2])
    return Work("small", lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), (inputs, labels),
                nn.CrossEntropyLoss(), 3.0)  # fmt: skip


def test_all_ways_take_the_same_step(small: Work) -> None:
    rows = {row.runtime: row for row in step_rows(small, turns=1, turn_s=0.001)}
    assert list(rows) == [PLAIN, OURS, "Opacus hooks", "Opacus functorch", "Opacus ew", "Opacus ghost"]
    assert all(row.right and row.seconds for name, row in rows.items() if name != PLAIN)
    assert rows[PLAIN].ratio == 1 and rows[PLAIN].memory in (1, None)
    targets = [target.target for target in rows[OURS].targets]
    assert "at most 3 times plain SGD" in targets and "fastest right mode" in targets[1]
    result = PrivacyResult(this_machine(), tuple(rows.values()), ())
    assert json.loads(json.dumps(result.to_dict()))["rows"][1]["right"] is True


def test_a_mode_that_is_wrong_or_can_not_is_no_peer(small: Work) -> None:
    inputs = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(1))
    rows = step_rows(replace(small, make=Folding, batch=(inputs, small.batch[1])), turns=1, turn_s=0.001)
    notes = {row.runtime: row.note for row in rows}
    assert notes[OURS] == "" and notes["Opacus hooks"] == "its units' gradients are wrong"
    ours = next(row for row in rows if row.runtime == OURS)
    assert ours.right and not any("hooks" in target.target for target in ours.targets)


def test_memory_is_measured_in_a_process_of_its_own_for_the_ways_that_are_asked_for() -> None:
    found = peaks_apart("attention block", [PLAIN, OURS])
    assert list(found) == [PLAIN, OURS]
    assert all(peak is None or peak > 10**5 for peak in found.values())


def test_every_network_has_units_targets_and_a_finite_loss() -> None:
    for work in works():
        assert all(len(tensor) == len(work.batch[0]) for tensor in work.batch)
        with torch.no_grad():
            assert math.isfinite(float(work.loss(work.make(), work.batch)))


def test_epsilons_are_those_of_the_other_accountants() -> None:
    row = epsilon_row("all units", HISTORIES["noise 4, all units, 30 steps"])
    against_opacus, against_pld = row.targets
    assert (
        against_opacus.met is True and against_pld.met in (True, None) and row.epsilon == min(row.renyi, row.numerical)
    )
