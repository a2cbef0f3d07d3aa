"""The little of ASGI that gateway and link use: types, and how an answer is sent."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Refused(Exception):
    """A request that is not done: status, what the caller is told, and why and by whom for the log."""

    def __init__(self, status: int, public: str, reason: str, who: str = "nobody") -> None:
        super().__init__(reason)
        self.status, self.public, self.reason, self.who = status, public, reason, who


async def answer(send: Send, status: int, kind: str, body: bytes, more: Sequence[tuple[str, str]] = ()) -> None:
    """Send a whole answer with its content type and further headers."""
    given = [("content-type", kind), ("content-length", str(len(body))), *more]
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def headers_of(scope: Scope) -> dict[str, str]:
    """Return a request's headers by their names in small letters."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
