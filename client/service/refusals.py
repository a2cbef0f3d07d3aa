"""Why a request to the coordinator's server did not do what it should, in the words and classes of a site's node."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from astrofed.shared.errors import AstrofedError


class Unreachable(AstrofedError):
    """The server can't be reached, or is not ready; to be tried again."""


class NotAdmitted(AstrofedError):
    """The server does not accept this node's key."""


class RunOver(AstrofedError):
    """The run to which a message belongs does not run any more."""


class BadAnswer(AstrofedError):
    """The server's answer is none that the protocol knows."""


class TooLarge(AstrofedError):
    """A message is larger than this site takes, or a reply larger than the server does."""


def refusal(address: str, path: str, status: int, headers: Mapping[str, str]) -> AstrofedError:
    """Return the error that says what a status other than 200 means; `headers` by their names in small letters."""
    if status == 412 and path == "activate-node":
        return NotAdmitted(
            f"{address} has not enrolled this node's key, or takes a node with this key for connected (up to a minute "
            "after a crash)"
        )
    if status == 401:
        return NotAdmitted(f"{address} does not accept this node's key: not enrolled there, or revoked{_skew(headers)}")
    if status == 413:
        return TooLarge(f"{address} takes no request as large as this reply's")
    if status == 507:
        return Unreachable(f"{address} takes nothing: its disk is full (HTTP 507); its operator has to free space")
    if status in (408, 425, 429, 502, 503, 504):
        return Unreachable(f"{address} is not ready (HTTP {status})")
    return BadAnswer(f"{address} answered {path} with HTTP {status}")


def _skew(headers: Mapping[str, str]) -> str:
    """Return what to say of the clocks, where they differ by more than the signed time may."""
    try:
        ahead = time.time() - parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return "; a clock that is wrong by more than five seconds looks the same"
    if abs(ahead) < 4:
        return ""
    way = "ahead of" if ahead > 0 else "behind"
    return f" - or rather: the clock here is {abs(ahead):.0f} s {way} the server's; set it right"


def in_words(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY" in text:
        return "its certificate is not by the coordinator's CA, or not for this name"
    return text
