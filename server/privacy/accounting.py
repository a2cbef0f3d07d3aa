"""What central privacy costs, and the server's own account of it: charged before a round begins, never forgotten.

Neighbouring federations differ by one participant that replies, or never does. "gaussian": a round is one Gaussian
mechanism on a Poisson sample of participants. "tree": a whole tree is one Gaussian mechanism without sampling, as each
participant is part of one round in it and so of `height` nodes (`tree.py`).

A round that is repeated after a crash is charged again, since its noise is drawn anew; so is a tree that was cut short.
The account is a file of the run's folder, chained, its length and last hash in each round of the record. A copy of the
folder draws other noise for the same rounds, and neither of the two would count what the other releases: so each charge
names its file (by inode), and a copy is refused. Who puts an older folder back in place is not found.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from astrofed.server.privacy.tree import height
from astrofed.shared.errors import UserMistake
from astrofed.shared.files import append_line
from astrofed.shared.plan import CentralPrivacy
from astrofed.shared.privacy.accounting import epsilon, noise_multiplier_for
from astrofed.shared.privacy.events import Event
from astrofed.shared.record import CentralSpent

FILE = "central_privacy.jsonl"


class AccountBroken(UserMistake):
    """The account of central privacy was cut, edited or lost; without it nothing more may be released."""


class AccountCopied(UserMistake):
    """The account is a copy: what the original releases would not be counted here."""


class Charge(BaseModel):
    """One line of the account."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    previous: str  # SHA-256 of the line before, "" at first
    inode: int  # of the file that it stands in
    round: int
    noise_multiplier: float  # as the plan means it: on one round's sum, or on one node's
    event_noise: float  # the same charge as one Gaussian mechanism
    sample_rate: float


@dataclass(frozen=True)
class Price:
    """How rounds turn into Gaussian mechanisms."""

    section: CentralPrivacy

    def charges(self, rounds: int) -> int:
        """Return how many charges so many rounds come to, without interruption."""
        return rounds if self.section.cohorts is None else math.ceil(rounds / self.section.cohorts)

    def event(self, noise: float) -> Event:
        """Return one charge at a noise multiplier."""
        if self.section.cohorts is None:
            return Event(noise, self.section.sampling_rate, 1)
        return Event(noise / math.sqrt(height(self.section.cohorts)), 1.0, 1)

    def noise(self, rounds: int, spent: list[Event]) -> float:
        """Return the noise multiplier with which `rounds` rounds stay within the plan's epsilon, or the plan's own.

        Raises:
            BudgetUnreachable: none is enough after what was spent.
        """
        section = self.section
        if section.noise_multiplier is not None:
            return section.noise_multiplier
        assert section.epsilon is not None  # the plan has exactly one of the two
        rate = section.sampling_rate if section.cohorts is None else 1.0
        found = noise_multiplier_for(section.epsilon, section.delta, rate, self.charges(rounds), spent)
        return found * (1.0 if section.cohorts is None else math.sqrt(height(section.cohorts)))

    def epsilon(self, rounds: int) -> float:
        """Return epsilon of a whole run that is never interrupted."""
        charge = self.event(self.noise(rounds, []))
        count = self.charges(rounds)
        return epsilon([Event(charge.noise_multiplier, charge.sample_rate, count)], self.section.delta)


class CentralAccount:
    """What one run has spent, in its folder."""

    def __init__(self, folder: Path, section: CentralPrivacy, rounds: int, last: CentralSpent | None) -> None:
        """`rounds`: of the whole run; `last`: what the record's last round says, which the account must hold.

        Raises:
            AccountBroken: it was cut, edited or lost.
            AccountCopied: it is a copy of another run's.
        """
        self._path, self._section, self._rounds = folder / FILE, section, rounds
        self._price = Price(section)
        lines = self._path.read_bytes().split(b"\n")[:-1] if self._path.exists() else []  # a torn end was never used
        self._size = sum(len(line) + 1 for line in lines)
        if self._path.exists() and self._size < self._path.stat().st_size:
            with self._path.open("r+b") as file:
                file.truncate(self._size)
        self._charges = [self._read(line) for line in lines]
        hashes = ["", *(hashlib.sha256(line).hexdigest() for line in lines)]
        if [charge.previous for charge in self._charges] != hashes[:-1]:
            raise AccountBroken(f"{self._path} was edited: its lines don't follow from one another; begin the run anew")
        if last is not None and (len(lines) < last.charges or hashes[last.charges] != last.charges_sha256):
            raise AccountBroken(
                f"{self._path} does not hold the {last.charges} charges that the record counts: it was cut, edited or "
                "lost; put the right file back, or begin the run anew"
            )
        if self._charges and self._charges[-1].inode != self._path.stat().st_ino:
            raise AccountCopied(
                f"{self._path} is not the file that was charged but a copy of it. Resumed here, the run would draw "
                "noise anew for rounds that the original may release too, and neither would count the other's: resume "
                "the original folder, which may be moved within its file system, or begin the run anew with another "
                "--out"
            )
        self._last = hashes[-1]
        self._noise: float | None = None

    def charge(self, round_number: int) -> float:
        """Write one charge down, on the disk before this returns; return the noise multiplier to use.

        The noise is found at the first charge here, for all rounds to come, and kept while the process lives.

        Raises:
            BudgetUnreachable: no noise is enough for the rounds to come after what was spent.
            AccountBroken: another process charges here too.
            CannotWrite: nothing is charged, and nothing may be released.
        """
        self._check_alone()
        if self._noise is None:
            self._noise = self._price.noise(max(self._rounds - round_number + 1, 1), self._events())
        event = self._price.event(self._noise)
        self._path.touch()
        charge = Charge(
            previous=self._last,
            inode=self._path.stat().st_ino,
            round=round_number,
            noise_multiplier=self._noise,
            event_noise=event.noise_multiplier,
            sample_rate=event.sample_rate,
        )
        line = charge.model_dump_json().encode()
        append_line(self._path, line)
        self._charges.append(charge)
        self._size += len(line) + 1
        self._last = hashlib.sha256(line).hexdigest()
        return self._noise

    def spent(self, clipping_norm: float) -> CentralSpent:
        """Return what stands in the record after a round whose clipping norm it was."""
        return CentralSpent(
            epsilon=epsilon(self._events(), self._section.delta),
            delta=self._section.delta,
            noise_multiplier=self._charges[-1].noise_multiplier,
            clipping_norm=clipping_norm,
            charges=len(self._charges),
            charges_sha256=self._last,
        )

    def _check_alone(self) -> None:
        found = self._path.stat().st_size if self._path.exists() else 0
        if found != self._size:
            raise AccountBroken(
                f"{self._path} has {found} bytes, this process wrote or read {self._size}: another process runs the "
                "same folder; stop one of them, then resume"
            )

    def _events(self) -> list[Event]:
        return [Event(charge.event_noise, charge.sample_rate, 1) for charge in self._charges]

    def _read(self, line: bytes) -> Charge:
        try:
            return Charge.model_validate_json(line)
        except ValidationError as error:
            raise AccountBroken(f"{self._path} can't be read: {error.errors()[0]['msg']}; begin the run anew") from None
