"""Is a site's home ready for `astrofed client start`: each thing that it will use, looked at now and mended before.

Nothing is written, sent or spent. What a plan would be told is another question (`astrofed.client.check`).
"""

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.x509 import load_pem_x509_certificate

from astrofed.client.data.check import check_dataset, describe_dataset
from astrofed.client.policy import POLICY_FILE, Policy
from astrofed.client.privacy.ledger import FILE as LEDGER_FILE
from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.ledger_report import spent_on_datasets
from astrofed.client.privacy.ledger_seal import HEAD, KEY
from astrofed.client.service.home import KEY_FILE, REQUEST_FILE, SITE_FILE, WELCOME_FILE, Home
from astrofed.client.service.setup import look_at_welcome
from astrofed.client.service.start import LOCK, look_at_devices
from astrofed.shared.errors import AstrofedError
from astrofed.shared.keys import fingerprint, grouped, plan_public_key
from astrofed.shared.membership import read_request


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str  # a file of the home, or "dataset NAME"
    ok: bool
    says: str  # what it is, or what is wrong and the mend


class _Amiss(AstrofedError):
    """What is wrong and how to mend it."""


def inspect_home(folder: Path) -> list[Finding]:
    """Return what was found of everything that a node started on that home would use."""
    try:
        home = Home.open(folder)
    except AstrofedError as error:
        return [Finding(SITE_FILE, False, str(error))]
    looks: list[tuple[str, Callable[[Home], str]]] = [
        (SITE_FILE, _site),
        (KEY_FILE, lambda each: f"readable by its owner alone, {grouped(fingerprint(each.key.public_key()))}"),
        (WELCOME_FILE, _welcome),
        (POLICY_FILE, _policy),
        *((f"dataset {name}", lambda each, name=name: _dataset(each, name)) for name in home.file.data),
        (LEDGER_FILE, _ledger),
        (str(folder), _folder),
    ]
    return [_finding(what, look, home) for what, look in looks]


def _finding(what: str, look: Callable[[Home], str], home: Home) -> Finding:
    try:
        return Finding(what, True, look(home))
    except AstrofedError as error:
        return Finding(what, False, str(error))


def _site(home: Home) -> str:
    limits, cores = home.file.limits, os.cpu_count() or 1
    if limits.threads is not None and limits.threads > cores:
        raise _Amiss(f"limits.threads is {limits.threads}, this machine has {cores} cores; give {cores} or fewer")
    look_at_devices(home)
    where = ", ".join(device if node is None else f"{device} of another machine" for device, node in limits.places)
    return f"site {home.site_name!r}, datasets {', '.join(home.file.data)}, computes on {where}"


def _welcome(home: Home) -> str:
    path = home.folder / WELCOME_FILE
    welcome = home.welcome  # says how to join, where there is none
    _, key = look_at_welcome(home, path)
    until = load_pem_x509_certificate(welcome.ca_certificate.encode()).not_valid_after_utc
    if until <= datetime.now(UTC):
        raise _Amiss(
            f"the certificate in {path} ended on {until:%Y-%m-%d}, so no server can be believed; ask "
            f"{welcome.coordinator!r} for a new welcome"
        )
    return f"coordinator {welcome.coordinator!r} at {welcome.address} until {until:%Y-%m-%d}, plan key {key}"


def _policy(home: Home) -> str:
    path = home.folder / POLICY_FILE
    policy = Policy.load(path)
    home.load_plugins()
    given = {name: Path(rules.path) for name, rules in policy.datasets.items()}
    known = {home.data_path(name).resolve() for name in home.file.data}
    stray = [name for name, data in given.items() if data.resolve() not in known]
    if stray:
        raise _Amiss(
            f"{path}: datasets.{stray[0]}.path is {given[stray[0]]}, where no dataset of {SITE_FILE} lies, so its "
            f"rules would count for nothing; give one of {', '.join(sorted(map(str, known)))}"
        )
    if not (policy.modes and policy.tasks and policy.models):
        raise _Amiss(f"{path} lets no plan in: name at least one mode, one task and one model")
    plan_key = plan_public_key(home.welcome.plan_key) if (home.folder / WELCOME_FILE).exists() else None
    if plan_key is not None and policy.coordinator(plan_key.public_bytes_raw()) is None:
        raise _Amiss(
            f"{path} names no coordinator with the plan key {grouped(fingerprint(plan_key))} of {WELCOME_FILE}, so all "
            f"its requests would be refused; `astrofed client join {home.folder / WELCOME_FILE} {home.folder}` adds it"
        )
    listed = (", ".join(each) for each in (policy.modes, policy.tasks, policy.models))
    return "modes {}; tasks {}; models {}".format(*listed)


def _dataset(home: Home, name: str) -> str:
    path = home.data_path(name)
    report = check_dataset(path)
    wrong = [f"{problem.subject}: {problem.message}" for problem in report.problems if problem.severity == "error"]
    if wrong:
        raise _Amiss(f"{path}: {'; '.join(wrong)}")
    found = describe_dataset(path)
    told = f"{found.num_units:,} × {found.privacy_unit}, fingerprint {found.fingerprint[:16]}…"
    for offered in read_request(home.folder / REQUEST_FILE).datasets if (home.folder / REQUEST_FILE).exists() else ():
        if offered.name == name and offered.fingerprint != found.fingerprint:
            raise _Amiss(
                f"{path} is no longer what {REQUEST_FILE} offered ({offered.fingerprint[:16]}…, now {told}); run "
                "`astrofed client init` again and send the new request, or put the old data back"
            )
    odd = f"; {len(report.problems)} warnings, see `astrofed data check {path}`" if report.problems else ""
    return told + odd


def _ledger(home: Home) -> str:
    if not any((home.folder / name).exists() for name in (LEDGER_FILE, HEAD, KEY)):
        return "none yet; the first private run makes it"
    book = Ledger(home.folder).book()
    spent = [f"{each.dataset[:12]}… epsilon {each.epsilon:.4g}" for each in spent_on_datasets(book)]
    return f"rows up to {book.last}, chained and signed" + (f"; spent on {', '.join(spent)}" if spent else "")


def _folder(home: Home) -> str:
    if not os.access(home.folder, os.W_OK | os.X_OK):
        raise _Amiss(f"{home.folder} can't be written; replies and the ledger need it: `chmod u+rwx {home.folder}`")
    return "another process serves it now" if _is_served(home.folder) else "writable"


def _is_served(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
