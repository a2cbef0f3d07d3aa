"""The gateway's process: TLS 1.3, deadlines for handshakes and requests, and a certificate that can be renewed.

the supervisor starts it:  python -m astrofed.server.service.gateway_server HOME
"""

import asyncio
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from astrofed.server.service.authority import Authority, AuthorityUnusable
from astrofed.server.service.gateway import REPORT_S, Counts, Gateway
from astrofed.server.service.home import ServerHome
from astrofed.server.service.sites import Sites

IDLE_S = 60
CONNECTIONS = 512
log = logging.getLogger("astrofed.gateway")


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request's headers do not arrive in time."""

    patience_s = 10.0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._patience: asyncio.TimerHandle | None = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes; wait on only if they are not yet a whole request's headers."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._unwatch()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request; uvicorn closes a connection that stays silent."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._patience is None and (self.cycle is None or self.conn.trailing_data[0]):
            self._patience = self.loop.call_later(self.patience_s, self._give_up)

    def _unwatch(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            address = self.client[0] if self.client else "?"
            log.warning("closed a connection from %s: no request within %g s", address, self.patience_s)
            self.transport.close()


class GatewayServer(uvicorn.Server):
    """uvicorn with a deadline for TLS handshakes, a certificate that follows its file, and counts in a file."""

    def __init__(self, config: uvicorn.Config, authority: Authority, counts: Counts, listener: socket.socket) -> None:
        super().__init__(config)
        self._authority, self._counts, self._listener = authority, counts, listener
        self._certified = authority.server_certificate.stat().st_mtime_ns

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state={}
            ),
            sock=self._listener,
            ssl=self.config.ssl,
            ssl_handshake_timeout=ImpatientProtocol.patience_s,
            ssl_shutdown_timeout=ImpatientProtocol.patience_s,
            backlog=self.config.backlog,
        )
        self.servers = [server]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: as uvicorn, and sometimes look after certificate and counts."""
        if counter % int(10 * REPORT_S) == 0:
            self._counts.write()
            self._follow_certificate()
        return await super().on_tick(counter)

    def _follow_certificate(self) -> None:
        changed = self._authority.server_certificate.stat().st_mtime_ns
        if changed == self._certified or self.config.ssl is None:
            return
        try:
            self._authority.load_into(self.config.ssl)
        except AuthorityUnusable as error:  # key and certificate are written one after the other
            log.warning("%s", error)
            return
        self._certified = changed
        log.info("new connections get the certificate that is valid until %s", self._authority.valid_until)


def main(home: ServerHome) -> None:
    """Serve until asked to end."""
    settings, authority = home.settings(), Authority(home.authority)
    counts = Counts(home.gateway_state)
    ImpatientProtocol.patience_s = settings.header_timeout_s
    config = uvicorn.Config(
        Gateway(settings, Sites(home.sites), home.link_socket, home.blobs, counts),
        http=ImpatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=2,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=16 * 1024,
    )
    config.load()
    config.ssl = authority.tls_context()
    listener = listen(settings.listen, settings.port)
    log.info("listens on %s, port %d", settings.listen, settings.port)
    GatewayServer(config, authority, counts, listener).run()
    counts.write()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address, of whichever kind it is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


if __name__ == "__main__":
    from astrofed.server.service.process import begin

    with begin("gateway", Path(sys.argv[1])) as own_home:
        main(own_home)
