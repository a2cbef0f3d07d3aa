"""What our gateway and our node say to each other beyond Flower's Fleet API. A node that knows none of it works too.

A request to `pull-messages` or to `PULL` that carries the header `WAIT_HEADER` (seconds) is held until there is a
message for the node, or that time is over: no polling, and a message is there at once.

Flower moves a message as a tree of objects, each by a request of its own, some forty for a small model. Two more paths
of the gateway move a message with its objects in one body, a sequence of frames:

* `PULL`: the request's body is a PullMessagesRequest; the answer's frames are a PullMessagesResponse and, for each
  object of the message that the answer has room for, a PushObjectRequest with `object_id` and `object_content`. What
  had no room is fetched by `pull-object`. The node confirms the message by `confirm-message-received` as always.
* `PUSH`: the request's frames are a PushMessagesRequest and a PushObjectRequest for each object that is sent along; the
  answer's body is a PushMessagesResponse, whose `objects_to_push` are still to be sent by `push-object`.

Both carry the same signed headers as every request of the Fleet API. A server without these paths answers 404.
"""

from collections.abc import Iterable, Iterator

WAIT_HEADER = "astrofed-wait"
MAX_WAIT_S = 25.0
PULL, PUSH = "/v1/astrofed/pull", "/v1/astrofed/push"
MAX_BODY = 16 * 1024 * 1024  # bytes of one request's or answer's frames
MEDIA_TYPE = "application/x-astrofed-frames"


class BadFrames(ValueError):
    """Bytes that are not a sequence of whole frames."""


def join_frames(frames: Iterable[bytes]) -> bytes:
    """Return frames as one body, each after its length in 8 bytes, big-endian."""
    return b"".join(part for frame in frames for part in (len(frame).to_bytes(8), frame))


def split_frames(body: bytes) -> Iterator[memoryview]:
    """Yield the frames of a body, without copying them.

    Raises:
        BadFrames: the body ends within a frame.
    """
    view, position = memoryview(body), 0
    while position < len(view):
        end = position + 8 + int.from_bytes(view[position : position + 8])
        if end > len(view) or position + 8 > len(view):
            raise BadFrames(f"a frame that begins at byte {position} ends beyond the body's {len(view)} bytes")
        yield view[position + 8 : end]
        position = end
