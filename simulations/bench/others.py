"""How busy other processes keep this machine's cores meanwhile, by the kernel's own account (Linux)."""

import os
import time
from pathlib import Path


class Others:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._start, self._before = time.monotonic(), _others()

    def cores(self) -> float | None:
        """Return how many cores other processes have used since, on average; None where the kernel does not say."""
        now, elapsed = _others(), time.monotonic() - self._start
        if now is None or self._before is None or not elapsed:
            return None
        return max(0.0, (now - self._before) / elapsed)


def _others() -> float | None:
    """Return the seconds of processor time that all processes but this one have used since the start."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    user, nice, system = (int(count) for count in line.split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()
