"""Rotation: a new authority or a new key that signs plans takes the place of the old, without a site being cut off.

First the new one is made, and every site is written a newer welcome, signed by the key that it trusts. For some days
the server goes on with the old one, and sites that have taken their new welcome trust both. Then the server changes
over; from the same day on these sites trust the new one alone.

authority/plan-next.key, ca-next.key, ca-next.crt   what is to come
authority/rotation.json                             from when on
"""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from astrofed.server.service.authority import Authority, AuthorityUnusable, make_ca
from astrofed.shared.files import write_atomically
from astrofed.shared.keys import new_plan_key, public_pem, read_plan_key, write_key
from astrofed.shared.membership import Older

What = Literal["ca", "plan-key"]
FILE = "rotation.json"


class _Dates(BaseModel):
    """From when on the new ones count alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: datetime | None = None
    plan_key: datetime | None = None


class Rotation:
    """What is about to be replaced in an authority's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.authority = folder, Authority(folder)
        self._plan_key = folder / "plan-next.key"
        self._ca_key, self._ca = folder / "ca-next.key", folder / "ca-next.crt"

    def until(self, what: What) -> datetime | None:
        """Until when the old one counts beside the new; None: there is no new one."""
        pending = {"ca": self._ca, "plan-key": self._plan_key}[what].exists()
        return (self._dates.ca if what == "ca" else self._dates.plan_key) if pending else None

    def begin(self, what: What, coordinator: str, days: float) -> bool:
        """Make a new one, unless there is one already; return whether it was made."""
        if self.until(what) is not None:
            return False
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
        changed = self._dates.model_copy(update={what.replace("-", "_"): until})
        write_atomically(self._folder / FILE, changed.model_dump_json().encode())
        if what == "plan-key" and not self._plan_key.exists():
            write_key(self._plan_key, new_plan_key())
        if what == "ca" and not self._ca.exists():
            make_ca(self._ca_key, self._ca, coordinator)
        return True

    def finish(self, what: What) -> None:
        """Let the new one take the old one's place; the old private key is gone. Done twice, it does no harm."""
        if what == "plan-key" and self._plan_key.exists():
            self._plan_key.replace(self._folder / "plan.key")
        if what == "ca" and self._ca.exists():
            if self._ca_key.exists():  # not after a crash between the two
                self._ca_key.replace(self._folder / "ca.key")
            self._ca.replace(self._folder / "ca.crt")

    def is_due(self, what: What) -> bool:
        """Whether the old one does not count any more for sites that know the new."""
        until = self.until(what)
        return until is not None and until.timestamp() <= time.time()

    @property
    def plan_key_pem(self) -> tuple[str, Older | None]:
        """The key that is to sign plans, and the one that does so until it takes its place."""
        until = self.until("plan-key")
        if until is None:
            return self.authority.plan_key_pem, None
        return public_pem(read_plan_key(self._plan_key).public_key()), Older(
            pem=self.authority.plan_key_pem, until=until
        )

    @property
    def ca_pem(self) -> tuple[str, Older | None]:
        """The authority that is to vouch for the server, and the one that does so until it takes its place."""
        until = self.until("ca")
        if until is None:
            return self.authority.certificate_pem, None
        return self._ca.read_text(), Older(pem=self.authority.certificate_pem, until=until)

    @property
    def _dates(self) -> _Dates:
        path = self._folder / FILE
        try:
            return _Dates.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return _Dates()
        except (OSError, ValidationError) as error:
            raise AuthorityUnusable(f"{path} can't be read; remove it, and begin the rotation again") from error
