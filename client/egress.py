"""Egress: the only way out of the client app. What leaves is `Cleared`, and only this module makes it.

Whatever a task returns, what leaves of it is of known form: the arrays of the global model, finite; numbers by name;
counts. With a policy it is also within what that allows: the update's length, the metrics on its list, of enough units,
rounded or noised. Whatever else it is, nothing of it leaves. Reasons never quote what a task made, names included.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import nn

from astrofed.client.metric_release import NoisyRelease, UnitErrors, releasable, rounded
from astrofed.client.policy import DataRules
from astrofed.client.privacy.proof import SpendingProof
from astrofed.client.refusing import Withheld
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainOutcome
from astrofed.client.update_checks import Form, update_norm
from astrofed.shared import records
from astrofed.shared.arrays import WrongArrays, from_model
from astrofed.shared.errors import AstrofedError
from astrofed.shared.plan import Plan

COUNT = "num-examples"
SPENT = ("epsilon", "delta")  # what the ledger says, and not the data
_DIGEST = re.compile(r"[0-9a-f]{64}")
_UNIT = re.compile(r"[A-Za-z][A-Za-z -]{0,39}")
_LARGEST_STATISTICS = 10**6  # numbers
_LONGEST_DESCRIPTION = 300
_OTHER_ARRAYS = "the trained model has other arrays than the global model; only those may leave"


class NonFiniteMetric(AstrofedError):
    """A task returned a metric that is not a finite number."""


@dataclass(frozen=True)
class Cleared:
    """What may leave the site."""

    content: RecordDict


class Gate:
    """What stands between one task at one site and everyone else. Safe to use from several threads."""

    def __init__(self, plan: Plan, site: Site, task: Task) -> None:
        self._plan, self._site, self._task = plan, site, task
        self._rules: DataRules | None = site.policy.rules(site.data) if site.policy is not None else None
        self._proof = SpendingProof(plan, site) if plan.privacy is not None and site.home is not None else None
        noise = self._rules.noise if self._rules is not None else None
        self._noisy = NoisyRelease(plan, site, self._rules, noise) if self._rules is not None and noise else None

    def enrolment(self, summary: SiteSummary) -> Cleared:
        """Clear what a site tells when it enrols; with a policy counts, a fingerprint and what a unit is called."""
        if self._rules is not None:
            summary = self._discreet(summary, self._rules)
        pairs = self._noise_pairs()
        return Cleared(RecordDict({"site": ConfigRecord(asdict(summary) | ({"noise_pairs": pairs} if pairs else {}))}))

    def _noise_pairs(self) -> list[str]:
        """Return by what the coordinator sees that sites which share noise have each other's keys."""
        peers, own = self._site.peers, self._site.name
        if not self._plan.shares_noise or peers is None or self._site.role != "train":
            return []
        return peers.check_values(each.name for each in self._plan.trainers if each.name != own)

    def statistics(self, arrays: Mapping[str, NDArray[np.float64]]) -> Cleared:
        """Clear statistics for standardisation; with a policy only where all that the task has are on its list."""
        values = {key: np.asarray(value, dtype=np.float64) for key, value in arrays.items()}
        rules = self._rules
        if rules is not None and values:
            if not all(rules.allows_statistic(key) for key in values):
                raise Withheld(
                    "the task's statistics may not leave as the site's policy has it; it allows "
                    f"{', '.join(rules.statistics) or 'none'}"
                )
            if not all(np.isfinite(value).all() for value in values.values()):
                raise Withheld("the task's statistics are not finite")
            if sum(value.size for value in values.values()) > _LARGEST_STATISTICS:
                raise Withheld("the task's statistics are too many numbers to be statistics")
        return Cleared(RecordDict({"arrays": ArrayRecord({key: Array(value) for key, value in values.items()})}))

    def mark(self) -> int:
        """Remember where the ledger ends before a private round; see `update`."""
        return self._proof.mark() if self._proof is not None else 0

    def update(
        self, model: nn.Module, asked: Form, sent: ArrayRecord, outcome: TrainOutcome, number: int, mark: int
    ) -> Cleared:
        """Clear a trained model.

        Args:
            model: after training.
            asked: what the global model is made of.
            sent: the global model that came.
            outcome: what the task says of the training.
            number: of the round.
            mark: what `mark` said before the training.

        Raises:
            Withheld: it is not the global model's form, not finite, longer than the policy allows, or private training
                that the ledger knows nothing of.
        """
        rules = self._rules
        arrays = _arrays(model)
        if not asked.fits(arrays):
            raise Withheld(_OTHER_ARRAYS)
        if not asked.is_finite(arrays):
            raise Withheld(f"the trained model is not finite in round {number}; lower training.learning_rate")
        if rules is not None and rules.max_update_norm is not None:
            length = update_norm(arrays, sent)
            if length > rules.max_update_norm:
                raise Withheld(f"the update is longer than the {rules.max_update_norm:g} that the site's policy allows")
        spent = dict[str, float]()
        if self._proof is not None and self._plan.privacy is not None:
            events = self._proof.check(mark, number, self._task.summary().fingerprint)
            if rules is not None:
                spent = {"epsilon": self._proof.epsilon(events), "delta": self._plan.privacy.delta}
        metrics = self._training_metrics(outcome.metrics, spent)
        count = self._count(outcome.num_examples, training=True)
        told = _record({**metrics, COUNT: count})
        return Cleared(records.content({"arrays": arrays, "metrics": told}))

    def scores(
        self,
        model: nn.Module,
        statistics: Statistics,
        number: int,
        *,
        with_baselines: bool,
        asked: Collection[str] | None,
    ) -> Cleared:
        """Evaluate the model and clear its metrics; `asked`: those that the coordinator named, None: all.

        Raises:
            Withheld: none of them may leave, or one that was asked for.
            BudgetSpent: noise would cost more than is left of the dataset's budget.
        """
        task, rules = self._task, self._rules
        metrics = task.evaluate(model, statistics, with_baselines=with_baselines)
        if rules is not None:
            numbers = _numbers(metrics)
            names = releasable(numbers, rules, task.evaluated_units, asked)
            if self._noisy is not None:
                errors: UnitErrors = task.unit_errors(model, statistics)
                metrics = self._noisy.release(names, errors, number, task.summary())
            else:
                metrics = {name: rounded(numbers[name], rules.digits) for name in names}
        elif asked is not None:
            metrics = {name: metrics[name] for name in asked if name in metrics}
        count = self._count(task.summary().num_eval_examples, training=False)
        return Cleared(records.content({"metrics": _record({**metrics, COUNT: count})}))

    def _training_metrics(self, metrics: Mapping[str, float], spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return what may be told of a training; with a policy, what is spent is what the ledger says."""
        rules = self._rules
        if rules is None:
            return metrics
        numbers = {name: value for name, value in _numbers(metrics).items() if name not in SPENT}
        if rules.noise is not None or self._task.summary().num_units < rules.min_units:
            return spent
        return {
            **{name: rounded(numbers[name], rules.digits) for name in numbers if rules.allows_metric(name)},
            **spent,
        }

    def _count(self, given: int, *, training: bool) -> int:
        if self._rules is None:
            return given
        summary = self._task.summary()
        known = summary.num_examples if training else summary.num_eval_examples
        if type(given) is not int or given != known:
            raise Withheld("the task counts other samples than it enrolled with")
        return given

    def _discreet(self, summary: SiteSummary, rules: DataRules) -> SiteSummary:
        counts = (summary.num_examples, summary.num_eval_examples, summary.num_units)
        if (summary.name, summary.role) != (self._site.name, self._site.role):
            raise Withheld("the task enrols as another site")
        if not all(type(count) is int and 0 <= count < 2**53 for count in counts):
            raise Withheld("the task's counts are not whole numbers")
        if not _DIGEST.fullmatch(summary.fingerprint) or not _UNIT.fullmatch(summary.unit):
            raise Withheld("the task's fingerprint is no SHA-256, or its privacy unit no word")
        if not rules.describe:
            return replace(summary, description="its policy keeps what the data are")
        return replace(summary, description=summary.description[:_LONGEST_DESCRIPTION])


def _arrays(model: nn.Module) -> ArrayRecord:
    """Return a copy of a model's arrays, which is what is checked and what leaves."""
    try:
        return from_model(model)
    except WrongArrays:
        raise Withheld(_OTHER_ARRAYS) from None


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return a task's metrics, if they are finite numbers by name."""
    known = all(
        isinstance(name, str) and isinstance(value, int | float) and not isinstance(value, bool)
        for name, value in metrics.items()
    )
    if not known or not all(math.isfinite(value) for value in metrics.values()):
        raise Withheld("the task's metrics are not one finite number by name")
    return {name: float(value) for name, value in metrics.items()}


def _record(values: Mapping[str, float]) -> MetricRecord:
    told: dict[str, int | float] = {}
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteMetric(
                f"metric {name!r} is {value}; the model or the task's data have left the finite range"
            )
        told[name] = int(value) if isinstance(value, int) else float(value)
    return records.metrics(told)
