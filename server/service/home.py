"""The server's folder: what lies where, and the settings in `server.toml`.

server.toml              the settings below
authority/               the CA's key and certificate, the gateway's, the key that signs plans (keys: mode 0600)
sites/                   a file for each site that was enrolled
welcomes/                the file that each site gets
jobs/<run>/              what was submitted, how it stands, the worker's log
runs/<run>/              the run's record, model and report
link/                    Flower's state: nodes, messages on their way, their large arrays
logs/                    the service's own logs
run/                     sockets and locks of what is running now
"""

import os
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically
from astrofed.shared.membership import Text
from astrofed.shared.toml_file import as_model, read_toml

SETTINGS = "server.toml"
LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 107
Port = Annotated[int, Field(ge=1, le=65535)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$|^[0-9a-fA-F:]+$", max_length=253)]


class NoServer(UserMistake):
    """A folder holds no server, or settings that can't be used."""


class ServerSettings(BaseModel):
    """What `server.toml` says; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    name: Text = "coordinator"
    """The coordinator's name, for people."""
    host: Host
    """The name or address by which sites reach the gateway; it stands in the certificate and in welcomes."""
    port: Port = 8443
    """The gateway's port, the only one that sites reach."""
    listen: Host = "0.0.0.0"
    """The address on this machine that the gateway listens on."""
    other_names: tuple[Host, ...] = ()
    """Further names and addresses for the certificate."""
    admin_port: Port = 8444
    """Health, readiness and metrics, on loopback only."""
    runs_at_once: Annotated[int, Field(ge=1, le=64)] = 2
    """How many runs are worked on at the same time; others wait in the queue."""
    run_memory_gb: Annotated[float, Field(gt=0)] | None = None
    """The most address space that one run's worker may take; None sets no limit."""
    run_threads: Annotated[int, Field(ge=1)] | None = None
    """The threads that one run's worker uses; by default the cores shared out over `runs_at_once`."""
    max_body_mb: Annotated[int, Field(ge=6, le=512)] = 16
    """The largest body of one request; Flower cuts arrays into pieces of 5 MiB."""
    max_reply_mb: Annotated[int, Field(ge=1)] = 4096
    """The largest reply of one node, all its pieces together."""
    request_timeout_s: Annotated[float, Field(gt=0, le=600)] = 60.0
    """How long one request's body may take to arrive."""
    header_timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    """How long a TLS handshake, and then a request's headers, may take to arrive."""
    node_requests_per_s: Annotated[float, Field(gt=0)] = 200.0
    """Requests per second that one node may make on average; bursts may be four times as many."""
    address_requests_per_s: Annotated[float, Field(gt=0)] = 400.0
    """Requests per second that one address may make on average."""

    @field_validator("other_names", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @property
    def address(self) -> str:
        """Host and port as a welcome says them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ServerHome:
    """The paths below a server's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.authority, self.sites, self.welcomes = (
            self._below("authority"),
            self._below("sites"),
            self._below("welcomes"),
        )
        self.jobs, self.runs = self._below("jobs"), self._below("runs")
        self.link, self.logs, self.running = self._below("link"), self._below("logs"), self._below("run")
        self.blobs = self.link / "blobs"
        self.link_socket, self.lock = self.running / "link.sock", self.running / "server.lock"
        self.gateway_state = self.running / "gateway.json"

    def _below(self, name: str) -> Path:
        return self.folder / name

    @property
    def settings_file(self) -> Path:
        """Where the settings lie."""
        return self.folder / SETTINGS

    def create(self, settings: ServerSettings) -> None:
        """Make the folders, for the owner alone, and write the settings.

        Raises:
            NoServer: the path is too long for the sockets below it.
            CannotWrite: the disk is full or the folder not writable.
        """
        check_socket_path(self.link_socket)
        for folder in (self.folder, self.authority, self.sites, self.jobs, self.link, self.logs, self.running):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.authority, self.link, self.running):
            folder.chmod(0o700)
        text = tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))
        write_atomically(self.settings_file, text.encode())

    def settings(self) -> ServerSettings:
        """Read the settings.

        Raises:
            NoServer: there are none, or one of them can't be.
        """
        path = self.settings_file
        missing = NoServer(
            f"{self.folder} holds no server (no {SETTINGS}); make one with `astrofed server init --host NAME`, "
            "or name its folder with --home"
        )
        return as_model(ServerSettings, read_toml(path, NoServer, missing), NoServer, path)


def check_socket_path(path: Path) -> None:
    """Refuse a path that is too long for a Unix socket.

    Raises:
        NoServer: it is.
    """
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise NoServer(
            f"the path {path} is longer than {LONGEST_SOCKET_PATH} bytes, too long for a socket; "
            "choose a shorter folder with --home"
        )
