"""A federation whose sites share their noise: it learns as with the noise of one, and goes on without nobody."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.noise_keys import noise_key
from astrofed.server.app import Silent
from astrofed.server.enrolment import NotEnrolled
from astrofed.server.federation import Interrupted, NobodyAccepted
from astrofed.shared.plan import PlanError, load_plan
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.simulate import simulate

Shared = Callable[..., dict[str, Any]]


@pytest.fixture
def shared(small: dict[str, Any]) -> Shared:
    """A plan of the small federation whose sites share noise; sections can be changed."""

    def make(**changes: Any) -> dict[str, Any]:
        training = {"batch_size": 64, "max_steps": 1, "optimizer": "sgd", "learning_rate": 0.2}
        privacy = {"unit": "planet", "noise_multiplier": 1.0, "delta": 1e-5, "shared_noise": {"colluding": 0}}
        strategy = {"name": "robust", "rule": "mean", "f": 0}
        given = {"training": training, "privacy": privacy, "strategy": strategy}
        return {**small, **given, **changes}

    return make


def turns(home: Path) -> list[str]:
    return [row.note for row in Ledger(home).book().reserved.values()]


def test_it_learns_with_all_sites_and_each_round_has_a_turn_of_its_own(tmp_path: Path, shared: Shared) -> None:
    result = simulate(shared(rounds=8), out=tmp_path / "run")
    assert all(entry.skipped is None for entry in result.rounds)
    assert result.rounds[-1].loss is not None and result.rounds[0].loss is not None
    assert result.rounds[-1].loss < result.rounds[0].loss  # a mean that lacks a pair's noise would be 16 times off
    homes = sorted((tmp_path / "run" / "sites").iterdir())
    assert len(homes) == len(result.privacy) > 1
    assert len(set(turns(homes[0]))) == 8 and all(turns(home) == turns(homes[0]) for home in homes)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "neither keys nor noise of any training participant" in report


def test_a_site_that_stays_away_undoes_the_round_and_not_the_model(tmp_path: Path, shared: Shared) -> None:
    plan = shared()
    plan["participants"] = [dict(each) for each in plan["participants"]]
    plan["participants"][0]["attack"] = {"name": "drop-out"}
    with pytest.raises(NobodyAccepted, match="noise that all share is gone only from the mean of all"):
        simulate(plan, out=tmp_path / "run")


def test_a_stopped_run_goes_on_under_other_turns(tmp_path: Path, shared: Shared) -> None:
    class Stops(Silent):
        def __init__(self) -> None:
            self._asked = count()

        def should_stop(self) -> bool:
            return next(self._asked) == 2

    plan, run = shared(rounds=4), tmp_path / "run"
    with pytest.raises(Interrupted):
        simulate(plan, out=run, observer=Stops())
    result = simulate(plan, out=run, resume=True)
    assert [entry.round for entry in result.rounds] == list(range(5))
    assert len(set(turns(next((run / "sites").iterdir())))) == 4


def test_sites_with_other_keys_of_each_other_are_named_before_anything_is_spent(
    tmp_path: Path, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plan = tmp_path / "run", shared()
    first, second = (each["name"] for each in plan["participants"][:2])
    calls = count()

    def key(home: Path) -> Any:  # the second site is shown another key of the first than that has
        return noise_key(tmp_path / "other" if home.name == first and next(calls) == 0 else home)

    monkeypatch.setattr("astrofed.simulations.sites.noise_key", key)
    with pytest.raises(NotEnrolled, match=f"{first} and {second} can't share noise: .*noise-key"):
        simulate(plan, out=run)
    assert turns(run / "sites" / second) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"epsilon": 1.0}}, "give noise_multiplier in place of epsilon"),
        ({"privacy": {"noise_multiplier": 1.0, "clipping": "adaptive"}}, "no adaptive clipping"),
        ({"privacy": {"noise_multiplier": 1.0, "shared_noise": {"colluding": 7}}}, "would leave a participant alone"),
        ({"training": {"optimizer": "sgd"}}, r"set training\.max_steps = 1"),
        ({"training": {"max_steps": 1, "optimizer": "adam"}}, r"set training\.optimizer = 'sgd'"),
        ({"strategy": {"name": "FedAvg"}}, r"set strategy\.name = 'robust', rule = 'mean'"),
        ({"strategy": {"name": "robust", "rule": "median", "f": 1}}, "tell nothing to a robust rule"),
        ({"strategy": {"name": "robust", "rule": "mean", "f": 0, "max_norm": 1.0}}, r"strategy\.max_norm: "),
        ({"strategy": {"name": "robust", "rule": "mean", "f": 0, "buffer": 1}}, r"strategy\.buffer: "),
        ({"strategy": {"name": "robust", "rule": "mean", "f": 0, "weights": "examples"}}, r"strategy\.weights: "),
        ({"strategy": {"name": "robust", "rule": "mean", "f": 0, "membership": "open"}}, r"strategy\.membership: "),
    ],
)
def test_what_would_not_cancel_is_refused(shared: Shared, changes: dict[str, Any], words: str) -> None:
    if "privacy" in changes:
        changes = {"privacy": {"unit": "planet", "delta": 1e-5, "shared_noise": {"colluding": 0}, **changes["privacy"]}}
    with pytest.raises(PlanError, match=words):
        check_plan(load_plan(shared(**changes)))


@pytest.mark.parametrize(
    ("mode", "section"),
    [
        ("customer", {}),
        (
            "nas",
            {"search": {"space": {"model.hidden": [[8], [16]]}, "candidates": 2, "population": 2, "rungs": [1]}},
        ),
    ],
)
def test_other_modes_share_noise_too(tmp_path: Path, shared: Shared, mode: str, section: dict[str, Any]) -> None:
    result = simulate(shared(mode=mode, rounds=2, **section), out=tmp_path / "run")
    assert all(entry.skipped is None for entry in result.rounds)
    homes = sorted((tmp_path / "run" / "sites").iterdir())
    assert len(set(turns(homes[0]))) == (4 if mode == "nas" else 2)  # each candidate's rounds have turns too
    assert all(turns(home) == turns(homes[0]) for home in homes)
