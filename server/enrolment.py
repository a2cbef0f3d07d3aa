"""Before the first round: every participant enrols, and the statistics that standardisation needs are pooled."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray
from pydantic import ValidationError

from astrofed.server.nodes import ask, wait_for_nodes
from astrofed.server.privacy.conditions import check_statistics
from astrofed.server.screening import Rejected, pool_statistics, screen_statistics
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan
from astrofed.shared.record import Enrolled, Quarantine

CONNECT_TIMEOUT_S = 60.0
Statistics = dict[str, NDArray[np.float64]]


class NotEnrolled(UserMistake):
    """A participant of the plan could not enrol: its data is missing or unusable, or it did not answer."""


@dataclass(frozen=True)
class Roster:
    """Who takes part: the nodes by participant, in the plan's order."""

    nodes: Mapping[str, int]
    enrolled: tuple[Enrolled, ...]

    def name(self, node: int) -> str:
        """Return the participant behind a node."""
        return self._names.get(node, f"node {node}")

    @cached_property
    def _names(self) -> dict[int, str]:
        return {node: name for name, node in self.nodes.items()}

    def with_role(self, role: str) -> list[int]:
        """Return the nodes of the participants with that role."""
        return [self.nodes[site.participant] for site in self.enrolled if site.role == role]

    @property
    def num_examples(self) -> dict[int, int]:
        """How many training samples each training node enrolled with."""
        return {self.nodes[site.participant]: site.num_examples for site in self.enrolled if site.role == "train"}

    def quarantine(self, rejected: Sequence[Rejected]) -> tuple[Quarantine, ...]:
        """Name the participants behind rejected replies."""
        return tuple(Quarantine(participant=self.name(item.node_id), reason=item.reason) for item in rejected)


def enrol(grid: Grid, plan: Plan, quorum: int | None = None) -> tuple[Roster, tuple[Quarantine, ...]]:
    """Ask every node who it is; return the roster and who could not enrol, with the reason.

    With a `quorum` no more nodes than that are waited for.
    """
    nodes = wait_for_nodes(grid, quorum or len(plan.participants), CONNECT_TIMEOUT_S)
    replies = ask(grid, nodes, "query.enrol", {"plan": plan.to_json()}, plan.strategy.timeout_s)
    found, reasons = read_enrolments(replies, plan)
    known = [participant.name for participant in plan.participants if participant.name in found]
    absent = [participant.name for participant in plan.participants if participant.name not in found]
    refused = tuple(
        Quarantine(participant=name, reason=_reason(name, reasons, len(absent) == len(reasons) == 1)) for name in absent
    )
    return Roster({name: found[name][0] for name in known}, tuple(found[name][1] for name in known)), refused


def read_enrolments(replies: Iterable[Message], plan: Plan) -> tuple[dict[str, tuple[int, Enrolled]], list[str]]:
    """Return node and enrolment by participant, and why the other replies are none."""
    found: dict[str, tuple[int, Enrolled]] = {}
    reasons: list[str] = []
    for reply in replies:
        site = _read(reply, plan)
        if isinstance(site, str):
            reasons.append(site)
        elif site.participant in found:
            reasons.append(f"two nodes call themselves {site.participant!r}")
        else:
            found[site.participant] = (reply.metadata.src_node_id, site)
    return found, reasons


def _reason(name: str, reasons: Sequence[str], only: bool) -> str:
    named = [reason for reason in reasons if reason.startswith(f"{name}: ")]
    if named:
        return named[0].removeprefix(f"{name}: ")
    return reasons[0] if only else "; ".join(reasons) or "no reply"


def _read(reply: Message, plan: Plan) -> Enrolled | str:
    if reply.has_error():
        return reply.error.reason or "an error without a reason"
    try:
        given: dict[str, Any] = dict(reply.content.config_records["site"])
        site = Enrolled.model_validate({"participant": given.pop("name"), **given})
    except (KeyError, ValidationError) as error:
        return f"its enrolment can't be read: {type(error).__name__}"
    if site.participant not in {participant.name for participant in plan.participants}:
        return f"{site.participant!r} is not in the plan"
    return site


def check_pairs(plan: Plan, roster: Roster) -> None:
    """See that participants who share noise have each other's keys: with other keys their noise would not cancel.

    Raises:
        NotEnrolled: two have not.
    """
    if not plan.shares_noise:
        return
    said = {site.participant: dict(line.rpartition("=")[::2] for line in site.noise_pairs) for site in roster.enrolled}
    for one, other in combinations((each.name for each in plan.trainers if each.name in said), 2):
        if said[one].get(other) is None or said[one].get(other) != said[other].get(one):
            raise NotEnrolled(
                f"{one} and {other} can't share noise: one of them has another key than the other's in its policy's "
                "[[peers]]; compare both with what `astrofed client noise-key` prints at the two sites"
            )


def gather_statistics(grid: Grid, plan: Plan, roster: Roster) -> tuple[Statistics, tuple[Quarantine, ...]]:
    """Ask every node for its statistics and pool them; return also whose statistics were not used, with the reason.

    Raises:
        StatisticsTell: central privacy doesn't cover them.
    """
    nodes = list(roster.nodes.values())
    replies = ask(grid, nodes, "query.statistics", {"plan": plan.to_json()}, plan.strategy.timeout_s)
    by_node, rejected = screen_statistics(replies, nodes)
    check_statistics(plan, {roster.name(node): own for node, own in by_node.items()})
    return pool_statistics(by_node), roster.quarantine(rejected)


def statistics_to_json(statistics: Statistics) -> str:
    """Return pooled statistics in the form in which they travel with each message."""
    return json.dumps({key: value.tolist() for key, value in statistics.items()})
