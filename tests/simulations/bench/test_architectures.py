"""The table of architectures and the searches on it."""

from astrofed.simulations.bench.architectures import RUNGS, SPACE, read_table, search_rows


def test_every_cell_of_the_space_was_trained() -> None:
    table = read_table()
    assert set(table) == set(SPACE.candidates())
    assert len(table) > 100
    assert all(set(losses) == set(RUNGS) and losses[4] < losses[1] for losses in table.values())


def test_both_searches_are_compared_at_the_same_number_of_rounds() -> None:
    rows = search_rows(2)
    best = rows[-1].value
    assert best is not None
    for row in rows[:-1]:
        assert row.value is not None
        assert row.targets or row.value >= best
    assert sum(len(row.targets) for row in rows) == 3
