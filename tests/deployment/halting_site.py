"""A site's own client that halts in the middle of a blob, so that a fault strikes at a certain byte and at no other.

Usage: python halting_site.py FILE COMMAND...: COMMAND is that of `astrofed client start`. When FILE says "receive",
"send" or "write", the next blob that goes that way is moved to its third step; then FILE says by which process, which
stops itself (SIGSTOP) until somebody lets it go on (SIGCONT) or kills it. It is the executor that writes.
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from astrofed.client.service import blob_transfer, executor
from astrofed.shared import blobs
from astrofed.shared.blobs import STEP

EXECUTOR = executor.PROGRAM[-1]
halt, AT = Path(sys.argv[1]), 2 * STEP
write_all = blobs.write_all


def halted(way: str, at: int) -> None:
    if at >= AT and halt.is_file() and halt.read_text() == way:
        halt.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)


class Halting:
    """`os`, as the client sees it that sends a blob."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def pread(file: int, count: int, at: int) -> bytes:
        halted("send", at)
        return os.pread(file, count, at)


def halting_receipt(file: int, data: memoryview, at: int) -> None:
    halted("receive", at)
    write_all(file, data, at)


def halting_write(file: int, data: memoryview, at: int) -> None:
    halted("write", at)
    write_all(file, data, at)


if EXECUTOR in sys.argv:
    blobs.__dict__.update(write_all=halting_write)
    sys.argv = sys.argv[sys.argv.index(EXECUTOR) :]
else:
    blob_transfer.__dict__.update(os=Halting(), write_all=halting_receipt)
    executor.Executor.__init__.__defaults__ = ((sys.executable, __file__, str(halt), EXECUTOR),)
    sys.argv = ["astrofed", *sys.argv[sys.argv.index("astrofed.cli") + 1 :]]
runpy.run_module(EXECUTOR if sys.argv[0] == EXECUTOR else "astrofed.cli", run_name="__main__", alter_sys=True)
