"""How much memory a call needs at its peak beyond what the process held before, by the kernel's own account (Linux)."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ResultT = TypeVar("ResultT")
_PROCESS = Path("/proc/self")


def peak_beyond(call: Callable[[], ResultT]) -> tuple[ResultT, int | None]:
    """Return what the call returns, and the bytes at its peak beyond those before it, the result's among them.

    None where the kernel does not say. Memory that the process keeps for reuse is given back first, so that a call that
    takes it again pays for it.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")  # the peak is from now on
    except (OSError, AttributeError):  # another kernel, or another C library
        return call(), None
    before = _status("VmRSS")
    result = call()
    return result, max(0, _status("VmHWM") - before)


def peak_of(process: int) -> int | None:
    """Return the most bytes that another process has held; None where the kernel does not say."""
    try:
        return _status("VmHWM", Path(f"/proc/{process}"))
    except (OSError, StopIteration):
        return None


def _status(key: str, process: Path = _PROCESS) -> int:
    lines = (process / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))
