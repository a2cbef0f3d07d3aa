"""The connection to the server: who is not admitted is told why, and a server that misbehaves harms nobody."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any

import pytest

from astrofed.client.service import fleet as module
from astrofed.client.service.fleet import Fleet
from astrofed.client.service.refusals import BadAnswer, NotAdmitted, RunOver, TooLarge, Unreachable
from astrofed.shared.blobs import Blobs
from astrofed.shared.keys import new_node_key


def connection(address: str, certificate: str, key: Any = None, largest: int = 10**6) -> Fleet:
    return Fleet(address, certificate, key or new_node_key(), largest, Blobs(Path(FOLDER.name)))


FOLDER = TemporaryDirectory()


class Hostile:
    """A server behind TLS that answers every request with the same bytes."""

    def __init__(self, files: Path, answer: bytes, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = version
        context.load_cert_chain(files / "c.pem", files / "k.pem")
        self._answer, self._context = answer, context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as secure:
                    secure.settimeout(10)
                    self.asked.append(_request(secure))
                    secure.sendall(self._answer)
            except OSError:
                continue
            finally:
                plain.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(15)


def _request(channel: ssl.SSLSocket) -> bytes:
    """Read a whole request; what is left unread when a socket is closed would reset the connection."""
    read = b""
    while True:
        head, end, body = read.lower().partition(b"\r\n\r\n")
        length = next((int(each[15:]) for each in head.split(b"\r\n") if each.startswith(b"content-length:")), 0)
        if end and len(body) >= length:
            return read
        piece = channel.recv(65536)
        if not piece:
            raise ConnectionError("the request ended too soon")
        read += piece


@pytest.fixture
def hostile(certificate: str, certificate_files: Path) -> Iterator[Callable[..., tuple[Fleet, Hostile]]]:
    made: list[tuple[Fleet, Hostile]] = []

    def make(answer: bytes, **options: Any) -> tuple[Fleet, Hostile]:
        server = Hostile(certificate_files, answer, **options)
        made.append((connection(server.address, certificate), server))
        return made[-1]

    yield make
    for fleet, server in made:
        fleet.close()
        server.close()


def http(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"", Unreachable, "can't be reached"),
        (b"not HTTP at all\r\n\r\n", Unreachable, "can't be reached"),
        (http(200, b"\xff" * 50), BadAnswer, "no ActivateNodeResponse"),
        (http(503), Unreachable, "not ready"),
        (http(500, b"{"), BadAnswer, "HTTP 500"),
        (http(302, b"", "location: http://127.0.0.1:1/steal"), BadAnswer, "HTTP 302"),
        (http(413), TooLarge, "no request as large"),
        (http(401), NotAdmitted, "not enrolled there, or revoked"),
        (http(403, b'{"code": 2007, "detail": "x"}'), RunOver, "over"),
        (http(200, b"\x1f\x8b\x08" + b"0" * 30, "content-encoding: gzip"), BadAnswer, "no ActivateNodeResponse"),
    ],
)
def test_a_server_that_answers_badly_is_an_error_in_words(
    hostile: Any, answer: bytes, error: type[Exception], words: str
) -> None:
    fleet, _ = hostile(answer)
    with pytest.raises(error, match=words):
        fleet.connect(None)


@pytest.mark.parametrize(
    ("ahead_s", "words"), [(-900, r"9\d\d s ahead of the server"), (900, "s behind the server"), (1, "revoked$")]
)
def test_a_clock_that_is_wrong_is_named_where_the_key_is_refused(hostile: Any, ahead_s: int, words: str) -> None:
    """`ahead_s`: of the server's clock, by the date in its answer."""
    fleet, _ = hostile(http(401, b"", f"date: {formatdate(time() + ahead_s, usegmt=True)}"))
    with pytest.raises(NotAdmitted, match=words):
        fleet.connect(None)


def test_an_answer_without_end_is_cut_off(hostile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_ANSWER", 10_000)
    fleet, _ = hostile(http(200, b"\x00" * 50_000))
    with pytest.raises(BadAnswer, match="more than 10,000 bytes"):
        fleet.connect(None)


def test_tls_below_1_3_is_not_spoken(hostile: Any) -> None:
    fleet, server = hostile(http(200), version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(Unreachable):
        fleet.connect(None)
    assert not server.asked


def test_a_server_of_another_authority_is_not_spoken_to(certificate_files: Path, other_certificate: str) -> None:
    server = Hostile(certificate_files, http(200))
    fleet = connection(server.address, other_certificate)
    with pytest.raises(Unreachable, match="not by the coordinator's CA"):
        fleet.connect(None)
    assert not server.asked  # not even the signed time
    fleet.close()
    server.close()


def test_a_server_that_is_not_there_is_unreachable(certificate: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        fleet = connection(f"127.0.0.1:{taken.getsockname()[1]}", certificate)
        with pytest.raises(Unreachable, match="refused"):
            fleet.connect(None)
        fleet.close()


def test_a_key_that_is_not_enrolled_gets_nothing(link: Any) -> None:
    fleet = connection(link.address, link.certificate)
    with pytest.raises(NotAdmitted, match="has not enrolled this node's key"):
        fleet.connect(None)
    fleet.close()


def test_the_node_keeps_its_id_and_comes_back_at_once_after_a_crash(link: Any, join: Any) -> None:
    site = join()
    first = connection(link.address, link.certificate, site.key)
    assert first.connect(None) == site.node
    first.close()  # without a word, as if it had been killed
    again = connection(link.address, link.certificate, site.key)
    with pytest.raises(NotAdmitted, match="for connected"):
        again.connect(None)
    assert again.connect(site.node) == site.node
    again.deactivate()
    assert again.connect(None) == site.node
    again.deactivate()
    again.close()


def test_another_nodes_id_is_of_no_use(link: Any, join: Any) -> None:
    site = join()
    thief = connection(link.address, link.certificate)
    thief.node = site.node
    with pytest.raises(NotAdmitted):
        thief.pull(0)
    thief.close()


def test_a_message_larger_than_the_site_takes_is_not_fetched(link: Any, join: Any, plan: str) -> None:
    from flwr.app import ConfigRecord, RecordDict

    site = join()
    fleet = connection(link.address, link.certificate, site.key, largest=1000)
    fleet.connect(None)
    large = ConfigRecord({"plan": "x" * 2000})
    link.ask(link.new_run(), site.node, "train", RecordDict({"config": large}))
    claim, held = fleet.pull(0)
    assert claim is not None and not held
    with pytest.raises(TooLarge, match="more than the 1,000 bytes"):
        fleet.fetch(claim)
    fleet.deactivate()
    fleet.close()


def test_code_is_never_asked_for() -> None:
    source = Path(module.__file__).read_text()
    assert "get-fab" not in source and "GetFab" not in source
