"""A node in the foreground: everything put together, until a signal ends it."""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from astrofed.client.service.diary import Diary
from astrofed.client.service.executor import Executor
from astrofed.client.service.fleet import Fleet
from astrofed.client.service.gatekeeper import Gatekeeper
from astrofed.client.service.home import SITE_FILE, Home
from astrofed.client.service.node import Node
from astrofed.client.service.spool import Spool
from astrofed.shared.errors import UserMistake

LOCK = "lock"


class AlreadyRunning(UserMistake):
    """Another process serves this home."""


def serve(folder: Path, show: Callable[[str], None] | None = None) -> None:
    """Serve a site until SIGTERM or SIGINT: the first lets a task in progress end, for some seconds; a second does not.

    `show` is given each line for people; by default the standard error is.

    Raises:
        NoHome, BadSiteFile, NotJoined, NotAMembershipFile, KeyUnusable, PolicyError: the home is not complete.
        DeviceUnavailable: this machine hasn't a device that site.toml names.
        AlreadyRunning: another process serves it.
    """
    home = Home.open(folder)
    look_at_devices(home)
    welcome, policy = home.welcome, home.policy
    with _locked(folder):
        diary = Diary(home.logs, show)
        limits, spool = home.file.limits, Spool(home.spool)
        authorities, largest = welcome.ca_certificates(time.time()), int(limits.message_mb * 1e6)
        fleet = Fleet(welcome.address, authorities, home.key, largest, spool.blobs)
        executor = Executor(folder, limits, diary.warn)
        node = Node(home, fleet, spool, Gatekeeper(home), executor, diary)
        diary.say(
            f"site {home.site_name}: {', '.join(home.file.data)}; policy {policy.source}; "
            f"coordinator {welcome.coordinator} at {welcome.address}"
        )
        try:
            with _signals(node):
                node.run()
        except Exception as error:
            diary.warn(f"the node failed: {type(error).__name__}; start it again to go on")
            raise
        finally:
            counts = node.counts
            diary.say(
                f"stopped: {counts.answered} requests answered, {counts.refused} refused, {counts.failed} failed, "
                f"{node.spool.waiting} replies still to be sent"
            )
            diary.close()


def look_at_devices(home: Home) -> None:
    """See that this machine has the devices that a site is to compute on.

    Raises:
        DeviceUnavailable: it hasn't; torch is asked only where they are not the CPU alone.
    """
    if set(home.file.limits.devices) != {"cpu"}:
        from astrofed.client.devices import check_devices

        check_devices(home.file.limits.devices, f"{home.folder / SITE_FILE}, limits.devices")


@contextmanager
def _signals(node: Node) -> Iterator[None]:
    def handle(number: int, _: FrameType | None) -> None:
        first = not node.stopping
        node.diary.say(f"{signal.Signals(number).name}: stopping" + ("; again: at once" if first else " at once"))
        node.interrupt()

    before = {each: signal.signal(each, handle) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process from serving the same home."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another process serves {folder}; stop it first") from None
        yield
    finally:
        os.close(descriptor)
