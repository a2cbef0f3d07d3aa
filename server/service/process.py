"""What every process of the service does first: log to its file, call nobody, and not outlive the server."""

import ctypes
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from astrofed.server.service.home import ServerHome

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""By these Flower calls nobody outside; they hold for every process of the service."""
PARENT = "ASTROFED_SERVER_PID"
_PR_SET_PDEATHSIG = 1
_LOG_BYTES, _LOG_FILES = 5 * 1024 * 1024, 5


def child_environment(threads: int | None = None) -> Mapping[str, str]:
    """Return the environment for a process of the service."""
    own = {**os.environ, **QUIET, PARENT: str(os.getpid())}
    if threads is not None:
        own |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    return own


@contextmanager
def begin(name: str, home: Path, file: Path | None = None) -> Iterator[ServerHome]:
    """Set a child process up; yields the server's home. An error that nothing catches is logged before it ends it."""
    os.environ.update(QUIET)
    end_with_parent()
    own = ServerHome(home)
    log_to(file or own.logs / f"{name}.log")
    log = logging.getLogger(f"astrofed.{name}")
    log.info("started, process %d", os.getpid())
    try:
        yield own
    except Exception:
        log.exception("failed")
        raise
    log.info("ended")


def end_with_parent() -> None:
    """Have the kernel kill this process when the server's process dies, however it dies (Linux)."""
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def log_to(path: Path) -> None:
    """Log to a file that starts anew when it is full; the older ones stay beside it."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8")
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    formatter.default_msec_format = "%s.%03d"
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "flwr", "alembic", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
