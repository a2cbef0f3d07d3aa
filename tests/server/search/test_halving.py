"""The search on a table of known losses: budgets, halving, replay, fronts."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrofed.server.search.halving import NothingFound, search
from astrofed.server.search.space import Choices, Space
from astrofed.server.search.trials import Book, Trial, pareto_front, read_trials
from astrofed.shared.plan import Search

SPACE = Space({"model.a": (0, 1, 2, 3, 4), "model.b": (0, 1, 2, 3, 4), "model.c": (0, 1, 2, 3)})
RUNGS = (1, 2, 4)


class Table:
    """Trains nothing: the loss falls with the rounds towards one that the choices say."""

    def __init__(self) -> None:
        self.trained: list[tuple[int, int]] = []

    def parameters(self, choices: Choices) -> int:
        return 10 * (1 + sum(int(value) for value in choices))  # type: ignore[arg-type]

    def latency(self, choices: Choices) -> float | None:
        return None

    def train(self, number: int, choices: Choices, rounds: int) -> float:
        self.trained.append((number, rounds))
        a, b, c = (int(value) for value in choices)  # type: ignore[arg-type]
        return (a - 3) ** 2 + (b - 1) ** 2 + 0.5 * (c - 2) ** 2 + 1.0 / rounds


class Dying(Table):
    """Is killed after some candidates."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives

    def train(self, number: int, choices: Choices, rounds: int) -> float:
        if len(self.trained) == self.lives:
            raise KeyboardInterrupt
        return super().train(number, choices, rounds)


def _settings(**changes: Any) -> Search:
    given: dict[str, Any] = {"space": {key: list(values) for key, values in SPACE.values.items()}}
    return Search.model_validate(
        given | {"candidates": 48, "population": 12, "keep": 0.5, "objectives": ["loss"]} | changes
    )


def _search(folder: Path, trainer: Table, seed: int = 1, **changes: Any) -> Any:
    return search(SPACE, _settings(**changes), RUNGS, seed, trainer, Book(folder), lambda trial: None)


def test_the_genetic_search_finds_better_than_chance_with_the_same_rounds(tmp_path: Path) -> None:
    losses: dict[str, float] = {"nsga2": 0.0, "random": 0.0}
    for seed in range(8):
        for algorithm in losses:
            folder = tmp_path / f"{algorithm}-{seed}"
            folder.mkdir()
            keep = 0.5 if algorithm == "nsga2" else 1.0
            found = _search(folder, Table(), seed, algorithm=algorithm, keep=keep, candidates=100, rounds=80)
            assert found.rounds <= 80
            losses[algorithm] += found.winner.loss
    assert losses["nsga2"] < losses["random"]


@pytest.mark.parametrize("rounds", [11, 32, 60])
def test_the_rounds_are_used_up(tmp_path: Path, rounds: int) -> None:
    found = _search(tmp_path, Table(), candidates=100, rounds=rounds)
    assert rounds - RUNGS[-1] < found.rounds <= rounds


def test_the_first_generation_has_each_value_as_often(tmp_path: Path) -> None:
    trials = _search(tmp_path, Table(), candidates=12, population=12).trials
    for key, values in SPACE.values.items():
        counts = [sum(trial.choices[key] == value for trial in trials) for value in values]
        assert max(counts) - min(counts) <= 1


def test_the_better_part_of_a_generation_goes_on(tmp_path: Path) -> None:
    trainer = Table()
    found = _search(tmp_path, trainer, candidates=12)
    by_rung = [sum(1 for _, rounds in trainer.trained if rounds == step) for step in RUNGS]
    first = len(found.trials)
    assert by_rung == [first, math.ceil(first / 2), math.ceil(math.ceil(first / 2) / 2)]
    last = [trial.loss for trial in found.trials if trial.rung == 2]
    dropped = [trial.loss - 1.0 + 0.25 for trial in found.trials if trial.rung == 0]  # had they been trained to the end
    assert max(last) <= min(dropped)


@pytest.mark.parametrize("rounds", [None, 60])
@pytest.mark.parametrize("lives", [0, 1, 7, 20])
def test_a_killed_search_goes_on_to_the_same_end(tmp_path: Path, lives: int, rounds: int | None) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    straight = _search(whole, Table(), rounds=rounds)
    dying = Dying(lives)
    with pytest.raises(KeyboardInterrupt):
        _search(parts, dying, rounds=rounds)
    rest = Table()
    resumed = _search(parts, rest, rounds=rounds)
    assert resumed == straight
    assert not set(dying.trained) & set(rest.trained), "a candidate was trained twice"


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    _search(tmp_path, Table(), candidates=12)
    path = tmp_path / "trials.jsonl"
    lines = path.read_bytes()
    path.write_bytes(lines[:-9])
    assert len(read_trials(tmp_path)) == lines.count(b"\n") - 1
    assert path.read_bytes().endswith(b"\n")


def test_candidates_that_are_too_large_are_not_trained(tmp_path: Path) -> None:
    found = _search(tmp_path, Table(), max_parameters=60)
    assert found.trials
    assert all(trial.parameters <= 60 for trial in found.trials)
    with pytest.raises(NothingFound, match="max_parameters"):
        _search(tmp_path / "nothing", Table(), max_parameters=1)


def test_random_search_has_every_candidate_once(tmp_path: Path) -> None:
    trainer = Table()
    found = _search(tmp_path, trainer, algorithm="random", candidates=500, keep=1.0)
    assert len(found.trials) == SPACE.size
    assert found.winner.choices == {"model.a": 3, "model.b": 1, "model.c": 2}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=20))
def test_no_trial_beats_one_of_the_front(values: list[tuple[int, int]]) -> None:
    trials = [
        Trial(number=i, choices={}, rung=0, rounds=1, loss=loss, parameters=size, latency=None)
        for i, (loss, size) in enumerate(values)
    ]
    front = pareto_front(trials, ("loss", "parameters"))
    assert front
    for one in front:
        assert not any(t.loss < one.loss and t.parameters <= one.parameters for t in trials)
        assert not any(t.loss <= one.loss and t.parameters < one.parameters for t in trials)
    for other in set(range(len(trials))) - {t.number for t in front}:
        assert any(t.loss <= trials[other].loss and t.parameters <= trials[other].parameters for t in front)
