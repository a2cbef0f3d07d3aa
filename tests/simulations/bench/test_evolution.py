"""The benchmarks of evolution: all sides get as many evaluations or rounds, and the numbers are what was found."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from astrofed.shared.plan import Plan
from astrofed.simulations.bench import evolution_schedule
from astrofed.simulations.bench.evolution import CASES, Rastrigin, by_evolution, on_grid, rastrigin_rows
from astrofed.simulations.compatibility import check_plan


def test_the_function_has_its_minimum_where_it_was_put() -> None:
    function = Rastrigin([1.5, -2.0])
    assert function([1.5, -2.0]) == 0.0
    assert function([2.5, -2.0]) == pytest.approx(1.0)
    assert function([2.0, -2.0]) == pytest.approx(20.25)


@pytest.mark.parametrize(("dimensions", "side", "members", "generations"), CASES)
def test_grid_and_evolution_have_equal_budgets(dimensions: int, side: int, members: int, generations: int) -> None:
    minimum = [0.3] * dimensions
    grid = on_grid(Rastrigin(minimum), dimensions, side)
    assert grid.count == by_evolution(Rastrigin(minimum), dimensions, members, generations, 1).count


def test_rows_say_the_difference() -> None:
    grid, evolved, difference = rastrigin_rows(3)[:3]
    assert grid.value is not None and evolved.value is not None and difference.value is not None
    assert difference.value == pytest.approx(grid.value - evolved.value)
    assert difference.targets[0].met == (difference.low is not None and difference.low > 0)


def test_grids_and_evolution_train_for_as_many_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Plan] = []

    def pretended(plan: Plan, out: Path) -> SimpleNamespace:
        check_plan(plan)
        asked.append(plan)
        entry = SimpleNamespace(loss=1.0 + plan.training.learning_rate, unseen={"loss": 2.0})
        return SimpleNamespace(rounds=[entry] * 9)

    monkeypatch.setattr(evolution_schedule, "simulate", pretended)
    best = evolution_schedule.best_of_grid(1, 0.1, tmp_path)
    assert best == (1.0 + min(plan.training.learning_rate for plan in asked), 2.0)
    assert len({(plan.training.learning_rate, plan.training.weight_decay) for plan in asked}) == len(asked)
    spent = sum(plan.rounds for plan in asked)
    evolution_schedule.evolved(1, tmp_path)
    settings = asked[-1].evolution
    assert settings is not None
    assert settings.population * settings.generations * settings.rounds == spent
