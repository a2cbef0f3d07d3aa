"""How much memory new work can take: by the kernel's own account, and within the limits that it runs under (Linux).

A container's limit, or that of a site's own `site.toml`, may lie far below what the machine has free; who goes past it
is killed.
"""

import os
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_OWN = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_HELD = Path("/proc/self/statm")
_allowed: list[int] = []  # bytes that this process may hold in all


def allow(size: int) -> None:
    """Have `free_memory` keep this process within so many bytes in all, because others end it when it takes more."""
    _allowed.append(size)


def free_memory() -> int | None:
    """Return the bytes that new work can take without swapping; None where the kernel does not say."""
    found = [free for free in (_of_machine(), _of_groups(), _of_process()) if free is not None]
    return min(found, default=None)


def readable(size: int) -> str:
    """Return bytes in words, such as "1.2 GiB", "0.3 MiB" or "96 bytes"."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= length / 10:
            return f"{size / length:.1f} {unit}"
    return f"{size:,} bytes"


def _of_machine() -> int | None:
    try:
        lines = _MACHINE.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _of_process() -> int | None:
    if not _allowed:
        return None
    try:
        held = int(_HELD.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
    return max(0, min(_allowed) - held)


def _of_groups() -> int | None:
    """What is left within this process's group and those above it; None where none of them has a limit."""
    try:
        own = next(line[3:] for line in _OWN.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        own = "/"
    folder = _GROUPS / own.lstrip("/")
    above = [each for each in (folder, *folder.parents) if each.is_relative_to(_GROUPS)]
    return min((left for each in above if (left := _left(each)) is not None), default=None)


def _left(group: Path) -> int | None:
    """What a group may still take; file pages that nobody has used for long are given back when asked for."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    idle = sum(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
    return None if limit == "max" else max(0, int(limit) - used + idle)
