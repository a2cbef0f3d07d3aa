"""A message's content in one object: Flower sends each record and each array as an object of its own, in a request of
its own, which costs 10 ms and more on both sides; a small network has a dozen of them.

A packed content is one record of settings, "packed": `header` says in JSON which records there were, and `arrays` holds
the bytes of all arrays, one after the other. Above 4 MiB these travel as one array beside it, which Flower cuts into
pieces. Nothing is compressed, nothing is pickled. A site packs its reply if it was asked by a packed message, so a
coordinator or a site that does not know this form is never sent it.
"""

import base64
import json
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from astrofed.shared import records
from astrofed.shared.errors import AstrofedError

NAME, FORMAT = "packed", 1
STYPE = "astrofed.packed"  # in the place of Flower's name for how an array's bytes are to be read
INLINE = 4 * 2**20  # bytes of arrays that travel in the record itself
_KINDS = {ArrayRecord: "arrays", MetricRecord: "metrics", ConfigRecord: "config"}


class MalformedPack(AstrofedError):
    """A packed content that can't be what its header says."""


def is_packed(content: RecordDict) -> bool:
    """Whether a content has the packed form."""
    return NAME in content and isinstance(content[NAME], ConfigRecord)


def pack(content: RecordDict) -> RecordDict:
    """Return a content of any records in its packed form; the arrays' bytes are copied once."""
    header: list[list[Any]] = []
    data: list[bytes] = []
    for name, record in content.items():
        kind = next(kind for cls, kind in _KINDS.items() if isinstance(record, cls))
        if isinstance(record, ArrayRecord):
            header.append([name, kind, [[k, a.dtype, list(a.shape), a.stype, len(a.data)] for k, a in record.items()]])
            data.extend(array.data for array in record.values())
        else:
            header.append([name, kind, [[key, _to_json(value)] for key, value in record.items()]])
    blob = b"".join(data)
    settings: dict[str, Any] = {"format": FORMAT, "header": json.dumps(header, separators=(",", ":"))}
    if len(blob) <= INLINE:
        return records.content({NAME: ConfigRecord({**settings, "arrays": blob})})
    array = Array("uint8", (len(blob),), STYPE, blob)
    return records.content({NAME: ConfigRecord(settings), "arrays": records.arrays({"arrays": array})})


def unpack(content: RecordDict) -> RecordDict:
    """Return the content that was packed.

    Raises:
        MalformedPack: the header can't be read, or the bytes are not as many as it says.
    """
    header = _header(content)
    blob = _blob(content)
    found: dict[str, records.Record] = {}
    start = 0
    for name, kind, items in header:
        if kind == "arrays":
            arrays: dict[str, Array] = {}
            for key, dtype, shape, stype, size in items:
                if not isinstance(size, int) or size < 0 or start + size > len(blob):
                    raise MalformedPack(f"array {str(key)[:80]!r} would end after the {len(blob)} bytes that came")
                arrays[key] = Array(dtype, tuple(shape), stype, blob[start : start + size])
                start += size
            found[name] = records.arrays(arrays)
        else:
            found[name] = _settings(name, kind, items)
    if start != len(blob):
        raise MalformedPack(f"the header speaks of {start} bytes of arrays; {len(blob)} came")
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


def _blob(content: RecordDict) -> bytes:
    record, arrays = content[NAME], content.get("arrays")
    assert isinstance(record, ConfigRecord)
    blob = record.get("arrays")
    if blob is None and isinstance(arrays, ArrayRecord) and "arrays" in arrays:
        blob = arrays["arrays"].data
    if not isinstance(blob, bytes):
        raise MalformedPack("the packed content comes without the bytes of its arrays")
    return blob


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
