"""Seeds derived from the plan's one seed, so that every random draw is named and none depends on the order of calls."""

import hashlib


def derive_seed(seed: int, *labels: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and on every label, and on nothing else.

    Labels are joined unambiguously, so ("ab", "c") and ("a", "bc") differ.
    """
    text = "\x1f".join([str(seed), *(f"{type(label).__name__}:{label}" for label in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
