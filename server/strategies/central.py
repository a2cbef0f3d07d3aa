"""Averaging with differential privacy for each participant as a whole: what is added at the server hides it.

Updates are clipped, summed with equal weights, hidden by noise and divided by the number of participants that a round
asks on average; a participant that doesn't reply counts as an update of zero (McMahan et al. 2018, arXiv:1710.06963).
The server itself sees each update. Epsilon is for whoever sees the models: the other participants, and their readers.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from pydantic import Field

from astrofed.server.privacy.accounting import CentralAccount, Price
from astrofed.server.privacy.bounded import Sums, clipped_sum
from astrofed.server.privacy.conditions import STRATEGY, check_central
from astrofed.server.privacy.mechanisms import Independent, Release, Tree
from astrofed.server.privacy.participation import asked
from astrofed.server.screening import LARGEST
from astrofed.server.strategies.messages import mean_metrics, messages_to, scalars
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import Plan, Positive, Section, check_options
from astrofed.shared.privacy.noise import Randomness
from astrofed.shared.privacy.quantile import QuantileNorm
from astrofed.shared.record import CentralSpent

_log = logging.getLogger(__name__)


class Options(Section):
    """What a plan may say beside [central_privacy]; both act on what is noisy already, and cost nothing.

    `learning_rate`: factor on the mean update.
    `momentum`: share of the last round's step that is taken again (Hsu et al. 2019, arXiv:1909.06335).
    """

    learning_rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0


class PrivateMean(Strategy):
    """The mean of clipped updates with accounted noise, for plans with a [central_privacy] section.

    Replies must have gone through `screen_training`. `opened` has to be called before the first round.
    """

    discreet = True
    """Who took part is not for the record, and a round goes on whoever replied."""

    def __init__(self, plan: Plan, random: Randomness | None = None) -> None:
        """`random`: of sampling and noise; a fresh cryptographic generator by default.

        Raises:
            PlanError: epsilon would not hold; see `check_central`.
        """
        section = check_central(plan)
        assert section is not None  # this strategy is built for no other plan
        self.options = check_options(Options, plan.strategy, "strategy")
        self._section, self._plan = section, plan
        self._random = random if random is not None else Randomness()
        self._expected = len(plan.trainers) * (1 / section.cohorts if section.cohorts else section.sampling_rate)
        self._norm = QuantileNorm(section.clipping_norm, section.clipping_quantile)
        self._release: Release = Tree(self._random, section.cohorts) if section.cohorts else Independent(self._random)
        self._reference: dict[str, NDArray[Any]] = {}
        self._velocity: Sums = {}
        self._asked: set[int] = set()
        self._noise = 0.0
        self._account: CentralAccount | None = None
        self.spent: CentralSpent | None = None

    def opened(self, folder: Path, last: CentralSpent | None) -> None:
        """Open the run's account in its folder; `last`: what the record's last round says.

        Raises:
            AccountBroken: it was cut, edited or lost.
        """
        self._account = CentralAccount(folder, self._section, self._plan.rounds, last)
        self.spent = last

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Charge the round, then return a train message for whom it asks.

        Raises:
            BudgetUnreachable, CannotWrite: nobody is asked.
        """
        assert self._account is not None, "opened() comes first"
        self._reference = to_numpy(arrays)
        if self._release.begins or not self._noise:
            self._noise = self._account.charge(server_round)
        nodes = asked(list(grid.get_node_ids()), self._section, server_round, self._random)
        self._asked = set(nodes)
        return messages_to(nodes, MessageType.TRAIN, server_round, arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new model, whoever replied, and no metrics, which would be a release that nothing hides."""
        assert self._account is not None, "opened() comes first"
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        usable = [reply for node, reply in by_node.items() if node in self._asked]
        if self._asked and not usable:
            _log.warning("round %d: no usable reply; the model takes up noise alone", server_round)
        self._asked = set()
        models = [to_numpy(reply.content.array_records["arrays"]) for reply in usable]
        norm, adaptive = self._norm.norm, self._section.clipping == "adaptive"
        total, unclipped = clipped_sum(self._reference, models, norm)
        on_sum = self._norm.noise_multiplier(self._noise, self._expected) if adaptive else self._noise
        noisy = self._release(total, on_sum * norm)
        if adaptive:
            self._norm.count(unclipped, len(models))
            self._norm.end_step(self._noise, self._expected, self._random)
        self.spent = self._account.spent(norm)
        return from_numpy(self._moved(noisy)), MetricRecord()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return an evaluate message for every node."""
        return messages_to(grid.get_node_ids(), MessageType.EVALUATE, server_round, arrays, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean of the metrics that all replies have, all counting alike."""
        metrics = [scalars(reply.content.metric_records["metrics"]) for reply in replies if reply.has_content()]
        return mean_metrics(metrics, None) if metrics else None

    def summary(self) -> None:
        """Log what is done."""
        _log.info("%s: %s noise, clipping norm %g", STRATEGY, self._section.mechanism, self._norm.norm)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the clipping norm and the momentum; no noise is kept that could be taken off again."""
        velocity = {f"velocity/{name}": own for name, own in self._velocity.items()}
        return {"norm": np.array(self._norm.norm), **velocity}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state_dict` returned."""
        self._norm.norm = float(state["norm"])
        self._velocity = {k.removeprefix("velocity/"): v for k, v in state.items() if k.startswith("velocity/")}

    def _moved(self, noisy: Sums) -> dict[str, NDArray[Any]]:
        """Return the model moved by a noisy sum; arrays that hold no floats stay as they are."""
        new: dict[str, NDArray[Any]] = {}
        for name, old in self._reference.items():
            if name not in noisy:
                new[name] = old
                continue
            step = noisy[name] * (self.options.learning_rate / self._expected)
            if self.options.momentum:
                step = self._velocity[name] = step + self.options.momentum * self._velocity.get(name, 0.0)
            most = min(LARGEST, float(np.finfo(old.dtype).max))
            new[name] = np.clip(old + step, -most, most).astype(old.dtype)
        return new


def guarantee(plan: Plan) -> list[str]:
    """Return what a plan with strategy "private-mean" guarantees, a line each (errors as `check_central`).

    Raises:
        BudgetUnreachable: no noise keeps so many rounds within the plan's epsilon.
    """
    section = check_central(plan)
    assert section is not None
    price, n = Price(section), len(plan.trainers)
    noise, spent = price.noise(plan.rounds, []), price.epsilon(plan.rounds)
    turns, chance = (
        f"one of {section.cohorts} groups at a time",
        f"each asked with probability {section.sampling_rate:g}",
    )
    who = turns if section.cohorts else chance
    expected = n / section.cohorts if section.cohorts else n * section.sampling_rate
    lines = [
        f"{STRATEGY}: the models of all {plan.rounds} rounds are (epsilon = {spent:.4g}, delta = {section.delta:g})-"
        f"differentially private for each of the {n} training participants as a whole: {section.mechanism} noise of "
        f"{noise:.4g} clipping norms, {who}; each interruption of the run adds a charge",
        "that holds against whoever sees the models, also other participants, not against the server, which sees "
        "each update; who took part stands in operator.jsonl, which is not to be passed on",
        "it doesn't cover what participants say of held-out data (metrics), the numbers of examples and fingerprints "
        "that they enrol with, the times at which messages travel",
        f"a lying participant moves the model by at most {section.clipping_norm:g} / {expected:g} in a round"
        + (" at the first clipping norm" if section.clipping == "adaptive" else "")
        + "; no robust rule can be added, as none is known to keep that bound",
    ]
    if noise / expected > 1:
        lines.append(
            f"the noise is {noise / expected:.3g} clipping norms on each weight of the mean update: with so few "
            "participants expect to learn next to nothing"
        )
    return lines
