"""`astrofed server start`: the supervisor, with health, readiness and metrics on loopback beside it."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from astrofed.server.service.admin import Admin
from astrofed.server.service.process import QUIET, log_to
from astrofed.server.service.setup import open_home, renew_certificate
from astrofed.server.service.supervisor import Supervisor

log = logging.getLogger("astrofed.server")


def serve(folder: Path, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        NoServer, AlreadyRunning, AuthorityUnusable: the folder is not as it should be, or is served already.
        PortTaken: another program listens on the admin port.
    """
    home = open_home(folder)
    os.environ.update(QUIET)
    log_to(home.logs / "server.log")

    def tell(text: str) -> None:
        log.info("%s", text)
        say(text)

    tell(renew_certificate(folder))
    supervisor = Supervisor(home, tell)
    with Admin(supervisor, home.settings().admin_port) as admin:
        tell(f"starting; health and metrics: http://127.0.0.1:{home.settings().admin_port}/")
        supervisor.run(admin.refresh)
    tell("ended; nothing is lost, start it again to go on")
