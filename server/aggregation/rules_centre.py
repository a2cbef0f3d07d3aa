"""Rules whose result is a weighted mean near the middle: plain mean, geometric median, centred clipping, and trust.

Each states its paper, its equation, and how many replies n it needs to withstand f liars. Updates are x_1 … x_n. All
are found in the space of weights, where distances to a mean of the updates follow from their Gram matrix.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from astrofed.server.aggregation.base import Combination, Floats, distances_to, squared_distances
from astrofed.shared.plan import Positive, Section

SMOOTHING = 1e-6  # of the geometric median, in median distances
STEPS = 1000  # at most, of Weiszfeld's iteration
SETTLED = 1e-9  # change of any weight below which it ends


class Mean(Combination):
    """Weighted mean of the updates; one liar moves it at will.

    McMahan et al. (2017), "Communication-efficient learning of deep networks from decentralized data", AISTATS: the
    aggregation of FedAvg, sum_i s_i x_i with shares s_i.
    """

    needs_gram = False
    weighs_examples = True

    def minimum_replies(self, f: int) -> int | None:
        """Return 1 for f = 0; no number of replies makes a mean robust."""
        return 1 if f == 0 else None

    def combine(self, gram: Floats, shares: Floats, f: int) -> Floats:
        """Return the shares as they are."""
        return shares


class GeometricMedian(Combination):
    """The point with the smallest sum of distances, weighted by shares, to the updates (RFA).

    Pillutla et al. (2022), "Robust aggregation for federated learning", IEEE Trans. Signal Process. 70, algorithm 2,
    smoothed Weiszfeld: v = sum_i b_i x_i / sum_i b_i with b_i = s_i / max(nu, ||x_i - v||), until it settles. Here nu
    is 1e-6 of the median distance, so that the rule knows no absolute length, and the start lies by the most central
    update, so that liars however far away don't slow it down.
    """

    weighs_examples = True

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1: fewer than half may lie."""
        return 2 * f + 1

    def combine(self, gram: Floats, shares: Floats, f: int) -> Floats:
        """Return the weights (n,) of the geometric median."""
        squares = squared_distances(gram)
        central = np.sqrt(squares[np.argmin(np.median(squares, axis=1))])
        typical = float(np.median(central))
        if typical == 0:  # more than half are equal
            same = shares * (central == 0)
            return np.asarray(same / same.sum())
        weights = _normalised(shares / (central + typical))
        for _ in range(STEPS):
            before = weights
            weights = _normalised(shares / np.maximum(SMOOTHING * typical, distances_to(gram, weights)))
            if np.abs(weights - before).max() < SETTLED:
                break
        weights[weights < SMOOTHING * weights.max()] = 0.0  # what smoothing alone leaves them
        return _normalised(weights)


class CentredClipping(Combination):
    """Moves a centre by the mean of the differences to the updates, each clipped to a radius; a few times over.

    Karimireddy et al. (2021), "Learning from history for Byzantine robust optimization", ICML, algorithm 2:
    v <- v + 1/n sum_i (x_i - v) min(1, tau / ||x_i - v||). The start is the model's last step (the paper's momentum of
    the centre) or the model itself. A liar moves the centre by tau / n in each iteration at most.
    """

    class Options(Section):
        """`tau`: radius, in the units of the weights, or "auto"; `iterations`: how often; `start`: where from.

        "auto" is the distance within which n - 2f of the updates lie at that iteration, so that it follows the scale of
        the updates and no f liars can widen it beyond the honest.
        """

        tau: Positive | Literal["auto"] = "auto"
        iterations: Annotated[int, Field(ge=1, le=100)] = 3
        start: Literal["last-step", "model"] = "last-step"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._tau, self._iterations, self.start = options.tau, options.iterations, options.start

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1: fewer than half may lie."""
        return 2 * f + 1

    def combine(self, gram: Floats, shares: Floats, f: int) -> Floats:
        """Return weights (n + 1,): of the updates, and of the start."""
        n = len(gram) - 1
        weights = np.zeros(n + 1)
        weights[-1] = 1.0
        for _ in range(self._iterations):
            far = distances_to(gram, weights)[:-1]
            tau = float(np.sort(far)[n - 2 * f - 1]) if self._tau == "auto" else self._tau
            factors = np.divide(tau, far, out=np.ones(n), where=far > tau)
            weights *= 1 - factors.mean()
            weights[:-1] += factors / n
        return weights


class TrustedReference(Combination):
    """Weighs updates by how far they agree in direction with that of one trusted participant, at its length (FLTrust).

    Cao et al. (2021), "FLTrust: Byzantine-robust federated learning via trust bootstrapping", NDSS, equation 4: with
    the trusted update x_0, sum_i t_i x_i ||x_0|| / ||x_i|| / sum_i t_i, t_i = max(0, cos(x_i, x_0)). In the paper the
    server trains x_0 on data of its own; here it has none, and an honest site that the coordinator names does.
    """

    about_model = True
    trusts_one = True

    class Options(Section):
        """`reference`: the participant that is trusted."""

        reference: Annotated[str, Field(min_length=1)]

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.reference = options.reference

    def minimum_replies(self, f: int) -> int | None:
        """Return f + 1: all but the trusted one may lie."""
        return f + 1

    def combine(self, gram: Floats, shares: Floats, f: int) -> Floats:
        """Return weights (n,); none where an update is zero or points away from the trusted one's."""
        lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
        trusted = int(np.argmax(shares))
        if lengths[trusted] == 0:  # it asks for no change, and has no direction
            return np.zeros(len(gram))
        lengths[lengths == 0] = np.inf
        trust = np.maximum(0.0, gram[trusted] / lengths[trusted] / lengths)
        trust[trusted] = 1.0
        return np.asarray(trust / trust.sum() * lengths[trusted] / lengths)


def _normalised(weights: Floats) -> Floats:
    return np.asarray(weights / weights.sum())
