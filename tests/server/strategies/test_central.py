"""Central privacy through Flower's hooks: what one participant can do, what noise there is, and what is remembered."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from astrofed.server.nodes import GridView
from astrofed.server.privacy.accounting import FILE
from astrofed.server.strategies.central import PrivateMean
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import load_plan
from astrofed.shared.privacy.accounting import Event, epsilon
from astrofed.shared.privacy.noise import UnsafeSeededRandomness

NODES = [4, 7, 2, 9]
QUIET = {"noise_multiplier": 1e-6, "delta": 0.01}


class Rounds:
    """A strategy and its model, moved on round by round."""

    def __init__(self, folder: Path, central: Mapping[str, Any], size: int = 2, seed: int = 1, **options: Any) -> None:
        participants = [{"name": f"site {i}", "data": "bundled:x"} for i in range(len(NODES))]
        plan = {"name": "p", "rounds": 8, "task": "t", "model": "m", "participants": participants}
        plan |= {"strategy": {"name": "private-mean", **options}, "central_privacy": dict(central)}
        self.strategy = PrivateMean(load_plan(plan), UnsafeSeededRandomness(seed))
        self.strategy.opened(folder, None)
        self.model: dict[str, Any] = {"w": np.zeros(size, np.float32), "steps": np.array(3)}
        self.number = 0

    def go(self, updates: Mapping[int, Any]) -> list[int]:
        """Do a round in which those nodes reply with a change of w, if they are asked; return who was asked."""
        self.number += 1
        messages = list(
            self.strategy.configure_train(self.number, from_numpy(self.model), ConfigRecord(), GridView(None, NODES))
        )
        asked = [message.metadata.dst_node_id for message in messages]
        replies = []
        for node, update in updates.items():
            arrays = {"w": (self.model["w"] + update).astype(np.float32), "steps": np.array(99)}
            metrics = MetricRecord({"num-examples": 10**6, "loss": 0.1})
            order = Message(content=RecordDict(), dst_node_id=node, message_type="train")
            replies.append(Message(RecordDict({"arrays": from_numpy(arrays), "metrics": metrics}), reply_to=order))
        result, metrics = self.strategy.aggregate_train(self.number, replies)
        assert isinstance(result, ArrayRecord) and metrics is not None and not metrics
        self.model = to_numpy(result)
        return asked


def test_updates_are_clipped_weigh_alike_and_the_denominator_is_fixed(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, QUIET)
    rounds.go({4: [0.5, 0.0], 7: [0.0, 300.0]})  # two of four don't reply: their updates are zero
    assert rounds.model["w"] == pytest.approx([0.5 / 4, 1.0 / 4], abs=1e-5)
    assert rounds.model["steps"] == 3 and rounds.model["w"].dtype == np.float32


def test_a_participant_that_was_not_asked_changes_nothing(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, {**QUIET, "mechanism": "tree", "cohorts": 2})
    assert rounds.go({4: [0.5, 0.0], 7: [0.0, 0.5]}) == [4, 2]
    assert rounds.model["w"] == pytest.approx([0.5 / 2, 0.0], abs=1e-5)


def test_a_round_to_which_nobody_replies_is_noise_alone_and_said_to_the_operator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = Rounds(tmp_path, {"noise_multiplier": 1.5, "delta": 0.01, "clipping_norm": 0.2}, size=20_000)
    rounds.go({})
    assert rounds.model["w"].std() == pytest.approx(1.5 * 0.2 / 4, rel=0.03)
    assert "no usable reply" in caplog.text
    assert rounds.strategy.spent is not None
    assert rounds.strategy.spent.epsilon == epsilon([Event(1.5, 1.0, 1)], 0.01)


def test_sampling_divides_by_the_expected_number(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, {**QUIET, "sampling_rate": 0.5}, seed=5)
    sizes = set()
    for _ in range(8):
        before = rounds.model["w"].copy()
        asked = rounds.go({node: [0.4, 0.0] for node in NODES})
        sizes.add(len(asked))
        assert (rounds.model["w"] - before)[0] == pytest.approx(len(asked) * 0.4 / 2, abs=1e-5)
    assert len(sizes) > 1


def test_a_rounds_charge_is_on_the_disk_before_anybody_is_asked(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, QUIET)
    assert not (tmp_path / FILE).exists()
    list(rounds.strategy.configure_train(1, from_numpy(rounds.model), ConfigRecord(), GridView(None, NODES)))
    assert len((tmp_path / FILE).read_text().splitlines()) == 1


def test_a_tree_is_charged_at_its_first_round(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, {"noise_multiplier": 2.0, "delta": 0.01, "mechanism": "tree", "cohorts": 3})
    charges = []
    for _ in range(7):
        rounds.go({})
        assert rounds.strategy.spent is not None
        charges.append(rounds.strategy.spent.charges)
    assert charges == [1, 1, 1, 2, 2, 2, 3]


def test_the_norm_follows_the_updates_and_is_accounted_with_the_sum(tmp_path: Path) -> None:
    """All updates are a tenth of the first norm: at the median's quantile it shrinks towards them."""
    adaptive = {"noise_multiplier": 0.5, "delta": 0.01, "clipping": "adaptive"}
    rounds = Rounds(tmp_path, adaptive)
    norms = []
    for _ in range(40):
        rounds.go({node: [0.1, 0.0] for node in NODES})
        assert rounds.strategy.spent is not None
        norms.append(rounds.strategy.spent.clipping_norm)
    assert norms[0] == 1.0 and norms[-1] < 0.3
    assert rounds.strategy.spent.epsilon == epsilon([Event(0.5, 1.0, 40)], 0.01)
    loud = Rounds(tmp_path / "other", adaptive, size=20_000, seed=2)
    (tmp_path / "other").mkdir()
    loud.go({})
    assert loud.model["w"].std() * 4 == pytest.approx(1 / (1 / 0.5**2 - 1 / (2 * 0.5) ** 2) ** 0.5, rel=0.03)


def test_norm_and_momentum_go_on_after_a_stop(tmp_path: Path) -> None:
    settings = {**QUIET, "noise_multiplier": 0.5, "clipping": "adaptive"}
    rounds = Rounds(tmp_path, settings, momentum=0.5)
    for _ in range(5):
        rounds.go({node: [0.1, 0.0] for node in NODES})
    state = rounds.strategy.state_dict()
    (tmp_path / "again").mkdir()
    again = Rounds(tmp_path / "again", settings, momentum=0.5)
    again.strategy.load_state_dict(state)
    assert again.strategy.state_dict().keys() == state.keys() == {"norm", "velocity/w"}
    assert all(np.array_equal(value, again.strategy.state_dict()[key]) for key, value in state.items())


def test_momentum_and_learning_rate_act_on_the_noisy_mean(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, QUIET, momentum=0.5, learning_rate=2.0)
    for _ in range(3):
        rounds.go({node: [0.1, 0.0] for node in NODES})
    assert rounds.model["w"][0] == pytest.approx(0.2 * (1 + 1.5 + 1.75), abs=1e-4)
