"""Welcomes: what each site is told of the server, anew whenever that changes; and the command that changes the keys."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from astrofed.server.service.home import ServerHome
from astrofed.server.service.rotation import Rotation, What
from astrofed.server.service.sites import EnrolledSite, Sites, file_name
from astrofed.shared.files import write_atomically
from astrofed.shared.keys import fingerprint, grouped, plan_public_key
from astrofed.shared.membership import Welcome, read_welcome

NAMES: dict[What, str] = {"ca": "the authority", "plan-key": "the key that signs plans"}


def write_welcome(home: ServerHome, site: EnrolledSite, path: Path) -> str:
    """Write a site's welcome, unless it lies there just so; return what was done."""
    welcome = _welcome(home, site)
    if path.exists() and _says(read_welcome(path)) == _says(welcome):
        return f"its welcome lies in {path}"
    write_atomically(path, welcome.to_json().encode())
    return f"wrote its welcome to {path}"


def plan_key_fingerprint(home: ServerHome) -> str:
    """Return the fingerprint of the plan key that welcomes name, as people compare it."""
    return grouped(fingerprint(plan_public_key(Rotation(home.authority).plan_key_pem[0])))


def rotate(home: ServerHome, what: What, *, days: float, finish: bool) -> Iterator[str]:
    """Begin to replace the authority or the plan key, go on with it, or finish it; yield what was done.

    With `days` 0 the old one counts no more from now on, for a server whose key was stolen.
    """
    rotation, settings = Rotation(home.authority), home.settings()
    made = rotation.begin(what, settings.name, days)
    until = rotation.until(what)
    yield f"made a new one of {NAMES[what]}" if made else f"there is a new one of {NAMES[what]} already"
    for site in Sites(home.sites).all().values():
        if site.revoked is None:
            yield f"{site.name}: {write_welcome(home, site, home.welcomes / f'{file_name(site.name)}.json')}"
    if finish or rotation.is_due(what):
        yield from finish_due(home, what)
        return
    yield "send each site its welcome; `astrofed client join WELCOME HOME` takes it, for it is signed by the old key"
    yield f"the old one is used until {until:%Y-%m-%d %H:%M} UTC, or until you run this with --finish"


def finish_due(home: ServerHome, *forced: What) -> Iterator[str]:
    """Change over to what was made anew, where it is time to, or where it is asked for; yield what was done."""
    rotation = Rotation(home.authority)
    for what, name in NAMES.items():
        if what in forced or rotation.is_due(what):
            rotation.finish(what)
            if what == "ca":
                settings = home.settings()
                rotation.authority.issue(list(dict.fromkeys([settings.host, *settings.other_names])))
            yield f"{name} was replaced; the old one is used no more"


def rotating(home: ServerHome) -> Iterator[str]:
    """Yield a line on each of the two that is being replaced."""
    rotation = Rotation(home.authority)
    for what, name in NAMES.items():
        if (until := rotation.until(what)) is not None:
            yield f"{name} is being replaced; the old one is used until {until:%Y-%m-%d %H:%M} UTC"


def _welcome(home: ServerHome, site: EnrolledSite) -> Welcome:
    settings, rotation = home.settings(), Rotation(home.authority)
    (plan_key, older_plan_key), (ca, older_ca) = rotation.plan_key_pem, rotation.ca_pem
    return Welcome(
        coordinator=settings.name,
        address=settings.address,
        ca_certificate=ca,
        plan_key=plan_key,
        site=site.name,
        node_fingerprint=site.fingerprint,
        federations=site.federations,
        time=datetime.now(UTC).replace(microsecond=0),
        older_ca_certificate=older_ca,
        older_plan_key=older_plan_key,
    ).signed(rotation.authority.plan_key)


def _says(welcome: Welcome) -> Welcome:
    """Return a welcome without what differs between two that say the same."""
    return welcome.model_copy(update={"time": None, "signature": ""})
