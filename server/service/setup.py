"""What the commands of `astrofed server` do to a server's folder. Each says what it did, and does nothing twice."""

import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from astrofed.server.service.authority import Authority
from astrofed.server.service.home import NoServer, ServerHome, ServerSettings
from astrofed.server.service.jobs import Job, Jobs
from astrofed.server.service.rotation import Rotation
from astrofed.server.service.sites import EnrolledSite, Sites, file_name
from astrofed.server.service.welcomes import finish_due, plan_key_fingerprint, write_welcome
from astrofed.server.strategies.build import build_strategy
from astrofed.shared.errors import UserMistake
from astrofed.shared.explain import explain
from astrofed.shared.keys import grouped
from astrofed.shared.membership import read_request
from astrofed.shared.plan import Plan, PlanError, load_plan
from astrofed.shared.signed_plan import SIGNATURE, sign_plan
from astrofed.shared.toml_file import as_model


class NotForSites(UserMistake):
    """A plan can't be run on real sites: a participant is not enrolled, or a key makes sense in simulations only."""


def open_home(folder: Path) -> ServerHome:
    """Return a server's folder.

    Raises:
        NoServer: it is none.
    """
    home = ServerHome(folder)
    home.settings()
    return home


def make_server(folder: Path, given: Mapping[str, Any]) -> Iterable[str]:
    """Make a server's folder, or bring its settings and certificate up to date; yield what was done.

    Raises:
        NoServer: a setting can't be, or the folder's path is too long.
        CannotWrite: the disk is full or the folder not writable.
    """
    home, before = ServerHome(folder), None
    if home.settings_file.exists():
        before = home.settings()
        given = {**before.model_dump(), **given}
    settings = as_model(ServerSettings, dict(given), NoServer, "settings")
    if settings != before:
        home.create(settings)
        yield f"{'made' if before is None else 'changed'} {home.settings_file}"
        if before is not None:
            yield "a server that is running takes this over when it is started again"
    authority = Authority(home.authority)
    made = not authority.exists
    authority.create(settings.name)
    if made:
        yield f"made an authority and the key that signs plans in {home.authority}; keep a copy of it in a safe place"
    yield renew_certificate(folder)
    if settings == before and not made:
        yield f"{home.settings_file} is as it should be"
    yield f"next: astrofed server enroll REQUEST, then astrofed server start (sites reach it at {settings.address})"


def renew_certificate(folder: Path, *, force: bool = False) -> str:
    """Issue the gateway's certificate anew if there is a reason; return what was done.

    Raises:
        NoServer, AuthorityUnusable, KeyUnusable: the folder is not as it should be.
    """
    home = open_home(folder)
    replaced = list(finish_due(home))
    settings, authority = home.settings(), Authority(home.authority)
    names = list(dict.fromkeys([settings.host, *settings.other_names]))
    reason = authority.needs_renewal(names) or ("it was asked for" if force else None)
    if reason is None:
        good = f"the certificate for {', '.join(names)} is good until {authority.valid_until:%Y-%m-%d}"
        return "; ".join([*replaced, good])
    authority.issue(names)
    return f"issued a certificate for {', '.join(names)}, good until {authority.valid_until:%Y-%m-%d} ({reason})"


def enroll_site(
    folder: Path, path: Path, federations: tuple[str, ...], *, replace: bool = False, out: Path | None = None
) -> Iterable[str]:
    """Enroll the site whose request lies at `path`, and write its welcome; yield what was done and what to compare.

    Raises:
        NotAMembershipFile: the request can't be used.
        SiteExists: see `Sites.enroll`.
    """
    home = open_home(folder)
    request = read_request(path)
    sites = Sites(home.sites)
    site, done = sites.enroll(request, federations, replace=replace)
    said = {"enrolled": "is enrolled", "changed": "is enrolled anew", "unchanged": "was enrolled before, just so"}[done]
    yield f"{site.name!r} {said}, for {', '.join(site.federations)} (contact: {site.contact})"
    for dataset in site.datasets:
        yield f"  offers {dataset.name!r}: {dataset.units:,} × {dataset.unit}, fingerprint {dataset.fingerprint[:16]}…"
    welcome = out or home.welcomes / f"{file_name(site.name)}.json"
    yield write_welcome(home, site, welcome)
    yield ""
    yield "compare with the site, by another way than the file came:"
    yield f"  the site's key       {grouped(site.fingerprint)}"
    yield f"  the key of its plans {plan_key_fingerprint(home)}"
    yield f"if they differ: astrofed server revoke {site.name!r}. If they agree, send the site {welcome}"


def submit_plan(
    folder: Path,
    path: Path,
    overrides: Iterable[str],
    name: str | None,
    federation: str,
    *,
    wait_s: float,
    quorum: int | None,
    valid_days: float,
) -> tuple[Job, bool]:
    """Check a plan against the enrolled sites, sign it and put it into the queue; return the job and whether it is new.

    Raises:
        PlanError, NotForSites: the plan can't be run on these sites.
        RunSubmitted: the name is taken.
    """
    home = open_home(folder)
    plan = _read(path, overrides)
    run = name or plan.name
    sites = _check(plan, Sites(home.sites).all(), federation, quorum)
    list(finish_due(home))
    issued = int(time.time())
    expires = issued + int(valid_days * 86400)
    until = Rotation(home.authority).until("plan-key")
    if until is not None:  # when sites cease to trust the key that signs it
        expires = min(expires, int(until.timestamp()))
    text = plan.to_json()
    signed = sign_plan(text, run, issued, expires, Authority(home.authority).plan_key)
    signature = signed[SIGNATURE]
    assert isinstance(signature, bytes)
    try:
        job = Job(
            run=run,
            plan=text,
            issued=issued,
            expires=expires,
            signature=signature.hex(),
            federation=federation,
            sites=sites,
            wait_s=wait_s,
            quorum=quorum,
            submitted=time.time(),
        )
    except ValidationError as error:
        raise PlanError("run: " + explain(error, Job)) from None
    return job, Jobs(home.jobs).submit(job)


def _read(path: Path, overrides: Iterable[str]) -> Plan:
    """Read a plan whose `data` are names of datasets at the sites, not paths on this machine."""
    load_plan(path, overrides)  # its errors name the file
    return load_plan(tomllib.loads(path.read_text(encoding="utf-8")), overrides)


def _check(plan: Plan, sites: Mapping[str, EnrolledSite], federation: str, quorum: int | None) -> dict[str, str]:
    """Return the fingerprints of the participants' nodes."""
    found: dict[str, str] = {}
    for participant in plan.participants:
        site = sites.get(participant.name)
        if participant.attack is not None:
            raise NotForSites(f"participants.{participant.name}.attack: attacks are for simulations; remove the key")
        if site is None:
            near = ", ".join(sites) or "none"
            raise NotForSites(f"participant {participant.name!r} is not an enrolled site; enrolled: {near}")
        if site.revoked is not None:
            raise NotForSites(f"participant {participant.name!r} was revoked at {site.revoked}; leave it out")
        if federation not in site.federations:
            raise NotForSites(
                f"participant {participant.name!r} is not in the federation {federation!r}, but in "
                f"{', '.join(site.federations)}; name another with --federation, or enroll it for this one"
            )
        offered = [dataset.name for dataset in site.datasets]
        if participant.data not in offered:
            raise NotForSites(
                f"participants.{participant.name}.data: {participant.data!r} is no dataset that the site offers; "
                f"it offers {', '.join(map(repr, offered)) or 'none'}"
            )
        found[participant.name] = site.fingerprint
    if quorum is not None and quorum > len(plan.trainers):
        raise NotForSites(f"--quorum {quorum} is more than the plan's {len(plan.trainers)} training participants")
    build_strategy(plan)  # raises a mistake in rule or options now, not in the queue
    return found
