"""The node: a site's own loop. It pulls requests, has the gatekeeper look at them and the executor answer them, and
sees to it that each reply reaches the server once, over failures of the network, the server and this process itself.

While a run goes on it asks often: it never waits longer than a twentieth of the time since the last request, and a
gateway that can hold requests back (`shared.waiting`) is asked to, so that nothing is asked in vain.
"""

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from astrofed.client.service import messages
from astrofed.client.service.diary import Diary
from astrofed.client.service.executor import Executor, Stopped, TaskFailed
from astrofed.client.service.fleet import HEARTBEAT_S, Fleet
from astrofed.client.service.gatekeeper import Admitted, Gatekeeper
from astrofed.client.service.home import Home
from astrofed.client.service.refusals import BadAnswer, NotAdmitted, RunOver, TooLarge, Unreachable
from astrofed.client.service.sealed import Sealed
from astrofed.client.service.spool import Spool
from astrofed.shared.blobs import WrongBlob
from astrofed.shared.errors import AstrofedError, UserMistake
from astrofed.shared.files import CannotWrite
from astrofed.shared.packing import MalformedPack, blob_id
from astrofed.shared.waiting import LONGEST_WAIT_S

SHORTEST_S, LONGEST_S = 0.02, 2.0  # between two pulls that find nothing
_SHARE = 1 / 20
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, _NOT_ADMITTED_S = 0.1, 10.0, 30.0
_Interrupts = (Unreachable, NotAdmitted, BadAnswer)


@dataclass
class Counts:
    """What a node has done since it was started."""

    answered: int = 0
    refused: int = 0
    failed: int = 0
    sent: int = 0


@dataclass
class Node:
    """A site's node. `run` returns when `stop` was called from another thread or a signal handler."""

    home: Home
    fleet: Fleet
    spool: Spool
    gatekeeper: Gatekeeper
    executor: Executor
    diary: Diary
    wait_s: float = LONGEST_WAIT_S
    grace_s: float = 10.0
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._give_up_at = math.inf
        self._pulling = False
        self._last = 0.0  # when there was a request last, by the monotonic clock
        self._backoff = _FIRST_BACKOFF_S
        self._connected = False
        self._trouble: str | None = None
        self._resend: dict[str, float] = {}  # replies that the server would not take, and when to try again

    def stop(self) -> None:
        """Ask the node to end: a task in progress has some seconds left, and none if it is asked again.

        What is given up is taken up again by the next start, unless it would be charged twice.
        """
        self._give_up_at = -math.inf if self.stopping else time.monotonic() + self.grace_s
        self._stop.set()

    def interrupt(self) -> None:
        """Ask the node to end from a signal handler in its own thread: a pull that is being held is given up."""
        self.stop()
        if self._pulling:
            raise Stopped("the node is being stopped")

    @property
    def stopping(self) -> bool:
        """Whether the node was asked to end."""
        return self._stop.is_set()

    def run(self) -> None:
        """Serve until asked to stop."""
        self.executor.start()
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        heart.start()
        try:
            while not self.stopping:
                self._session()
        finally:
            self._stop.set()
            self.executor.kill()
            heart.join()
            self._leave()

    def _session(self) -> None:
        """Connect and serve until something breaks; then wait, longer each time that it goes on."""
        try:
            node = self.fleet.connect(self.spool.node)
            if not self._connected:
                self.diary.connected(self.fleet.address, node)
                self._connected, self._last = True, time.monotonic()
            self._try(lambda: self.spool.remember_node(node))
            self._take_up_again()
            while not self.stopping:
                self._deliver()
                self._next()
        except Stopped:
            return
        except _Interrupts as error:
            if self.stopping:
                return
            if str(error) != self._trouble:
                self._trouble, self._connected = str(error), False
                self.diary.warn(f"{error}; trying again until it works")
            pause = _NOT_ADMITTED_S if isinstance(error, NotAdmitted) else self._backoff
            self._stop.wait(pause * random.uniform(0.5, 1.0))
            self._backoff = min(2 * self._backoff, _LONGEST_BACKOFF_S)

    def _next(self) -> None:
        """Take the next request, if there is one, and answer it; otherwise wait a little."""
        self._pulling = True
        try:
            claim, held = self.fleet.pull(self.wait_s)
        finally:
            self._pulling = False
        self._trouble, self._backoff = None, _FIRST_BACKOFF_S
        if claim is None:
            if not held:
                waited = time.monotonic() - self._last
                self._stop.wait(min(max(waited * _SHARE, SHORTEST_S), LONGEST_S))
            return
        self._last = time.monotonic()
        question = messages.envelope(claim).id
        self._try(lambda: self.spool.keep_claim(question, claim))
        self._answer(question, claim)
        self._last = time.monotonic()

    def _take_up_again(self) -> None:
        """Answer what was asked before a crash or a stop."""
        for question, claim in list(self.spool.claims()):
            if self.stopping:
                return
            self._answer(question, claim)

    def _answer(self, question: str, claim: Sealed) -> None:
        """Answer one request, and send the reply."""
        if not messages.still_wanted(messages.envelope(claim)):
            self.diary.say("a request had expired before it could be answered")
            self.spool.drop_claim(question)
            return
        try:
            reply = self._reply(question, claim)
        except RunOver:
            self.diary.say("a request's run is over; nothing is done for it")
            self.spool.drop_claim(question)
            return
        full = self.spool.keep_reply(question, reply)
        if full is not None:
            self.diary.warn(f"{full}; the reply is kept in memory and sent from there")
        self._deliver()
        self._tidy(claim)

    def _reply(self, question: str, claim: Sealed) -> Sealed:
        outside = messages.envelope(claim)
        try:
            whole = self.fleet.fetch(claim)
            request = self.gatekeeper.admit(outside, messages.settings(whole), self.fleet.node)
        except (UserMistake, messages.Unreadable, TooLarge, MalformedPack, WrongBlob, BadAnswer) as error:
            self.counts.refused += 1
            self.diary.warn(f"refused a request: {error}")
            return messages.error_reply(claim, f"{self.home.site_name}: {error}")
        if request.charges and self.spool.was_begun(question):
            self.counts.failed += 1
            self.diary.warn(f"{request}: was interrupted; it is not done again, for it would be charged again")
            told = f"{self.home.site_name}: interrupted while it worked; not repeated, for it would be charged twice"
            return messages.error_reply(claim, told)
        return self._work(question, whole, request)

    def _work(self, question: str, whole: Sealed, request: Admitted) -> Sealed:
        began = time.monotonic()
        self.diary.say(f"{request}: begun ({whole.size:,} bytes)")
        self._try(lambda: self.spool.mark_begun(question))
        try:
            reply = self.executor.answer(whole, self.fleet.node, lambda: time.monotonic() > self._give_up_at)
        except TaskFailed as error:
            self.counts.failed += 1
            self.diary.warn(f"{request}: failed; {error}")
            self.executor.start()
            return messages.error_reply(whole, f"{self.home.site_name}: {error}")
        self.counts.answered += 1
        self.diary.say(f"{request}: done in {time.monotonic() - began:.2f} s ({reply.size:,} bytes to send)")
        return reply

    def _deliver(self) -> None:
        """Send what the server lacks. What it can't take is tried again later, and given up when nobody wants it."""
        if not self.spool.waiting:
            return
        for question, reply in list(self.spool.replies()):
            outside, now = messages.envelope(reply), time.monotonic()
            if self._resend.get(question, 0.0) > now:
                continue
            if not messages.still_wanted(outside):
                self.diary.warn("a reply had expired before it could be sent; it is given up")
                self._forget(question)
                continue
            try:
                taken = self.fleet.push(reply)
                self._forget(question)
                self.counts.sent += taken
                if not taken:
                    self.diary.say("the server did not need a reply: it has it, or does not wait for it any more")
                with contextlib.suppress(RunOver):  # a run that ended with this reply has no objects any more
                    self.fleet.confirm(outside.run, question)
            except RunOver:
                self.diary.say("a reply's run is over; it is given up")
                self._forget(question)
            except (TooLarge, WrongBlob) as error:
                self._tell_instead(question, reply, f"{error}")
            except BadAnswer as error:
                self.diary.warn(f"{error}; the reply is kept and sent again")
                self._resend[question] = now + _LONGEST_BACKOFF_S

    def _tidy(self, last: Sealed) -> None:
        """Delete blobs that nothing needs any more; the last question's may be the next one's as well."""
        kept = [last, *(each for _, each in self.spool.claims()), *(each for _, each in self.spool.replies())]
        self.spool.blobs.sweep({blob_id(messages.tree_of(each)) or "" for each in kept})

    def _tell_instead(self, question: str, reply: Sealed, reason: str) -> None:
        """Send, in place of a reply that the server can't take, why there is none."""
        self.diary.warn(f"{reason}; the coordinator is told so instead")
        instead = messages.error_instead(reply, f"{self.home.site_name}: {reason}")
        if instead is None:
            self._forget(question)
        else:
            self.spool.keep_reply(question, instead)

    def _try(self, write: Callable[[], None]) -> None:
        """Write what matters only after a crash."""
        try:
            write()
        except CannotWrite as error:
            self.diary.warn(f"{error}; the work goes on, but would be forgotten in a crash")

    def _forget(self, question: str) -> None:
        self.spool.drop_reply(question)
        self._resend.pop(question, None)

    def _beat(self) -> None:
        """Tell the server again and again that this node is there, whatever the loop does."""
        while not self._stop.wait(HEARTBEAT_S * random.uniform(0.6, 0.8)):
            if not self.fleet.node:
                continue
            try:
                self.fleet.heartbeat()
            except AstrofedError as error:
                self.diary.debug(f"heartbeat: {error}")

    def _leave(self) -> None:
        try:
            if self.fleet.node:
                self.fleet.deactivate()
        except AstrofedError as error:
            self.diary.debug(f"leaving: {error}")
        self.fleet.close()
