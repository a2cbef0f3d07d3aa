"""Seeds: a function of the plan's seed and the labels, and of nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from astrofed.shared.seeds import derive_seed

labels = st.lists(st.text(max_size=5) | st.integers(), max_size=4)


def test_seeds_stay_what_they_were() -> None:
    """A change here would change every run that was ever recorded."""
    assert derive_seed(1, "train", 3, "earthlike") == 7066885256428856504


@given(seed=st.integers(0, 2**63), first=labels, second=labels)
def test_seeds_tell_labels_apart(seed: int, first: list[str | int], second: list[str | int]) -> None:
    """Labels that run together when joined ("ab", "c" and "a", "bc") must not share their randomness."""
    assert (derive_seed(seed, *first) == derive_seed(seed, *second)) == (first == second)
    assert 0 <= derive_seed(seed, *first) < 2**63
    assert derive_seed(seed, *first) != derive_seed(seed + 1, *first)


def test_a_number_is_not_its_text() -> None:
    assert derive_seed(1, 2) != derive_seed(1, "2") != derive_seed(1, "'2'")
