"""Screening: which replies of a round can be used, and for each of the others the reason why not.

Every reply passes here before any strategy sees it, ours or one of Flower's. Nothing that a reply holds raises an
error: what can't be used is rejected with a reason. What can is rebuilt to one form, so that strategies that trust
their replies can't be misled by names, order, types or counts. Array buffers are never copied.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from astrofed.server.aggregation.updates import Updates
from astrofed.shared import records
from astrofed.shared.array_forms import PART, parts, renamed, view
from astrofed.shared.arrays import Expected, only_finite
from astrofed.shared.npy import MalformedArray

LARGEST = float(np.finfo(np.float32).max)
"""Bound on every value: squares of it, summed over any model, stay within float64."""
COUNT = "num-examples"
_TEXT = 200  # characters of a reason that come from a reply
_NAMES = 5  # of a reason's list of arrays
_POOLS = ("median:", "mean:")
RecordT = TypeVar("RecordT", ArrayRecord, MetricRecord)
Number = int | float


@dataclass(frozen=True)
class Rejected:
    """A reply that is not used, or one that never came, and why."""

    node_id: int
    reason: str


class _Unusable(Exception):
    """Carries a reason from a check to the reply that failed it."""


def screen_training(
    replies: Iterable[Message],
    reference: Mapping[str, NDArray[Any]],
    expected: Mapping[int, int],
    *,
    questions: Mapping[int, str] | None = None,
    max_norm: float | None = None,
) -> tuple[list[Message], list[Rejected]]:
    """Return the usable replies to train messages, rebuilt, and the rejected ones.

    Args:
        replies: what came, in any order.
        reference: the global model that was sent; a reply must hold the same names, shapes and dtypes.
        expected: by node that was asked, the number of training examples that its site enrolled with.
        questions: by node, the id of the message that it was asked by; a reply to another one is stale.
        max_norm: the largest length that an update (the reply's model minus the reference) may have.

    Returns:
        Messages in the order of `expected`, each with the record "arrays" in the order of `reference` and the record
        "metrics" with the numbers that all of these replies have, and as "num-examples" what the site enrolled with;
        and whom to leave out and why.
    """
    usable: dict[int, tuple[Message, ArrayRecord, dict[str, Number]]] = {}
    singles, rejected = _one_each(replies, list(expected))
    forms = {name: Expected.like(array) for name, array in reference.items()}
    for node, reply in singles.items():
        try:
            if questions is not None and records.answered(reply) != questions[node]:
                raise _Unusable("stale: it answers another message than this round's")
            content = _content(reply, "train")
            arrays = _model(_only(content, ArrayRecord, "arrays"), reference, forms, max_norm)
            usable[node] = reply, arrays, _training_metrics(_only(content, MetricRecord, "metrics"), expected[node])
        except _Unusable as unusable:
            rejected.append(Rejected(node, str(unusable)))
    told = [metrics for _, _, metrics in usable.values()]
    shared = [key for key in (told[0] if told else {}) if all([key in metrics for metrics in told])]
    accepted = []
    for reply, arrays, metrics in usable.values():
        record = records.metrics({key: metrics[key] for key in shared})
        accepted.append(records.with_content(reply, records.content({"arrays": arrays, "metrics": record})))
    return accepted, _in_order(rejected, expected)


def screen_evaluation(
    replies: Iterable[Message], expected_nodes: Sequence[int]
) -> tuple[dict[int, dict[str, float]], list[Rejected]]:
    """Return each node's finite metrics, in the order of `expected_nodes`, and the rejected ones; "loss" is a must."""
    by_node: dict[int, dict[str, float]] = {}
    singles, rejected = _one_each(replies, expected_nodes)
    for node, reply in singles.items():
        try:
            record = _only(_content(reply, "evaluate"), MetricRecord, "metrics")
            if "loss" not in record:
                raise _Unusable("its metrics lack 'loss'")
            _number("loss", record["loss"])
            by_node[node] = {key: float(value) for key, value in record.items() if _is_number(value)}  # type: ignore[arg-type]
        except _Unusable as unusable:
            rejected.append(Rejected(node, str(unusable)))
    return by_node, _in_order(rejected, expected_nodes)


def screen_statistics(
    replies: Iterable[Message], expected_nodes: Sequence[int]
) -> tuple[dict[int, dict[str, NDArray[np.float64]]], list[Rejected]]:
    """Return each node's statistics, in the order of `expected_nodes`, and the rejected replies.

    Names and shapes are those that most nodes with statistics have (of equally many, those of the first such node). A
    node without statistics is not rejected; its entry is empty.
    """
    by_node: dict[int, dict[str, NDArray[np.float64]]] = {}
    singles, rejected = _one_each(replies, expected_nodes)
    for node, reply in singles.items():
        try:
            by_node[node] = _statistics(_only(_content(reply, "query"), ArrayRecord, "arrays"))
        except _Unusable as unusable:
            rejected.append(Rejected(node, str(unusable)))
    layouts = {node: _layout(arrays) for node, arrays in by_node.items() if arrays}
    usual = Counter(layouts.values()).most_common(1)
    for node, layout in layouts.items():
        if layout != usual[0][0]:
            del by_node[node]
            rejected.append(Rejected(node, "the names or shapes of its statistics are not those of most sites"))
    return by_node, _in_order(rejected, expected_nodes)


def pool_statistics(by_node: Mapping[int, Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    """Pool screened statistics over nodes by the prefix of each name: "median:" (of each coordinate) or "mean:"."""
    entries = [entry for entry in by_node.values() if entry]
    pooled = {}
    for key in entries[0] if entries else ():
        stack = np.stack([entry[key] for entry in entries])
        pooled[key] = np.asarray(np.median(stack, axis=0) if key.startswith("median:") else stack.mean(axis=0))
    return pooled


def _one_each(replies: Iterable[Message], expected: Iterable[int]) -> tuple[dict[int, Message], list[Rejected]]:
    """Return the nodes' replies where there is exactly one, in the order of `expected`."""
    found: dict[int, list[Message]] = {node: [] for node in expected}
    rejected = []
    for reply in replies:
        node = records.sender(reply)
        if node in found:
            found[node].append(reply)
        else:
            rejected.append(Rejected(node, "it was not asked"))
    for node, own in found.items():
        if len(own) > 1:
            rejected.append(Rejected(node, f"{len(own)} replies; nothing says which is meant, so none is used"))
        elif not own:
            rejected.append(Rejected(node, "no reply"))
    return {node: own[0] for node, own in found.items() if len(own) == 1}, rejected


def _in_order(rejected: Sequence[Rejected], expected: Iterable[int]) -> list[Rejected]:
    order = {node: index for index, node in enumerate(expected)}
    return sorted(rejected, key=lambda item: order.get(item.node_id, len(order)))


def _content(reply: Message, kind: str) -> Mapping[str, records.Record]:
    if reply.has_error():
        raise _Unusable(_printable(reply.error.reason or "") or f"error {reply.error.code} without a reason")
    if not reply.has_content():
        raise _Unusable("the reply is empty")
    told = records.kind(reply)
    if told != kind and str(told).partition(".")[0] != kind:
        raise _Unusable(f"a reply of type {_printable(str(told))!r}; {kind!r} was asked for")
    return records.held(reply)


def _only(content: Mapping[str, records.Record], kind: type[RecordT], name: str) -> RecordT:
    found = [record for record in content.values() if isinstance(record, kind)]
    if len(found) != 1:
        raise _Unusable(f"no {name}" if not found else f"{len(found)} records of {name}; exactly one is read")
    return found[0]


def _model(
    record: ArrayRecord,
    reference: Mapping[str, NDArray[Any]],
    forms: Mapping[str, Expected],
    max_norm: float | None,
) -> ArrayRecord:
    """Return the record's arrays in the order of the model, if they are the model's."""
    held = records.items(record)
    if held.keys() != reference.keys():
        absent = [name for name in reference if name not in held]
        unknown = [name for name in held if name not in reference]
        raise _Unusable(f"the arrays are not the model's: absent {_names(absent)}, unknown {_names(unknown)}")
    whole: dict[str, Array] = {}
    for name, form in forms.items():
        array = held[name]
        if form.fits(array):
            _check_finite(form.flat(array), name)
        else:
            _check_array(_read(array, name), reference[name], name)
        # Array's own dtype and shape are claims; these are what the bytes hold.
        whole[name] = renamed(array, form.dtype, form.shape)
    if max_norm is not None:
        model = {name: view(array, name) for name, array in whole.items()}
        if (norm := _norm(reference, model)) > max_norm:
            raise _Unusable(f"its update is {norm:.4g} long; the plan allows {max_norm:.4g}")
    return records.arrays(whole)


def _check_array(new: NDArray[Any], old: NDArray[Any], name: str) -> None:
    if new.shape != old.shape:
        raise _Unusable(f"array {name!r} has the shape {_printable(str(new.shape))}; the model's is {old.shape}")
    if new.dtype != old.dtype:
        raise _Unusable(f"array {name!r} is of type {_printable(str(new.dtype))}; the model's is {old.dtype}")
    _check_finite(new, name)


def _norm(reference: Mapping[str, NDArray[Any]], model: Mapping[str, NDArray[Any]]) -> float:
    return math.sqrt(sum(float(np.vdot(block.rows, block.rows)) for block in Updates(reference, [model]).blocks([0])))


def _read(array: Array, name: str) -> NDArray[Any]:
    try:
        return view(array, name)
    except MalformedArray as error:
        raise _Unusable(_printable(str(error))) from None


def _check_finite(array: NDArray[Any], name: str) -> None:
    if array.dtype.kind != "f":
        return
    if array.ndim == 1 and array.nbytes <= PART and array.dtype.itemsize <= 4 and only_finite(array):
        return
    unusable = not_finite = 0
    for part in parts(array):
        if part.dtype.itemsize <= 4 and only_finite(part):
            continue
        usable = np.abs(part) <= LARGEST if part.dtype.itemsize > 4 else np.isfinite(part)
        if not usable.all():
            unusable += part.size - int(np.count_nonzero(usable))
            not_finite += part.size - int(np.count_nonzero(np.isfinite(part)))
    if unusable:
        limit = "" if unusable == not_finite else f" or beyond {LARGEST:.2g}"
        raise _Unusable(f"array {name!r} holds {unusable} values of {array.size} that are not finite{limit}")


def _training_metrics(record: MetricRecord, enrolled: int) -> dict[str, Number]:
    held = records.items(record)
    if COUNT not in held:
        raise _Unusable(f"its metrics lack {COUNT!r}")
    metrics = {key: _number(key, value) for key, value in held.items()}
    count = metrics[COUNT]
    if count != int(count) or count < 1:
        raise _Unusable(f"{COUNT} is {count}; it must be a positive whole number")
    if count > enrolled:
        raise _Unusable(f"{COUNT} is {count}, but the site enrolled with {enrolled}")
    metrics[COUNT] = enrolled
    return metrics


def _statistics(record: ArrayRecord) -> dict[str, NDArray[np.float64]]:
    arrays = {}
    for name, array in record.items():
        shown = _printable(name)
        if not name.startswith(_POOLS):
            raise _Unusable(f"statistic {shown!r} does not say how it is pooled: its name must begin with {_POOLS}")
        value = _read(array, name)
        if value.dtype.kind != "f":
            raise _Unusable(f"statistic {shown!r} is of type {_printable(str(value.dtype))}; it must be of floats")
        _check_finite(value, shown)
        arrays[name] = value.astype(np.float64)
    return arrays


def _layout(arrays: Mapping[str, NDArray[np.float64]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((name, array.shape) for name, array in arrays.items()))


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def _number(key: str, value: object) -> Number:
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, int | float) and _is_number(value):
        return int(value) if isinstance(value, int) else float(value)
    key = _printable(key)
    if isinstance(value, int):
        raise _Unusable(f"metric {key!r} is an integer beyond 64 bits")
    raise _Unusable(f"metric {key!r} is {'a list' if isinstance(value, list) else value}; it must be one finite number")


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(_printable(name)) for name in names[:_NAMES])
    return (shown + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")) or "none"


def _printable(text: str) -> str:
    """Return a reply's own words so that they can stand in a record and on a terminal."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _TEXT]).strip()
    return clean if len(clean) <= _TEXT else clean[: _TEXT - 1] + "…"
