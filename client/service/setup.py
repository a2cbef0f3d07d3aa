"""How a site begins: its home folder and enrolment request, and the welcome that makes it part of a federation."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from astrofed.client.data.check import describe_dataset
from astrofed.client.policy import POLICY_FILE, Policy
from astrofed.client.policy_template import write_new_policy
from astrofed.client.service.home import KEY_FILE, REQUEST_FILE, SITE_FILE, WELCOME_FILE, Home, site_toml
from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically
from astrofed.shared.keys import fingerprint, grouped, new_node_key, plan_public_key, read_node_key, write_key
from astrofed.shared.membership import OfferedDataset, Welcome, make_request, read_welcome


class OtherSite(UserMistake):
    """A home that is another site's already, or a welcome that is for another site."""


class WrongFingerprint(UserMistake):
    """The coordinator's plan key is not the one that was expected."""


def make_home(folder: Path, name: str, contact: str, data: Mapping[str, Path]) -> Iterator[str]:
    """Make a site's home, or complete one; give a line for people on each thing that was done.

    What is there stays: keys are never replaced, and files that people edit are not written again. The request is made
    anew, from what site.toml says now.

    Raises:
        OtherSite: the folder is the home of a site with another name.
        UserMistake: a dataset can't be used, the name or contact can't be, or the folder is not writable.
    """
    if (folder / SITE_FILE).exists():
        home = Home.open(folder)
        if home.file.name != name:
            raise OtherSite(f"{folder} is the home of site {home.file.name!r}; give another folder for {name!r}")
        yield f"{folder / SITE_FILE} is there and stays as it is; edit it to change contact, data or limits"
    else:
        _offered({each: path.resolve() for each, path in data.items()})  # before anything is written
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = site_toml(name, contact, {each: str(path.resolve()) for each, path in data.items()})
        write_atomically(folder / SITE_FILE, text.encode())
        home = Home.open(folder)
        yield f"wrote {folder / SITE_FILE}: name, contact, where the data lie, limits"
    home.logs.mkdir(exist_ok=True, mode=0o700)
    if (folder / KEY_FILE).exists():
        yield f"{folder / KEY_FILE} is there and stays"
    else:
        write_key(folder / KEY_FILE, new_node_key())
        yield f"wrote {folder / KEY_FILE}: the node's private key; it never leaves this machine"
    if (folder / POLICY_FILE).exists():
        Policy.load(folder / POLICY_FILE)
        yield f"{folder / POLICY_FILE} is there and stays"
    else:
        write_new_policy(folder / POLICY_FILE)
        yield f"wrote {folder / POLICY_FILE}: a careful policy that lets nothing run yet; edit it"
    key = read_node_key(folder / KEY_FILE)
    offered = _offered({each: home.data_path(each) for each in home.file.data})
    request = make_request(home.file.name, home.file.contact, offered, key)
    write_atomically(folder / REQUEST_FILE, request.to_json().encode())
    yield f"wrote {folder / REQUEST_FILE}: send it to the coordinator"
    for each in offered:
        yield f"  it offers {each.name!r}: {each.units:,} × {each.unit}, fingerprint {each.fingerprint[:16]}…"
    yield f"read this to the coordinator, to compare: {grouped(fingerprint(key.public_key()))}"


def look_at_welcome(home: Home, path: Path) -> tuple[Welcome, str | None]:
    """Return a welcome that is for this site, and the fingerprint of its plan key, as people compare it.

    There is none to compare where a key that this site trusts signed the welcome.

    Raises:
        NotAMembershipFile: it can't be read.
        OtherSite: it is for another site, for another key than this site's, by another coordinator, or older than
            the one that the site has.
    """
    welcome = read_welcome(path)
    if welcome.site != home.file.name:
        raise OtherSite(f"{path} welcomes site {welcome.site!r}; this is {home.file.name!r}")
    if welcome.node_fingerprint != fingerprint(home.key.public_key()):
        raise OtherSite(
            f"{path} is for another key than {home.folder / KEY_FILE}; send {home.folder / REQUEST_FILE} again"
        )
    if (home.folder / WELCOME_FILE).exists():
        old = home.welcome
        if welcome.is_signed_by(old.plan_keys(time.time())):
            if welcome.time < old.time:
                raise OtherSite(f"{path} is of {welcome.time}; the site has a newer one, of {old.time}")
            return welcome, None
        if old.plan_key != welcome.plan_key:
            raise OtherSite(
                f"{home.folder} has joined {old.coordinator!r}, whose plan key is another and did not sign {path}; a "
                "site that joins two coordinators needs a home for each (to leave the old one, or where its key was "
                f"stolen, remove {home.folder / WELCOME_FILE} and the old key in {POLICY_FILE}, and compare anew)"
            )
    return welcome, grouped(fingerprint(plan_public_key(welcome.plan_key)))


def check_fingerprint(found: str, expected: str) -> None:
    """Compare fingerprints as people type them.

    Raises:
        WrongFingerprint: they differ.
    """
    wanted = re.sub(r"[^0-9a-f]", "", expected.lower())
    if re.sub(r"\s", "", found) != wanted[:32] or len(wanted) < 32:
        raise WrongFingerprint(
            f"the welcome's plan key has the fingerprint {found}, not {expected}; do not join: ask the coordinator"
        )


def take_welcome(home: Home, welcome: Welcome) -> Iterator[str]:
    """Keep a welcome and let the policy know its coordinator; give a line for people on each thing that was done.

    Raises:
        PolicyError, CannotWrite: the policy can't be read, or a file not be written.
    """
    key, path = plan_public_key(welcome.plan_key).public_bytes_raw(), home.folder / POLICY_FILE
    if Policy.load(path).coordinator(key) is None:
        name, text = json.dumps(_name(welcome.coordinator)), path.read_text(encoding="utf-8").rstrip("\n")
        block = f"[[coordinators]]\nname = {name}\npublic_key = {json.dumps(key.hex())}\n"
        write_atomically(path, f"{text}\n\n{block}".encode())
        Policy.load(path)
        yield f"added the coordinator to {path}"
    write_atomically(home.folder / WELCOME_FILE, welcome.to_json().encode())
    yield f"joined {welcome.coordinator!r} at {welcome.address} (federations: {', '.join(welcome.federations)})"


def _offered(data: Mapping[str, Path]) -> list[OfferedDataset]:
    offered = []
    for name, path in data.items():
        found = describe_dataset(path)
        offered.append(
            OfferedDataset(name=name, fingerprint=found.fingerprint, unit=found.privacy_unit, units=found.num_units)
        )
    return offered


def _name(text: str) -> str:
    """Return a coordinator's name in the characters that a policy's names have."""
    return re.sub(r"[^A-Za-z0-9 _.-]", "-", text).strip(" -_.")[:80] or "coordinator"
