"""The evolution on functions: who takes over from whom, migration, replay, failures, values within their bounds."""

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrofed.server.evolution.changes import drawn, explored, place_of, value_at
from astrofed.server.evolution.lives import Book, Life, Place, best
from astrofed.server.evolution.population import NobodyLives, evolve
from astrofed.server.record import RecordBroken
from astrofed.shared.plan_evolution import Bounds, Evolution

KEYS = {"training.learning_rate": {"low": 1e-4, "high": 1.0}, "training.batch_size": {"low": 2, "high": 64}}


class Learning:
    """A member's weight is its distance to the goal, which its learning rate shrinks the better the nearer to 0.01."""

    def __init__(self, fails: set[Place] | None = None, lives: int = 10**6) -> None:
        self.distance: dict[Place, float] = {}
        self.fails, self.lives, self.trained = fails or set(), lives, list[Place]()

    def train(self, place: Place, values: Mapping[str, int | float], parent: Place | None) -> float | None:
        if len(self.trained) == self.lives:
            raise KeyboardInterrupt
        self.trained.append(place)
        before = 1.0 if parent is None else self.distance[parent]
        bounds = Bounds.model_validate(KEYS["training.learning_rate"])
        off = abs(place_of(bounds, values["training.learning_rate"]) - 0.5)
        self.distance[place] = before * (0.2 + off)
        return None if place in self.fails else self.distance[place]


def _settings(**changes: Any) -> Evolution:
    return Evolution.model_validate({"keys": KEYS, "population": 4, "generations": 6, "migrate_every": 2} | changes)


def _evolve(trainer: Learning, folder: Path | None = None, islands: int = 3, seed: int = 5, **changes: Any) -> Any:
    book = Book(folder)
    found = evolve(_settings(**changes), islands, seed, trainer, book, lambda life: None)
    return found, book.lives


def _at(lives: list[Life], generation: int, island: int) -> list[Life]:
    return [life for life in lives if (life.place.generation, life.place.island) == (generation, island)]


def test_weights_are_passed_on_and_the_worst_take_over_from_the_best() -> None:
    found, lives = _evolve(Learning(), migrate_every=100)
    assert len(lives) == 3 * 4 * 6
    for island in (1, 2, 3):
        for generation in range(2, 7):
            before, now = _at(lives, generation - 1, island), _at(lives, generation, island)
            worst = max(before, key=lambda life: life.rank)
            for old, new in zip(before, now, strict=True):
                if old is worst:
                    assert new.origin == "copied" and new.parent == best(before).place
                else:
                    assert (new.origin, new.parent, new.values) == ("kept", old.place, old.values)
    assert [life.place.generation for life in found] == [6, 6, 6]


def test_evolution_finds_a_lower_loss_than_the_same_members_without_selection() -> None:
    evolved, alone = [], []
    for seed in range(5):
        evolved.append(min(life.loss for life in _evolve(Learning(), islands=1, seed=seed)[0]))
        rng_values = drawn(_settings(), 4, Random(seed))
        trainer = Learning()
        for member, values in enumerate(rng_values, 1):
            parent = None
            for generation in range(1, 7):
                place = Place(island=1, generation=generation, member=member)
                trainer.train(place, values, parent)
                parent = place
        alone.append(min(trainer.distance[Place(island=1, generation=6, member=m)] for m in (1, 2, 3, 4)))
    assert sum(evolved) < sum(alone)


def test_every_other_generation_the_best_move_to_the_next_island_with_their_values() -> None:
    _, lives = _evolve(Learning())
    moved = [life for life in lives if life.origin == "migrated"]
    assert [life.place.generation for life in moved] == [3, 3, 3, 5, 5, 5]
    for life in moved:
        home = life.place.island - 1 or 3
        guest = best(_at(lives, life.place.generation - 1, home))
        assert (life.parent, life.values) == (guest.place, guest.values)
    assert not [life for life in _evolve(Learning(), islands=1)[1] if life.origin == "migrated"]


@pytest.mark.parametrize("lived", [1, 7, 30, 71])
def test_a_killed_evolution_goes_on_to_the_same_end(tmp_path: Path, lived: int) -> None:
    straight, all_lives = _evolve(Learning())
    dying = Learning(lives=lived)
    with pytest.raises(KeyboardInterrupt):
        _evolve(dying, tmp_path)
    with (tmp_path / "lives.jsonl").open("a") as file:
        file.write('{"torn')
    rest = Learning()
    rest.distance = dying.distance
    resumed, lives = _evolve(rest, tmp_path)
    assert resumed == straight and lives == all_lives == Book(tmp_path).lives
    assert len(rest.trained) == len(all_lives) - lived


def test_a_book_with_a_damaged_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lives.jsonl").write_text("{}\n")
    with pytest.raises(RecordBroken, match=r"lives\.jsonl"):
        Book(tmp_path)


def test_a_member_whose_training_failed_is_replaced_and_an_island_without_any_left_is_an_error() -> None:
    fails = {Place(island=1, generation=1, member=m) for m in (1, 3)}
    _, lives = _evolve(Learning(fails), migrate_every=100)
    replaced = [life for life in _at(lives, 2, 1) if life.origin == "copied"]
    assert [life.place.member for life in replaced] == [1, 3]
    assert all(life.parent is not None and life.parent not in fails for life in replaced)
    with pytest.raises(NobodyLives, match=r"island 2.*learning_rate"):
        _evolve(Learning({Place(island=2, generation=1, member=m) for m in (1, 2, 3, 4)}))


@given(st.integers(0, 10**6), st.floats(0.01, 1), st.floats(0, 1))
def test_values_stay_within_their_bounds(seed: int, perturb: float, resample: float) -> None:
    settings = _settings(perturb=perturb, resample=resample)
    members = drawn(settings, 4, Random(seed))
    for values in [*members, *(explored(settings, member, 1, Random(seed)) for member in members)]:
        assert 1e-4 <= values["training.learning_rate"] <= 1.0
        assert isinstance(values["training.batch_size"], int) and 2 <= values["training.batch_size"] <= 64


def test_changes_shrink_to_their_share_by_the_last_generation() -> None:
    settings = _settings(perturb=0.01, decay=0.1, resample=0.0)
    bounds, middle = Bounds.model_validate(KEYS["training.learning_rate"]), {key: 8 for key in KEYS}
    middle["training.learning_rate"] = value_at(bounds, 0.5)  # type: ignore[assignment]
    moved = [
        abs(place_of(bounds, explored(settings, middle, generation, Random(1))["training.learning_rate"]) - 0.5)
        for generation in (1, 3, 5)
    ]
    assert [size / moved[0] for size in moved] == pytest.approx([1.0, 0.1**0.5, 0.1])


def test_all_but_the_best_may_give_way() -> None:
    _, lives = _evolve(Learning(), islands=1, exploit=0.75)
    for generation in range(2, 7):
        before, now = _at(lives, generation - 1, 1), _at(lives, generation, 1)
        assert {life.parent for life in now} == {best(before).place}
        assert [life.origin for life in now].count("copied") == 3


def test_the_first_members_share_every_range_out() -> None:
    members = drawn(_settings(), 4, Random(1))
    for key, given_ in KEYS.items():
        bounds = Bounds.model_validate(given_)
        if not bounds.whole:
            assert sorted(int(4 * place_of(bounds, member[key])) for member in members) == [0, 1, 2, 3]


def test_a_place_and_its_value_say_the_same() -> None:
    for bounds in (Bounds(low=1e-4, high=1.0), Bounds(low=-2.0, high=3.0, scale="linear")):
        for place in (0.0, 0.25, 1.0):
            assert place_of(bounds, value_at(bounds, place)) == pytest.approx(place, abs=1e-12)
    assert value_at(Bounds(low=1e-4, high=1.0), 0.5) == pytest.approx(1e-2)
