"""Sites that join and leave between rounds, and what the record tells of each one's part in a run.

With `strategy.membership = "open"` a run begins with a quorum of its participants. Those of the plan that connect later
are asked to enrol before the next round, with the statistics that the run began with; one that is gone is an absent
reply until it is back. Nobody who is not in the plan is ever asked to train.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flwr.serverapp import Grid

from astrofed.server.enrolment import Roster, read_enrolments
from astrofed.server.nodes import ask
from astrofed.shared.plan import Plan
from astrofed.shared.record import Enrolled, Quarantine, Round, Start

ENROL_S = 60.0  # a newcomer that reads its data for longer is asked again before the next round


class Door:
    """Lets participants of the plan in that were not there before."""

    def __init__(self, grid: Grid, plan: Plan) -> None:
        self._grid, self._plan = grid, plan
        self._refused: set[int] = set()

    def admit(self, roster: Roster) -> tuple[Roster, tuple[Enrolled, ...], tuple[Quarantine, ...]]:
        """Return the roster with all who came since, who they are, and whom to keep out and why (told once)."""
        known = set(roster.nodes.values()) | self._refused
        nodes = [node for node in self._grid.get_node_ids() if node not in known]
        if not nodes:
            return roster, (), ()
        timeout = min(ENROL_S, self._plan.strategy.timeout_s)
        replies = ask(self._grid, nodes, "query.enrol", {"plan": self._plan.to_json()}, timeout)
        found, refused = read_enrolments(replies, self._plan)
        joined = {name: pair for name, pair in found.items() if name not in roster.nodes}
        twice = [name for name in found if name in roster.nodes]
        answered = {reply.metadata.src_node_id for reply in replies}
        self._refused |= answered - {node for node, _ in joined.values()}
        out = [Quarantine(participant="newcomer", reason=reason) for reason in refused]
        reason = "another node already takes part under this name"
        out += [Quarantine(participant=name, reason=reason) for name in twice]
        sites = {site.participant: site for site in roster.enrolled} | {
            name: site for name, (_, site) in joined.items()
        }
        places = {**roster.nodes, **{name: node for name, (node, _) in joined.items()}}
        order = [participant.name for participant in self._plan.participants if participant.name in sites]
        grown = Roster({name: places[name] for name in order}, tuple(sites[name] for name in order))
        return grown, tuple(site for _, site in joined.values()), tuple(out)


@dataclass(frozen=True)
class Participation:
    """One participant's part in a run so far."""

    participant: str
    since: int  # the round before which it enrolled; 0: from the start
    used: int  # rounds in which its update was used
    kept_out: int  # rounds in which it was not: late, offline, malformed, or left out by the rule
    reliability: float | None  # used / (used + kept out); None: in no round yet
    contribution: float | None  # mean weight of its updates in the models they went into; None: the rule has no weights


def participation(start: Start | None, rounds: Sequence[Round]) -> list[Participation]:
    """Return the history of everybody who enrolled to train, in the order of enrolment."""
    since = {site.participant: 0 for site in (start.enrolled if start else ()) if site.role == "train"}
    for entry in rounds:
        since |= {site.participant: entry.round for site in entry.joined if site.role == "train"}
    found = []
    for name, first in since.items():
        used = [entry for entry in rounds if name in entry.accepted]
        out = sum(name in _names(entry) and name not in entry.accepted for entry in rounds if entry.round)
        weights = [entry.weights[name] for entry in used if name in entry.weights]
        share = len(used) / (len(used) + out) if used or out else None
        mean = sum(weights) / len(weights) if weights else None
        found.append(Participation(name, first, len(used), out, share, mean))
    return found


def everybody(start: Start, rounds: Iterable[Round]) -> list[Enrolled]:
    """Return all who ever enrolled in a run."""
    return [*start.enrolled, *(site for entry in rounds for site in entry.joined)]


def _names(entry: Round) -> set[str]:
    return {item.participant for item in entry.quarantined}
