"""The Gram matrix: exact on small cases, and accurate where float32 or a plain float64 formula is not."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from astrofed.server.aggregation.base import squared_distances
from astrofed.server.aggregation.gram import gram_matrix
from astrofed.server.aggregation.updates import Updates


def direct_distances(models: NDArray[Any]) -> NDArray[np.float64]:
    wide = models.astype(np.longdouble)
    return np.array([[float(((a - b) ** 2).sum()) for b in wide] for a in wide])


def updates_of(reference: NDArray[Any], models: NDArray[Any]) -> Updates:
    return Updates({"w": reference}, [{"w": model} for model in models])


def off_diagonal(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def test_inner_products_of_a_case_by_hand() -> None:
    models = np.array([[1.0, 2.0], [3.0, 1.0], [0.0, -1.0]])
    gram = gram_matrix(updates_of(np.array([1.0, 1.0]), models))
    assert gram.tolist() == [[0.0, 0.0, 0.0], [0.0, 5.0, 1.0], [0.0, 1.0, 10.0]]  # about the first, the most central
    assert squared_distances(gram).tolist() == [[0.0, 5.0, 10.0], [5.0, 0.0, 13.0], [10.0, 13.0, 0.0]]


def test_many_arrays_and_blocks_add_up() -> None:
    """Blocks end within arrays and arrays within blocks; a coordinate left out or counted twice shows here."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 7), "b": (), "c": (0, 4), "d": (70_001,), "e": (5, 5, 5)}
    reference = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}
    replies = [
        {name: np.asarray(a + rng.normal(size=a.shape), np.float32) for name, a in reference.items()} for _ in range(6)
    ]
    flat = np.stack([np.concatenate([a.ravel() for a in reply.values()]) for reply in replies])
    distances = squared_distances(gram_matrix(Updates(reference, replies)))
    np.testing.assert_allclose(distances, direct_distances(flat), rtol=1e-6)  # squares are float32 within a block


def test_transposed_memory_is_read_in_the_models_order() -> None:
    rng = np.random.default_rng(1)
    models = [rng.normal(size=(30, 40)) for _ in range(4)]
    zero = np.zeros((30, 40))
    plain = gram_matrix(Updates({"w": zero}, [{"w": m} for m in models]))
    odd = gram_matrix(Updates({"w": zero}, [{"w": np.asfortranarray(m)} for m in models]))
    np.testing.assert_allclose(odd, plain, rtol=1e-14)


@pytest.mark.parametrize("offset_in_model", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_spread_about_a_large_offset_keeps_its_distances(offset_in_model: bool, dtype: Any) -> None:
    """Weights about 1000, updates 1e-4 apart: ||x||^2 + ||y||^2 - 2 x.y on the weights has lost every digit here."""
    rng = np.random.default_rng(2)
    models = (1000 + 1e-4 * rng.normal(size=(8, 20_000))).astype(dtype)
    reference = np.full(20_000, 1000.0 if offset_in_model else 0.0, dtype)
    found = squared_distances(gram_matrix(updates_of(reference, models)))
    np.testing.assert_allclose(off_diagonal(found), off_diagonal(direct_distances(models)), rtol=1e-6)


def test_a_liar_far_away_costs_no_accuracy_among_the_others() -> None:
    """Were distances measured from the liar, or from a mean with the liar in it, those of the honest would vanish."""
    rng = np.random.default_rng(3)
    models = (1000 + 1e-3 * rng.normal(size=(7, 5_000))).astype(np.float32)
    models[0] = models[3] = 3e38
    found = squared_distances(gram_matrix(updates_of(np.zeros(5_000, np.float32), models)))
    honest = [1, 2, 4, 5, 6]
    expected = direct_distances(models[honest])
    np.testing.assert_allclose(off_diagonal(found[np.ix_(honest, honest)]), off_diagonal(expected), rtol=1e-6)
    assert np.isfinite(found).all() and found[0, 3] == 0


def test_equal_updates_have_no_distance_at_all() -> None:
    """Rounding must not tell equal updates apart, or ties would be decided by it."""
    rng = np.random.default_rng(4)
    one = rng.normal(size=3_000).astype(np.float32)
    models = np.stack([one, one + 1, one, one, one - 2])
    found = squared_distances(gram_matrix(updates_of(np.zeros_like(one), models)))
    assert found[0, 2] == found[0, 3] == found[2, 3] == 0
    assert found[0, 1] > 0 and (found == found.T).all()
