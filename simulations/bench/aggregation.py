"""`astrofed bench aggregation`: our rules against Flower's and ByzFL's on the same replies, and against the memory.

Each size is measured in a new process, on one thread pinned to one core, its peers in turn; the two threads' speed in
the same process, pinned to two.
"""

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from astrofed.simulations.bench.aggregation_result import AggregationResult, Size
from astrofed.simulations.bench.aggregation_size import Request
from astrofed.simulations.bench.aggregation_targets import judge
from astrofed.simulations.bench.byzfl_peer import byzfl_aggregators
from astrofed.simulations.bench.result import this_machine

SIZES = tuple((n, d) for d in (1_000_000, 10_000_000) for n in (10, 30, 100))
QUICK = ((10, 1_000_000), (30, 1_000_000))
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
TUNING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # would have peers run on a BLAS that is not this machine's own


def run_aggregation_bench(quick: bool) -> AggregationResult:
    """Measure; `quick` has a million values only, at most 30 replies, and fewer repeats."""
    machine = this_machine()
    rounds, patience = (3, 0.5) if quick else (7, 2.0)
    memory: dict[int, dict[str, float]] = {n: {} for n, _ in SIZES}
    sizes = []
    for n, d in QUICK if quick else SIZES:
        size = measure_apart(Request(n, d, rounds, patience, memory[n]))
        peers = [(row.rule, peer) for row in size.rows for peer in row.peers]
        memory[n] |= {f"{rule}: {peer.peer}": peer.memory for rule, peer in peers if peer.memory is not None}
        sizes.append(replace(size, targets=judge(size)))
    byzfl = "installed" if byzfl_aggregators() is not None else "not installed: pip install --no-deps byzfl==0.0.11"
    settings = {"quick": quick, "threads": 1, "byzfl": byzfl, "rounds": rounds, "patience_s": patience}
    return AggregationResult(machine, tuple(sizes), settings)


def measure_apart(request: Request) -> Size:
    """Measure one size in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; what it wrote to the standard error has been passed on.
    """
    environment = {key: value for key, value in os.environ.items() if key not in TUNING}
    environment |= dict.fromkeys(ONE_THREAD, "1")
    with tempfile.TemporaryDirectory() as folder:  # not in a checkout, whose folders would hide the package's
        result = Path(folder) / "size.json"
        module, given = "astrofed.simulations.bench.aggregation_size", TypeAdapter(Request).dump_json(request).decode()
        command = [sys.executable, "-m", module, given, str(result)]
        ended = subprocess.run(command, env=environment, cwd=folder, stdout=sys.stderr)
        if ended.returncode == -signal.SIGKILL:
            return Size(request.n, request.d, note="not evaluable: the process was killed, for want of memory it seems")
        ended.check_returncode()
        return TypeAdapter(Size).validate_json(result.read_bytes())
