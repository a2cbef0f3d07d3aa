"""Noise that sites share: what is accounted for is what hides a site, and the sum of all carries no more than one's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.mistakes import TurnUsed
from astrofed.client.privacy.noise_keys import NotPeers, Peers, noise_key, public_digits
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.refusals import NoTurn, NotWithPrivacy
from astrofed.client.privacy.shared_noise import STRENGTH, own_share, shared_noise
from astrofed.client.privacy.units import Rows
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.shared.models.mlp import MLP
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.privacy.noise import UnsafeSeededRandomness, grid_step

NAMES = ("a", "b", "c")
TURN, OTHER = "0" * 32, "1" * 32
COUNT, DEVIATION = 40_000, 3.0


def plan(colluding: int = 0, names: tuple[str, ...] = NAMES) -> Plan:
    privacy = {"unit": "row", "noise_multiplier": 1.0, "delta": 1e-3, "shared_noise": {"colluding": colluding}}
    strategy = {"name": "robust", "rule": "mean", "f": 0}
    training = {"batch_size": 20, "max_steps": 1, "optimizer": "sgd", "learning_rate": 0.5}
    sites = [{"name": name, "data": "bundled:x"} for name in names]
    whole: dict[str, Any] = {"name": "p", "rounds": 9, "task": "t", "model": "m"}
    return load_plan({**whole, "privacy": privacy, "strategy": strategy, "training": training, "participants": sites})


@pytest.fixture
def peers(tmp_path: Path) -> dict[str, Peers]:
    keys = {name: public_digits(noise_key(tmp_path / name)) for name in NAMES}
    return {name: Peers(tmp_path / name, {n: k for n, k in keys.items() if n != name}) for name in NAMES}


def noise_of(name: str, peers: dict[str, Peers], turn: str = TURN, colluding: int = 0) -> np.ndarray[Any, Any]:
    values = torch.zeros(COUNT, dtype=torch.float64)
    own = UnsafeSeededRandomness(NAMES.index(name))
    shared_noise(plan(colluding), name, peers[name], turn).hide(values, DEVIATION, own)
    return values.numpy()


@given(sites=st.integers(2, 40), colluding=st.integers(0, 38))
def test_what_is_accounted_for_is_what_hides_a_site(sites: int, colluding: int) -> None:
    """All messages together, less what colluding sites know, are one Gaussian vector: its covariance says all."""
    honest = sites - colluding
    if honest < 2:
        return
    share = own_share(honest)
    covariance = share**2 * np.eye(honest)
    for one in range(honest):  # what each two honest sites add and take away
        for other in range(one):
            pair = np.zeros(honest)
            pair[one], pair[other] = 1.0, -1.0
            covariance += (STRENGTH * share) ** 2 * np.outer(pair, pair)
    assert np.linalg.inv(covariance)[0, 0] == pytest.approx(1.0, rel=1e-9)
    assert 1 / np.sqrt(honest) < share < 1.005 / np.sqrt(honest)


def test_what_pairs_share_is_in_each_message_and_gone_from_their_sum(peers: dict[str, Peers]) -> None:
    messages = [noise_of(name, peers) for name in NAMES]
    own = own_share(3) * DEVIATION
    for message in messages:
        assert message.std() == pytest.approx(own * np.sqrt(1 + 2 * STRENGTH**2), rel=0.02)
    alone = sum(own * UnsafeSeededRandomness(seed).normal(2**14) for seed in range(3))  # the first block's own noise
    assert np.abs(sum(messages)[: 2**14] - alone).max() <= 1.5 * grid_step(own)
    assert sum(messages).std() == pytest.approx(DEVIATION, rel=0.02)  # as one holder of all rows would add
    two = messages[0] + messages[1]
    assert two.std() > 10 * DEVIATION  # a mean that lacks a site is noise


def test_another_turn_is_other_noise_and_a_site_alone_keeps_its_share(peers: dict[str, Peers]) -> None:
    one, again, other = (noise_of("a", peers, turn) for turn in (TURN, TURN, OTHER))
    assert np.array_equal(one, again)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    assert sum(noise_of(name, peers, colluding=1) for name in NAMES).std() == pytest.approx(
        DEVIATION * np.sqrt(3 / 2), rel=0.02
    )


def test_values_are_hidden_in_their_own_type_on_the_grid(peers: dict[str, Peers]) -> None:
    values = torch.linspace(-1, 1, 20_001)
    total = torch.zeros(20_001, dtype=torch.float64)
    for name in NAMES:
        mine = values.clone()
        shared_noise(plan(), name, peers[name], TURN).hide(mine, DEVIATION, UnsafeSeededRandomness(5))
        steps = mine.double() / grid_step(own_share(3) * DEVIATION)
        assert mine.dtype == torch.float32 and torch.equal(steps, steps.round())
        total += mine
    own = 3 * own_share(3) * DEVIATION * torch.from_numpy(UnsafeSeededRandomness(5).normal(2**14))
    assert float((total[: 2**14] - own - 3 * values[: 2**14]).abs().max()) < 0.01


def protection(peers: Peers | None, home: Path) -> tuple[Protection, Rows]:
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    rows = Rows((inputs, inputs[:, :2]), lambda model, batch: (model(batch[0]) - batch[1]).square().mean())
    return Protection(plan(), Site("a", home, home=home, peers=peers), "f" * 64, "row", 20), rows


def test_a_turn_hides_one_message(peers: dict[str, Peers], tmp_path: Path) -> None:
    """Two messages under the same pairs' noise would show their difference, hidden by the site's own share alone."""
    protected, rows = protection(peers["a"], tmp_path / "a")
    protected.train(MLP(3, 2, hidden=(4,)), rows, TrainInstruction(1, seed=1, noise_turn=TURN))
    again, _ = protection(peers["a"], tmp_path / "a")  # another process
    for number in (1, 2):
        with pytest.raises(TurnUsed, match=TURN):
            again.train(MLP(3, 2, hidden=(4,)), rows, TrainInstruction(number, seed=1, noise_turn=TURN))
    assert Ledger(tmp_path / "a").book().last == 2  # nothing was reserved for those
    again.train(MLP(3, 2, hidden=(4,)), rows, TrainInstruction(1, seed=1, noise_turn=OTHER))


@pytest.mark.parametrize("turn", ["", "2", "g" * 32, "0" * 33])
def test_a_request_without_a_turn_is_refused_before_anything_is_spent(
    peers: dict[str, Peers], tmp_path: Path, turn: str
) -> None:
    protected, rows = protection(peers["a"], tmp_path / "a")
    with pytest.raises(NoTurn):
        protected.train(MLP(3, 2, hidden=(4,)), rows, TrainInstruction(1, seed=1, noise_turn=turn))
    assert Ledger(tmp_path / "a").book().last == 0


@pytest.mark.parametrize(
    ("key", "message"),
    [(None, "no noise key of 'b' is known"), ("own", "is this site's own"), ("0" * 64, "is no X25519 key")],
)
def test_a_peer_whose_key_is_none_is_refused_before_anything_is_spent(
    peers: dict[str, Peers], tmp_path: Path, key: str | None, message: str
) -> None:
    known = {"c": peers["a"].public["c"]}
    if key is not None:
        known["b"] = public_digits(peers["a"].own) if key == "own" else key
    protected, rows = protection(Peers(tmp_path / "a", known), tmp_path / "a")
    with pytest.raises(NotPeers, match=message):
        protected.train(MLP(3, 2, hidden=(4,)), rows, TrainInstruction(1, seed=1, noise_turn=TURN))
    assert Ledger(tmp_path / "a").book().last == 0


def test_a_model_of_which_a_part_is_frozen_here_is_refused(peers: dict[str, Peers], tmp_path: Path) -> None:
    protected, rows = protection(peers["a"], tmp_path / "a")
    model = MLP(3, 2, hidden=(4,))
    next(model.parameters()).requires_grad_(False)
    with pytest.raises(NotWithPrivacy, match="cancels only where all train all parameters"):
        protected.train(model, rows, TrainInstruction(1, seed=1, noise_turn=TURN))
    assert Ledger(tmp_path / "a").book().last == 0
