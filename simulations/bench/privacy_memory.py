"""What a step takes in memory in each way of training, in a process whose allocator gives back at once what is freed.

Elsewhere a step's peak depends on what the process did before: freed tensors leave holes that the next ones only partly
fit, and the same step then takes a third more or less (glibc, `mallopt(3)`).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping

import torch

from astrofed.simulations.bench.privacy_peers import PLAIN, Steps, fresh, plain, private_ways
from astrofed.simulations.bench.privacy_work import works
from astrofed.simulations.bench.turns import Call, alternate

FROM_THE_KERNEL = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # memory from so many bytes on, and back to it when freed


def peaks(ways: Mapping[str, Steps]) -> dict[str, int | None]:
    """Return the bytes that one step takes at its peak in each way, beyond what the process held before."""
    once = {name: Call(lambda _, take=steps: take(1)) for name, steps in ways.items()}  # type: ignore[misc]
    alternate(once, 1, 0.0)  # what is found out at first is not part of a step
    found: dict[str, int | None] = {}
    alternate(once, 1, 0.0, found)
    return found


def peaks_apart(name: str, ways: Iterable[str]) -> dict[str, int | None]:
    """Return `peaks` of one of `works` in these ways, in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; what it wrote to the standard error has been passed on.
    """
    command = [sys.executable, "-m", __name__, name, *ways]
    with tempfile.TemporaryDirectory() as folder:  # not in a checkout, whose folders would hide the package's
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, cwd=folder, env=os.environ | FROM_THE_KERNEL
        )
    found: dict[str, int | None] = json.loads(ended.stdout)
    return found


def main(name: str, *ways: str) -> None:
    """Print the peaks of one of `works` in these ways as JSON."""
    torch.set_num_threads(1)
    work = next(work for work in works() if work.name == name)
    private = private_ways(work)
    taken = {way: plain(work) if way == PLAIN else private[way](fresh(work)) for way in ways}
    sys.stdout.write(json.dumps(peaks(taken)))


if __name__ == "__main__":
    main(*sys.argv[1:])
