"""One size of `astrofed bench aggregation`, measured in a process of its own, on one pinned thread.

`python -m astrofed.simulations.bench.aggregation_size REQUEST RESULT`: the request as JSON, the result's file.
"""

import importlib
import importlib.util
import logging
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.supercore.task_identity import TaskIdentity
from pydantic import TypeAdapter

from astrofed.server.aggregation.passes import MANY
from astrofed.shared.memory import free_memory
from astrofed.simulations.bench.aggregation_peers import (
    BYZFL_NUMPY,
    FLOWER,
    byzfls,
    flowers,
    gram_pass,
    likely_memory,
    mixings,
    through_arrays,
    through_messages,
)
from astrofed.simulations.bench.aggregation_reference import expected_weights, largest_deviation, update_gram
from astrofed.simulations.bench.aggregation_result import PeerTime, RuleRow, Size
from astrofed.simulations.bench.aggregation_work import CASES, KINDS, MIXED, NAME, Case, Replies
from astrofed.simulations.bench.bandwidth import BYTES, read_bandwidth, total
from astrofed.simulations.bench.memory import peak_beyond
from astrofed.simulations.bench.others import Others
from astrofed.simulations.bench.turns import Call, alternate, ratio

ARRAYS, MESSAGES, GRAM = "ours", "ours, messages", "gram pass"


@dataclass(frozen=True)
class Request:
    """What is to be measured."""

    n: int
    d: int
    rounds: int  # of the peers in turn
    patience: float  # seconds for a peer at each rule; one that has taken more leaves the other rounds out
    memory: dict[str, float]  # what peers need, by rule and name, in multiples of the replies, from a smaller d


def measure(request: Request) -> Size:
    """Measure all rules at one size; this process should run on one thread, pinned to one core of two."""
    cores, others = sorted(os.sched_getaffinity(0)), Others()
    os.sched_setaffinity(0, cores[:1])
    size = Size(request.n, request.d, read_bandwidth(1, request.rounds), blas=_blas())
    free, needed = free_memory(), 4 * request.n * request.d
    if free is not None and free < 1.2 * needed:
        return replace(size, note=f"not evaluable: the replies are {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    _warm_up(request.n)
    deviations: dict[str, dict[str, float]] = {case.name: {} for case in CASES}
    for kind in reversed(KINDS):  # the first is kept for what follows
        _say(request, f"deviations, {kind}")
        replies = Replies(request.n, request.d, kind)
        for name, value in _deviations(replies).items():
            deviations[name][kind] = value
        if kind != KINDS[0]:
            del replies  # before the next are made
    rows = []
    for case in CASES:
        _say(request, case.name)
        row = _timed(case, replies, request)
        rows.append(replace(row, extra=_extra(case, replies, cores), deviations=deviations[case.name]))
    _say(request, "Gram passes")
    rows = _gram_passes(rows, replies, request)
    bandwidth = max(size.read_bandwidth or 0.0, read_bandwidth(1, request.rounds))
    size = replace(size, read_bandwidth=bandwidth, plain_sum=_plain_sum(replies, request), others=others.cores())
    if len(cores) < 2:
        return replace(size, rows=tuple(rows), note="two threads: not evaluable on one core")
    _say(request, "two threads")
    others = Others()
    rows = _two_threads(rows, replies, request, cores[:2])
    os.sched_setaffinity(0, cores[:2])
    both = max(bandwidth, read_bandwidth(2, request.rounds))
    return replace(size, rows=tuple(rows), read_bandwidth_two=both, others_two=others.cores())


def _timed(case: Case, replies: Replies, request: Request) -> RuleRow:
    """Return the row of a rule with its time and its peers'."""
    ours, peers = {ARRAYS: through_arrays(case, replies)}, byzfls(case, replies)
    flower = flowers(case, replies)
    if flower is not None:  # before ByzFL's, whose matrix then takes no memory yet
        ours[MESSAGES], peers = through_messages(case, replies), {FLOWER: flower, **peers}
    skipped, matrix = [], float(BYZFL_NUMPY in peers)  # one of all replies, on top of what each needs
    for name in list(peers):
        multiple = request.memory.get(f"{case.name}: {name}", likely_memory(case, replies.n))
        reason = _too_large(replies, multiple + matrix)
        if reason is not None:
            skipped.append(PeerTime(name, note=reason))
            del peers[name]
    peaks: dict[str, int | None] = {}
    failed: dict[str, str] = {}
    times = alternate({**ours, **peers}, request.rounds, request.patience, peaks, failed)
    if (own := next((failed[name] for name in ours if name in failed), None)) is not None:
        raise RuntimeError(f"{case.name} failed with n = {replies.n}, d = {replies.d}: {own}")
    skipped += [PeerTime(name, note=f"failed: {failed[name]}") for name in peers if name in failed]
    peers = {name: call for name, call in peers.items() if name not in failed}
    found = [
        PeerTime(
            name,
            statistics.median(times[name]),
            len(times[name]),
            ratio(times[name], times[MESSAGES if name == FLOWER else ARRAYS]),
            None if peaks[name] is None else (peaks[name] or 0) / replies.nbytes,
        )
        for name in peers
    ]
    return RuleRow(
        case.name,
        case.f(replies.n),
        statistics.median(times[ARRAYS]),
        len(times[ARRAYS]),
        case.reads(replies.n),
        statistics.median(times[MESSAGES]) if MESSAGES in times else None,
        (*found, *skipped),
    )


def _plain_sum(replies: Replies, request: Request) -> float:
    """Return the seconds of a sum of each reply's values: as fast as these bytes can be read, after others were."""
    arrays, between = [array.reshape(-1) for reply in replies.arrays() for array in reply.values()], np.ones(BYTES // 8)
    calls = {"sum": Call(lambda _: [total(array) for array in arrays]), "between": Call(lambda _: total(between))}
    return statistics.median(alternate(calls, request.rounds, request.patience)["sum"])


def _too_large(replies: Replies, multiple: float) -> str | None:
    """Return why what needs so many times the replies' bytes can't run, if it can't."""
    free, needed = free_memory(), 1.1 * multiple * replies.nbytes
    if free is None or needed < free:
        return None
    return f"not evaluable: it needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"


def _gram_passes(rows: list[RuleRow], replies: Replies, request: Request) -> list[RuleRow]:
    """Return the rows with costs in Gram passes, and with those of the pass and of the pre-aggregators alone."""
    plain = Case("trimmed-mean")
    calls = {GRAM: gram_pass(replies), **mixings(replies)}
    calls |= {case.name: through_arrays(case, replies) for case in (plain, *MIXED)}
    times = alternate(calls, request.rounds, request.patience)
    gram = times[GRAM]
    more = {
        case.name: statistics.median(
            (mixed - alone) / one for mixed, alone, one in zip(times[case.name], times[plain.name], gram, strict=False)
        )
        for case in MIXED
    }
    alone = {name: f"{name} alone" if name != GRAM else GRAM for name in (GRAM, *mixings(replies))}
    return [
        *(replace(row, gram_passes=more.get(row.rule)) for row in rows),
        *(
            RuleRow(
                title,
                replies.n // 5,
                statistics.median(times[name]),
                len(times[name]),
                1.0,
                gram_passes=ratio(times[name], gram),
            )
            for name, title in alone.items()
        ),
    ]


def _two_threads(rows: list[RuleRow], replies: Replies, request: Request, cores: Sequence[int]) -> list[RuleRow]:
    """Return the rows of whole rules with how many times faster two threads are."""
    found = {}
    for case in CASES:
        run = through_arrays(case, replies).run
        calls = {str(count): Call(run, partial(os.sched_setaffinity, 0, cores[:count])) for count in (1, 2)}
        times = alternate(calls, request.rounds, request.patience)
        found[case.name] = ratio(times["1"], times["2"])
    return [replace(row, two_threads=found.get(row.rule)) for row in rows]


def _extra(case: Case, replies: Replies, cores: Sequence[int]) -> int | None:
    """Return bytes at the peak beyond the replies and the result, with one thread or with two, whichever needs more."""
    run, arrays = through_arrays(case, replies).run, replies.arrays()
    found = []
    for count in (2, 1):
        os.sched_setaffinity(0, cores[:count])
        result, peak = peak_beyond(lambda: run(None))
        new = result.arrays[NAME]
        own = not any(np.may_share_memory(new, reply[NAME]) for reply in arrays)
        found.append(None if peak is None else peak - own * new.nbytes)
        del result, new
    known = [extra for extra in found if extra is not None]
    return max(known) if known else None


def _deviations(replies: Replies) -> dict[str, float]:
    """Return each rule's largest relative deviation from its float64 reference."""
    model, values = replies.model[NAME], [reply[NAME] for reply in replies.arrays()]
    gram = update_gram(model, values)
    found = {}
    for case in CASES:
        f = case.f(replies.n)
        norm = case.options(replies.d).get("clip_norm", 0.0)
        result = through_arrays(case, replies).run(None).arrays[NAME]
        mixing = expected_weights(gram, case.pre, case.rule, f, norm)
        found[case.name] = largest_deviation(result, model, values, mixing, case.rule, f, replies.spread)
    return found


def _warm_up(n: int) -> None:
    """Have everything compiled, or read from the disk, before it counts."""
    small = Replies(n, MANY)  # a smaller model would not be sorted in registers
    for case in CASES:
        through_messages(case, small).run(small.messages())


def _blas() -> str:
    """Return which BLAS numpy and scipy use, on how many threads."""
    if importlib.util.find_spec("threadpoolctl") is None:
        built: Any = np.show_config(mode="dicts")
        return str(built["Build Dependencies"]["blas"]["name"])
    pools = importlib.import_module("threadpoolctl").threadpool_info()
    lines = sorted(
        f"{pool['internal_api']} {pool['version']} ({pool['architecture']}), {pool['num_threads']} thread(s)"
        for pool in pools
        if pool["user_api"] == "blas" and "architecture" in pool
    )
    return "; ".join(dict.fromkeys(lines))


def _say(request: Request, what: str) -> None:
    sys.stderr.write(f"n = {request.n}, d = {request.d:,}: {what}\n")
    sys.stderr.flush()


def main(request: str, result: str) -> None:
    """Measure what the request asks for and write the result."""
    logging.disable(logging.CRITICAL)  # Flower's strategies log each call
    torch.set_num_threads(1)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # without which there are no messages
    found = measure(TypeAdapter(Request).validate_json(request))
    Path(result).write_bytes(TypeAdapter(Size).dump_json(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
