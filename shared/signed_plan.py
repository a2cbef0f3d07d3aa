"""Signed plans: how a coordinator says that a plan is its own, for one run and for a limited time (Ed25519, RFC 8032).

The signature travels beside the plan in the record "config" of each message: `plan-signature`, `plan-run`,
`plan-issued`, `plan-expires`. A site verifies it against the key in its welcome before anything else looks at the plan.
What is signed is a prefix that no other signature of ours has, and each field with its length before it, so that no
two plans have the same form.

A search or an evolution runs parts of the plan that was signed (`part_of_plan`). Then `plan` is the part, and the
signed plan travels beside it as `plan-whole`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from astrofed.shared.errors import UserMistake

PLAN, SIGNATURE, RUN, ISSUED, EXPIRES = "plan", "plan-signature", "plan-run", "plan-issued", "plan-expires"
WHOLE = "plan-whole"
SKEW_S = 300  # by how much the clocks of site and server may differ
_DOMAIN = b"astrofed signed plan 1\0"


class PlanNotSigned(UserMistake):
    """A plan carries no signature, or one that is not by the coordinator's key, or is out of its time."""


@dataclass(frozen=True)
class SignedPlan:
    """A plan whose signature was verified."""

    plan: str  # JSON, as `Plan.to_json` wrote it
    part: str  # the plan of this message; no signature covers it where it is not `plan` itself
    run: str  # the run's name on the coordinator's server
    issued: int  # seconds since 1970, UTC
    expires: int


def sign_plan(plan: str, run: str, issued: int, expires: int, key: Ed25519PrivateKey) -> dict[str, str | int | bytes]:
    """Return the entries of a message's "config" record that carry a plan with its signature."""
    signature = key.sign(_encode(plan, run, issued, expires))
    return {PLAN: plan, SIGNATURE: signature, RUN: run, ISSUED: issued, EXPIRES: expires}


def with_part(signed: Mapping[str, str | int | bytes], part: str) -> dict[str, str | int | bytes]:
    """Return the entries that carry a part of a signed plan."""
    return {**signed} if part == signed[PLAN] else {**signed, PLAN: part, WHOLE: signed[PLAN]}


def verify_plan(config: Mapping[str, object], key: Ed25519PublicKey, now: float) -> SignedPlan:
    """Return the plan in a message's "config" record, if the key signed it and it is valid now (seconds since 1970).

    Raises:
        PlanNotSigned: an entry is missing or of another kind, the signature is not by this key, or its time is over.
    """
    part, run = config.get(PLAN), config.get(RUN)
    plan = config.get(WHOLE, part)
    issued, expires, signature = config.get(ISSUED), config.get(EXPIRES), config.get(SIGNATURE)
    if not isinstance(plan, str) or not isinstance(part, str):
        raise PlanNotSigned("the message carries no plan; only a coordinator's signed plans are run here")
    if not isinstance(run, str) or not isinstance(signature, bytes):
        raise PlanNotSigned("the message carries no signed plan; only a coordinator's signed plans are run here")
    if not _is_time(issued) or not _is_time(expires):
        raise PlanNotSigned("the plan's signature says no time for which it is valid")
    assert isinstance(issued, int) and isinstance(expires, int)
    try:
        key.verify(signature, _encode(plan, run, issued, expires))
    except InvalidSignature:
        raise PlanNotSigned(
            f"the plan of run {run[:80]!r} is not signed by the coordinator's key in this site's welcome"
        ) from None
    if now < issued - SKEW_S:
        raise PlanNotSigned(
            f"the plan of run {run!r} is from the future by {issued - now:.0f} s; compare the clocks of site and server"
        )
    if now > expires + SKEW_S:
        raise PlanNotSigned(f"the plan of run {run!r} was valid until {now - expires:.0f} s ago; submit it again")
    return SignedPlan(plan, part, run, issued, expires)


def is_signed(config: Mapping[str, object], key: Ed25519PublicKey) -> bool:
    """Whether that key signed the plan in a message's "config" record, at whatever time."""
    issued = config.get(ISSUED)
    try:
        verify_plan(config, key, float(issued) if _is_time(issued) else 0.0)  # type: ignore[arg-type]
    except PlanNotSigned:
        return False
    return True


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _encode(plan: str, run: str, issued: int, expires: int) -> bytes:
    fields = [run.encode(), b"%d" % issued, b"%d" % expires, plan.encode()]
    return _DOMAIN + b"".join(len(field).to_bytes(8) + field for field in fields)
