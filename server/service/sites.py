"""The registry of sites: who was enrolled, for which federations, and whose key was revoked. One file a site.

The gateway asks it at every request, so that a revoked key is refused at once; the files are read again only when
the folder has changed.
"""

import re
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically
from astrofed.shared.keys import fingerprint, node_public_key
from astrofed.shared.membership import Digest, EnrolmentRequest, OfferedDataset, Text
from astrofed.shared.plan import Name

_GRAIN_S = 0.1  # a folder's time of change is only so fine: what is younger is read again


class UnknownSite(UserMistake):
    """No site of that name is enrolled."""


class SiteExists(UserMistake):
    """Another key is enrolled under that name, or the key under another name, or the key was revoked."""


class RegistryBroken(UserMistake):
    """A file of the registry can't be read."""


class EnrolledSite(BaseModel):
    """A site that was enrolled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    contact: Text
    public_key: str
    fingerprint: Digest
    federations: tuple[Name, ...]
    datasets: tuple[OfferedDataset, ...]
    enrolled: datetime
    revoked: datetime | None = None
    revoked_keys: tuple[Digest, ...] = ()  # earlier keys of this site, which stay refused


class Sites:
    """The registry in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = -1
        self._sites: dict[str, EnrolledSite] = {}
        self._by_key: dict[str, EnrolledSite] = {}

    def all(self) -> dict[str, EnrolledSite]:
        """Return all sites by name, revoked ones too.

        Raises:
            RegistryBroken: a file can't be read; nobody is let in by a registry that is damaged.
        """
        changed = self._folder.stat().st_mtime_ns if self._folder.is_dir() else -1
        if changed != self._seen or self._seen < 0:
            self._sites = {site.name: site for site in (_read(path) for path in sorted(self._folder.glob("*.json")))}
            self._by_key = {site.fingerprint: site for site in self._sites.values()}
            self._seen = changed if time.time() - changed / 1e9 > _GRAIN_S else -1
        return self._sites

    def by_key(self, digest: str) -> EnrolledSite | None:
        """Return the site with a node key of that fingerprint, revoked or not."""
        self.all()
        return self._by_key.get(digest)

    def get(self, name: str) -> EnrolledSite:
        """Return a site.

        Raises:
            UnknownSite: there is none of that name.
        """
        site = self.all().get(name)
        if site is None:
            raise UnknownSite(f"no site {name!r} is enrolled; enrolled: {', '.join(self.all()) or 'none'}")
        return site

    def enroll(
        self, request: EnrolmentRequest, federations: tuple[str, ...], *, replace: bool = False
    ) -> tuple[EnrolledSite, str]:
        """Enter a site into the registry; return it and what was done ("enrolled", "changed" or "unchanged").

        Raises:
            SiteExists: the name has another key (without `replace`), the key another name, or the key was revoked.
        """
        digest = request.fingerprint
        known, owner = self.all().get(request.name), self.by_key(digest)
        if owner is not None and owner.name != request.name:
            raise SiteExists(f"this key is enrolled as {owner.name!r}; one key is one site")
        refused = {key for site in self.all().values() for key in site.revoked_keys}
        if digest in refused or (known is not None and known.revoked is not None and known.fingerprint == digest):
            raise SiteExists(
                f"the key of {request.name!r} was revoked and stays so; the site needs a new one: "
                "`astrofed client init` in a new folder, then enroll that request with --replace"
            )
        if known is not None and known.fingerprint != digest and not replace:
            state = "revoked" if known.revoked else "enrolled"
            raise SiteExists(
                f"{request.name!r} is {state} with another key ({known.fingerprint[:16]}…); if the site has a new key, "
                "compare its fingerprint and enroll with --replace: the old key is refused from then on"
            )
        older = known.revoked_keys if known is not None else ()
        if known is not None and known.fingerprint != digest:
            older = (*older, known.fingerprint)
        site = EnrolledSite(
            name=request.name,
            contact=request.contact,
            public_key=request.public_key,
            fingerprint=fingerprint(node_public_key(request.public_key)),
            federations=federations,
            datasets=request.datasets,
            enrolled=datetime.now(UTC).replace(microsecond=0),
            revoked_keys=older,
        )
        if known is not None and known.model_copy(update={"enrolled": site.enrolled}) == site:
            return known, "unchanged"
        self._write(site)
        return site, "enrolled" if known is None else "changed"

    def revoke(self, name: str) -> tuple[EnrolledSite, bool]:
        """Refuse a site's key from now on; return the site, and whether that is new.

        Raises:
            UnknownSite: there is none of that name.
        """
        site = self.get(name)
        if site.revoked is not None:
            return site, False
        revoked = site.model_copy(update={"revoked": datetime.now(UTC).replace(microsecond=0)})
        self._write(revoked)
        return revoked, True

    def _write(self, site: EnrolledSite) -> None:
        write_atomically(self._folder / f"{file_name(site.name)}.json", site.model_dump_json(indent=2).encode() + b"\n")
        self._seen = -1


def file_name(name: str) -> str:
    """Return a site's or run's name as the name of its file: no two names share one."""
    return re.sub(r"[^A-Za-z0-9_.-]", lambda match: f"%{ord(match.group()):02x}", name)


def _read(path: Path) -> EnrolledSite:
    try:
        return EnrolledSite.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RegistryBroken(f"{path} can't be read; restore it, or remove it and enroll the site again") from error
