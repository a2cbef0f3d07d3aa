"""Seeds derived from the plan's one seed, so that every random draw is named and none depends on the order of calls."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_turn = threading.RLock()


def derive_seed(seed: int, *labels: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and on every label, and on nothing else.

    Labels are joined unambiguously: ("ab", "c") and ("a", "bc") differ, and so do "1" and 1.
    """
    text = repr((seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator for a block and put it back afterwards.

    The generator is one for all threads: while a thread is in such a block, others wait to enter theirs.
    """
    import torch

    with _turn:
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(before)
