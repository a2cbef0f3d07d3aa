"""The benchmark of evolution: both sides get as many evaluations, and the numbers are those of the function."""

import pytest

from astrofed.simulations.bench.evolution import CASES, Rastrigin, by_evolution, on_grid, rastrigin_rows


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
