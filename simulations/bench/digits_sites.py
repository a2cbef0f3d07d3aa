"""scikit-learn's digits shared out unevenly, and a small network whose gradients at all sites are computed at once.

The setting of the papers on robustness under heterogeneity, on data that a package ships: honest sites hold the data
and send the running mean of their gradients (momentum); attackers hold none and see what the honest send.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from astrofed.shared.errors import UserMistake

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Split = Literal["iid", "dirichlet 0.1", "one class each"]
PIXELS, HIDDEN, CLASSES = 64, 100, 10
TRAINING = 1437  # of 1,797 images; the others are for testing
SIZE = PIXELS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES


class DigitsMissing(UserMistake):
    """The data that ship with scikit-learn are not installed."""


@lru_cache(maxsize=1)
def load_digits() -> tuple[Floats, Labels]:
    """Return images (1797, 64) in [0, 1] and labels (1797,): scikit-learn's file, without the second its import takes.

    Raises:
        DigitsMissing: scikit-learn is not installed, or keeps its digits elsewhere.
    """
    package = importlib.util.find_spec("sklearn")
    folders = (package.submodule_search_locations if package else None) or []
    for path in (Path(folder) / "datasets" / "data" / "digits.csv.gz" for folder in folders):
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return (table[:, :PIXELS] / 16).astype(np.float32), table[:, PIXELS].astype(np.int64)
    raise DigitsMissing("scikit-learn's digits are not there; pip install 'astrofed[bench]'")


class DigitsSites:
    """The training images, shared out over `sites`, and the images for testing."""

    def __init__(self, sites: int, split: Split, rng: np.random.Generator) -> None:
        images, labels = load_digits()
        order = rng.permutation(len(labels))
        self.images, self.labels = images[order[:TRAINING]], labels[order[:TRAINING]]
        self._tests = images[order[TRAINING:]], labels[order[TRAINING:]]
        self._parts = share_out(self.labels, sites, split, rng)

    def draw(self, batch: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
        """Return for each site a batch of its own images (sites, batch, 64), with replacement, and labels."""
        rows = np.stack([rng.choice(part, batch) for part in self._parts])
        return self.images[rows], self.labels[rows]

    def accuracy(self, weights: Floats) -> float:
        """Return the percentage of test images that are read right; 0 for weights that are not finite."""
        if not np.isfinite(weights).all():
            return 0.0
        images, labels = self._tests
        return float(100 * (_forward(weights, images)[1].argmax(axis=1) == labels).mean())


def share_out(labels: Labels, sites: int, split: Split, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Return each site's rows, at least one each.

    "dirichlet 0.1" draws each class's shares from a Dirichlet distribution (Hsu et al. 2019, arXiv:1909.06335).
    """
    if split == "iid":
        return list(np.array_split(rng.permutation(len(labels)), sites))
    parts: list[list[int]] = [[] for _ in range(sites)]
    for label in range(CLASSES):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if split == "dirichlet 0.1":
            cuts = (np.cumsum(rng.dirichlet([0.1] * sites))[:-1] * len(rows)).astype(int)
            pieces = np.split(rows, cuts)
        else:
            own = [site for site in range(sites) if site % CLASSES == label]
            shared = dict(zip(own, np.array_split(rows, max(1, len(own))), strict=False))
            pieces = [shared.get(site, rows[:0]) for site in range(sites)]
        for part, piece in zip(parts, pieces, strict=True):
            part.extend(piece.tolist())
    return [np.array(part or [int(rng.integers(len(labels)))]) for part in parts]


def initial_weights(rng: np.random.Generator) -> Floats:
    """Return the network's weights (7510,), 64 - 100 - 10 with ReLU, drawn as He et al. (2015) draw them."""
    first = rng.normal(0, np.sqrt(2 / PIXELS), PIXELS * HIDDEN)
    second = rng.normal(0, np.sqrt(2 / HIDDEN), HIDDEN * CLASSES)
    return np.concatenate([first, np.zeros(HIDDEN), second, np.zeros(CLASSES)]).astype(np.float32)


def gradients(weights: Floats, images: Floats, labels: Labels) -> Floats:
    """Return each site's gradient (sites, 7510) of the cross entropy, from its batch (sites, batch, 64)."""
    sites, batch, _ = images.shape
    hidden, logits = _forward(weights, images.reshape(-1, PIXELS))
    errors = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors /= errors.sum(axis=1, keepdims=True)
    errors[np.arange(len(errors)), labels.ravel()] -= 1
    errors /= batch
    inner = ((errors @ _layers(weights)[2].T) * (hidden > 0)).reshape(sites, batch, HIDDEN)
    hidden, errors = hidden.reshape(sites, batch, HIDDEN), errors.reshape(sites, batch, CLASSES)
    first = np.matmul(images.transpose(0, 2, 1), inner).reshape(sites, -1)
    second = np.matmul(hidden.transpose(0, 2, 1), errors).reshape(sites, -1)
    return np.concatenate([first, inner.sum(axis=1), second, errors.sum(axis=1)], axis=1)


def _layers(weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    first, bias, second, last = np.split(weights, np.cumsum([PIXELS * HIDDEN, HIDDEN, HIDDEN * CLASSES]))
    return first.reshape(PIXELS, HIDDEN), bias, second.reshape(HIDDEN, CLASSES), last


def _forward(weights: Floats, images: Floats) -> tuple[Floats, Floats]:
    first, bias, second, last = _layers(weights)
    hidden = np.maximum(images @ first + bias, 0)
    return hidden, hidden @ second + last
