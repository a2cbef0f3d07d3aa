"""The gatekeeper: what it does not let in, the executor never sees.

A request is looked at in this order: is it for this node, from the coordinator, of a kind that is known, still wanted;
is its plan signed by the coordinator's key in the welcome, or a part of one that is; is that coordinator in the site's
policy, is the signature of now; does the plan name this site and a dataset that it has; and does the run stay the plan
that it began as. What the policy says of plans themselves, and of what leaves, is the client app's to enforce, in the
executor.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from astrofed.client.service.home import Home
from astrofed.client.service.messages import Envelope
from astrofed.shared.errors import UserMistake
from astrofed.shared.keys import fingerprint, grouped
from astrofed.shared.part_of_plan import check_part
from astrofed.shared.plan import Plan, plan_from_json
from astrofed.shared.signed_plan import SignedPlan, is_signed, verify_plan

KINDS = ("query.enrol", "query.statistics", "train", "evaluate")
SERVER = 1  # the SuperLink's node id, from which all requests come
_REMEMBERED = 1000  # runs


class Refused(UserMistake):
    """A request that the gatekeeper does not let in; the message goes to the coordinator."""


@dataclass(frozen=True)
class Admitted:
    """A request that was let in."""

    kind: str  # one of KINDS
    run: str  # the run's name on the coordinator's server
    plan: Plan
    round: int | None
    charges: bool  # whether it is charged to the site's ledger each time that it is answered

    def __str__(self) -> str:
        of = f"round {self.round} of {self.plan.rounds}" if self.round else "before the first round"
        return f"run {self.run}: {self.kind.removeprefix('query.')}, {of}"


class Gatekeeper:
    """Lets requests in, or not."""

    def __init__(self, home: Home) -> None:
        """Raises what `Home.welcome` and `Home.policy` raise."""
        self._home = home
        self._welcome = home.welcome
        self._policy = home.policy
        self._runs: dict[int, SignedPlan] = {}

    def admit(self, outside: Envelope, settings: Mapping[str, object], node: int, now: float | None = None) -> Admitted:
        """Return what the request asks for.

        Raises:
            Refused, PlanNotSigned, NotAPart, NotForThisSite: it is not let in, and why.
        """
        now = time.time() if now is None else now
        if outside.kind not in KINDS:
            raise Refused(f"this site answers no request of the kind {outside.kind[:40]!r}")
        if outside.sender != SERVER or outside.receiver != node or outside.reply_to:
            raise Refused("the request is not from the coordinator's server to this node")
        signed = self._verify(settings, now)
        try:
            whole, plan = plan_from_json(signed.plan), plan_from_json(signed.part)
        except (ValidationError, RecursionError) as error:
            raise Refused(f"the plan of run {signed.run!r} is none: {type(error).__name__}") from error
        check_part(whole, plan)
        if plan != whole and not self._policy.allows("modes", whole.mode):
            raise Refused(f"the site's policy does not allow mode {whole.mode!r}, of which the request is a part")
        data = self._home.data_path(self._home.participant(plan).data)
        self._check_run(outside.run, signed)
        given = settings.get("server-round")
        number = given if isinstance(given, int) and not isinstance(given, bool) else None
        noisy = {"train": plan.privacy is not None, "evaluate": self._policy.rules(data).noise is not None}
        return Admitted(outside.kind, signed.run, plan, number, noisy.get(outside.kind, False))

    def _verify(self, settings: Mapping[str, object], now: float) -> SignedPlan:
        """Return what a key in the welcome signed, if the policy knows the coordinator by that key."""
        keys = self._welcome.plan_keys(now)
        key = next((each for each in keys if is_signed(settings, each)), keys[0])
        if self._policy.coordinator(key.public_bytes_raw()) is None:
            raise Refused(
                "the site's policy names no coordinator with the plan key "
                f"{grouped(fingerprint(key))}; its operator can add it"
            )
        return verify_plan(settings, key, now)

    def _check_run(self, run: int, signed: SignedPlan) -> None:
        """Check that a run's later requests bring the plan of its first."""
        first = self._runs.setdefault(run, signed)
        if (first.run, first.plan) != (signed.run, signed.plan):
            raise Refused(f"run {signed.run!r} came with another plan before; a run keeps the plan it began with")
        while len(self._runs) > _REMEMBERED:
            del self._runs[next(iter(self._runs))]
