"""Health, readiness and metrics for this machine's own monitoring: plain HTTP on loopback, nothing but reading.

/healthz   200 as long as the supervisor works
/readyz    200 when link and gateway answer, else 503 with what is missing
/metrics   Prometheus' text format
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from astrofed.server.service.jobs import Jobs
from astrofed.server.service.sites import Sites
from astrofed.shared.errors import UserMistake

if TYPE_CHECKING:
    from astrofed.server.service.supervisor import Supervisor

STALE_S = 30.0  # a supervisor that did not come round for so long does not work
REFRESH_S = 5.0


class PortTaken(UserMistake):
    """A port that the server needs is in use."""


class Admin:
    """The endpoints; `refresh` is called by the supervisor each time it comes round."""

    def __init__(self, supervisor: "Supervisor", port: int) -> None:
        self._supervisor, self._refreshed, self._alive = supervisor, 0.0, time.monotonic()
        self._missing = ["starting"]
        self._metrics = b""
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        except OSError as error:
            raise PortTaken(
                f"port {port} on loopback can't be used ({error.strerror}); set another admin_port in server.toml"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 1.0}, daemon=True)

    def __enter__(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def refresh(self, supervisor: "Supervisor") -> None:
        """Look at the service again, now and then."""
        self._alive = time.monotonic()
        if self._alive - self._refreshed < REFRESH_S:
            return
        self._refreshed = self._alive
        self._missing = [child.name for child in supervisor.children if not child.alive]
        if not self._missing and not supervisor.ready():
            self._missing = ["link or gateway does not answer yet"]
        self._metrics = _metrics(supervisor, ready=not self._missing)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, content type and body of the answer to a path."""
        if path == "/healthz":
            healthy = time.monotonic() - self._alive < STALE_S
            return (200, "text/plain", b"ok\n") if healthy else (503, "text/plain", b"the supervisor hangs\n")
        if path == "/readyz":
            missing = ", ".join(self._missing)
            return (503, "text/plain", f"not ready: {missing}\n".encode()) if missing else (200, "text/plain", b"ok\n")
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", self._metrics
        return 404, "text/plain", b"there are /healthz, /readyz and /metrics\n"


def _handler(admin: Admin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            status, kind, body = admin.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: who asks is on this machine."""

    return Handler


def gateway_counts(supervisor: "Supervisor") -> dict[str, Any]:
    """Return what the gateway has counted since it was started."""
    try:
        found: dict[str, Any] = json.loads(supervisor.home.gateway_state.read_bytes())
        return found
    except (OSError, ValueError):  # not there yet; it is written whole or not at all
        return {}


def _metrics(supervisor: "Supervisor", *, ready: bool) -> bytes:
    registry = CollectorRegistry()

    def gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> None:
        made = Gauge(f"astrofed_{name}", text, labels, registry=registry)
        for key, value in values.items():
            (made.labels(*key) if labels else made).set(value)

    counts = gateway_counts(supervisor)
    jobs = list(Jobs(supervisor.home.jobs).all())
    states = Counter(job.state.status for job in jobs)
    sites = Sites(supervisor.home.sites).all().values()
    gauge("ready", "1 when link and gateway answer.", {(): float(ready)})
    gauge("process_up", "1 when a process of the service lives.", _by_child(supervisor, "alive"), "process")
    gauge("process_restarts", "How often it was started again.", _by_child(supervisor, "restarts"), "process")
    gauge("runs", "Runs by status.", {(status,): float(count) for status, count in states.items()}, "status")
    gauge("run_round", "Last complete round.", {(j.job.run,): float(j.state.round or 0) for j in jobs}, "run")
    gauge("sites_enrolled", "Sites that may take part.", {(): float(sum(site.revoked is None for site in sites))})
    seen = {(site,): float(when) for site, when in counts.get("last_seen", {}).items()}
    gauge("site_last_seen_seconds", "When a site was heard of last, in Unix time.", seen, "site")
    requests = {tuple(key.split(" ")): float(count) for key, count in counts.get("requests", {}).items()}
    gauge("gateway_requests", "Requests forwarded since the gateway started.", requests, "method", "code")
    refused = {(reason,): float(count) for reason, count in counts.get("refused", {}).items()}
    gauge("gateway_refused", "Requests refused since the gateway started.", refused, "reason")
    traffic = {("in",): float(counts.get("bytes_in", 0)), ("out",): float(counts.get("bytes_out", 0))}
    gauge("gateway_bytes", "Bytes of bodies since the gateway started.", traffic, "direction")
    return bytes(generate_latest(registry))


def _by_child(supervisor: "Supervisor", what: str) -> dict[tuple[str, ...], float]:
    return {(child.name,): float(getattr(child, what)) for child in supervisor.children}
