"""A message's content in one object: Flower sends each record and each array as an object of its own, in a request of
its own, which costs 10 ms and more on both sides; a small network has a dozen of them.

A packed content is one record of settings, "packed": `header` says in JSON which records there were, and `arrays` holds
the bytes of all arrays, one after the other. Above 4 MiB these lie in a blob, of which the record has the name; where
there is no place for blobs, they travel as one array beside the record, which Flower cuts into pieces. Nothing is
compressed, nothing is pickled. A site replies in the form in which it was asked (`Form`), so a coordinator or a site
that does not know one is never sent it.
"""

import base64
import json
from collections.abc import Callable
from enum import Enum
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from astrofed.shared import records
from astrofed.shared.array_forms import in_file, pieces, size
from astrofed.shared.blobs import Blob, Blobs, WrongBlob
from astrofed.shared.errors import AstrofedError

NAME, FORMAT = "packed", 1
STYPE = "astrofed.packed"  # in the place of Flower's name for how an array's bytes are to be read
INLINE = 4 * 2**20  # bytes of arrays that travel in the record itself
_KINDS = {ArrayRecord: "arrays", MetricRecord: "metrics", ConfigRecord: "config"}


class Form(Enum):
    """In which form a content came."""

    PLAIN, PACKED, WITH_BLOBS = "plain", "packed", "with blobs"


class MalformedPack(AstrofedError):
    """A packed content that can't be what its header says."""


def blob_id(tree: ObjectTree) -> str | None:
    """Return the id of a packed message's blob: the lone child of the lone record of its content."""
    node = tree
    for _ in range(3):
        if len(node.children) != 1:
            return None
        node = node.children[0]
    return None if node.children else str(node.object_id)


def form_of(content: RecordDict) -> Form:
    """Return the form that a content has."""
    record = content.get(NAME)
    if not isinstance(record, ConfigRecord):
        return Form.PLAIN
    return Form.WITH_BLOBS if record.get("blobs") is True else Form.PACKED


def is_packed(content: RecordDict) -> bool:
    """Whether a content has one of the packed forms."""
    return form_of(content) is not Form.PLAIN


def blob_of(record: ConfigRecord) -> Blob | None:
    """Return the blob that a packed record names, if it does.

    Raises:
        MalformedPack: what it names can't be one.
    """
    if "blob" not in record:
        return None
    identifier, count = record["blob"], record.get("bytes")
    if not isinstance(identifier, str) or type(count) is not int:
        raise MalformedPack("the packed content names a blob that can't be one")
    try:
        return Blob(identifier, count)
    except WrongBlob as error:
        raise MalformedPack(str(error)) from error


def pack(content: RecordDict, blobs: Blobs | None = None, *, flush: bool = False) -> RecordDict:
    """Return a content of any records in its packed form, with `blobs` as a place for large arrays.

    The arrays' bytes are copied once, or written to the disk once; for `flush` see `Blobs.write`.

    Raises:
        CannotWrite: the disk is full.
    """
    header: list[list[Any]] = []
    arrays: list[Array] = []
    for name, record in content.items():
        kind = next(kind for cls, kind in _KINDS.items() if isinstance(record, cls))
        if isinstance(record, ArrayRecord):
            header.append([name, kind, [[k, a.dtype, list(a.shape), a.stype, size(a)] for k, a in record.items()]])
            arrays.extend(record.values())
        else:
            header.append([name, kind, [[key, _to_json(value)] for key, value in record.items()]])
    settings: dict[str, Any] = {"format": FORMAT, "header": json.dumps(header, separators=(",", ":"))}
    if blobs is not None:
        settings["blobs"] = True
    data = (piece for array in arrays for piece in pieces(array))
    small = sum(map(size, arrays)) <= INLINE
    if blobs is not None and not small:
        blob = blobs.write(data, flush=flush)
        return records.content({NAME: ConfigRecord({**settings, "blob": blob.id, "bytes": blob.size})})
    whole = b"".join(data)
    if small:
        return records.content({NAME: ConfigRecord({**settings, "arrays": whole})})
    array = Array("uint8", (len(whole),), STYPE, whole)
    return records.content({NAME: ConfigRecord(settings), "arrays": records.arrays({"arrays": array})})


def unpack(content: RecordDict, blobs: Blobs | None = None) -> RecordDict:
    """Return the content that was packed; arrays of a blob stay in its file.

    Raises:
        MalformedPack: the header can't be read, or the bytes are not as many as it says.
        WrongBlob: the blob that it names is not there.
    """
    header = _header(content)
    there, cut = _source(content, blobs)
    found: dict[str, records.Record] = {}
    start = 0
    for name, kind, items in header:
        if kind == "arrays":
            arrays: dict[str, Array] = {}
            for key, dtype, shape, stype, count in items:
                if not isinstance(count, int) or count < 0 or start + count > there:
                    raise MalformedPack(f"array {str(key)[:80]!r} would end after the {there} bytes that came")
                arrays[key] = cut(dtype, tuple(shape), stype, start, count)
                start += count
            found[name] = records.arrays(arrays)
        else:
            found[name] = _settings(name, kind, items)
    if start != there:
        raise MalformedPack(f"the header speaks of {start} bytes of arrays; {there} came")
    return records.content(found)


def settings_of(content: RecordDict, name: str) -> ConfigRecord:
    """Return one record of settings out of a packed content without touching its arrays.

    Raises:
        MalformedPack: there is none of that name.
    """
    for found, kind, items in _header(content):
        if found == name and kind == "config":
            record = _settings(name, kind, items)
            assert isinstance(record, ConfigRecord)
            return record
    raise MalformedPack(f"the packed content has no record of settings {name!r}")


def _header(content: RecordDict) -> list[tuple[str, str, list[Any]]]:
    record = content.get(NAME)
    if not isinstance(record, ConfigRecord) or record.get("format") != FORMAT:
        raise MalformedPack(f"the content is not packed in format {FORMAT}; both sides need the same release")
    try:
        rows = json.loads(str(record["header"]))
        header = [(name, kind, items) for name, kind, items in rows]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise MalformedPack("the packed content's header can't be read") from error
    if not all(type(name) is str and kind in _KINDS.values() and type(items) is list for name, kind, items in header):
        raise MalformedPack("the packed content's header names records of an unknown kind")
    if not all(_is_item(item, kind) for _, kind, items in header for item in items):
        raise MalformedPack("the packed content's header is not built as it should be")
    return header


def _is_item(item: object, kind: str) -> bool:
    if not isinstance(item, list) or len(item) != (5 if kind == "arrays" else 2) or not isinstance(item[0], str):
        return False
    if kind != "arrays":
        return True
    _, dtype, shape, stype, _ = item
    return isinstance(dtype, str) and isinstance(stype, str) and isinstance(shape, list) and all(
        type(side) is int for side in shape
    )  # fmt: skip


def _source(content: RecordDict, blobs: Blobs | None) -> tuple[int, Callable[..., Array]]:
    """Return how many bytes of arrays there are, and what makes an array of some of them."""
    record, arrays = content[NAME], content.get("arrays")
    assert isinstance(record, ConfigRecord)
    blob = blob_of(record)
    if blob is not None and blobs is not None:
        file = blobs.open(blob)
        return blob.size, lambda dtype, shape, stype, start, count: in_file(dtype, shape, stype, file, start, count)
    whole = record.get("arrays")
    if whole is None and isinstance(arrays, ArrayRecord) and "arrays" in arrays:
        whole = arrays["arrays"].data
    if not isinstance(whole, bytes):
        raise MalformedPack("the packed content comes without the bytes of its arrays")
    return len(whole), lambda dtype, shape, stype, start, count: Array(
        dtype, shape, stype, whole[start : start + count]
    )


def _settings(name: str, kind: str, items: list[Any]) -> ConfigRecord | MetricRecord:
    try:
        values = {key: _from_json(value) for key, value in items}
        return ConfigRecord(values) if kind == "config" else MetricRecord(values)
    except (TypeError, ValueError, KeyError) as error:
        raise MalformedPack(f"record {name[:80]!r} holds a value that it can't hold") from error


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    return [_to_json(item) for item in value] if isinstance(value, list) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["bytes"], validate=True)
    return [_from_json(item) for item in value] if isinstance(value, list) else value
