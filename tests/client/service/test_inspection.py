"""Whether a home is ready to start: every line ok, or the one thing that is wrong with its mend."""

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from astrofed.client.privacy.ledger import Expense, Ledger
from astrofed.client.service import setup
from astrofed.client.service.home import Home
from astrofed.client.service.inspection import inspect_home
from astrofed.client.service.start import _locked
from astrofed.shared.keys import fingerprint, public_pem
from astrofed.shared.membership import Welcome
from astrofed.shared.privacy.events import Event
from astrofed.simulations.bundled import resolve_bundled

LINES = ["site.toml", "node.key", "welcome.json", "policy.toml", "dataset planets", "ledger.sqlite"]


def certificate(days: int) -> str:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    end = datetime.now(UTC) + timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(end - timedelta(days=9)).not_valid_after(end)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def welcome(home: Path, days: int = 5) -> Welcome:
    return Welcome(
        coordinator="here",
        address="127.0.0.1:9092",
        ca_certificate=certificate(days),
        plan_key=public_pem(Ed25519PrivateKey.generate().public_key()),
        site="k2",
        node_fingerprint=fingerprint(Home.open(home).key.public_key()),
        federations=("all",),
        time=datetime.now(UTC).replace(microsecond=0),
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Complete but for the ledger; its policy lets something in."""
    found, data = tmp_path / "home", tmp_path / "k2.parquet"
    shutil.copy(resolve_bundled("planets/k2"), data)
    list(setup.make_home(found, "k2", "ops@example.org", {"planets": data}))
    edit(found / "policy.toml", "tasks = []", 'tasks = ["planets"]')
    edit(found / "policy.toml", "models = []", 'models = ["mlp"]')
    list(setup.take_welcome(Home.open(found), welcome(found)))
    return found


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def spend(home: Path) -> None:
    expense = Expense("run", 1, "federated", "d" * 64, "planet", 548, 1.0, Event(3.0, 1.0, 6))
    Ledger(home).settle(Ledger(home).reserve(expense, 6.0, 1e-5), expense, 6)


def test_a_home_that_is_ready_has_only_ok_lines_and_is_left_as_it_was(home: Path) -> None:
    before = sorted(path.name for path in home.iterdir())
    found = inspect_home(home)
    assert [each.what for each in found] == [*LINES, str(home)]
    assert all(each.ok for each in found), found
    says = {each.what: each.says for each in found}
    assert "548 × planet" in says["dataset planets"] and "none yet" in says["ledger.sqlite"]
    assert "127.0.0.1:9092" in says["welcome.json"] and says[str(home)] == "writable"
    assert sorted(path.name for path in home.iterdir()) == before
    spend(home)
    assert "rows up to 2, chained and signed; spent on dddddddddddd… epsilon" in inspect_home(home)[5].says
    with _locked(home):
        assert "another process serves it now" in inspect_home(home)[6].says


def cut_ledger(home: Path) -> None:
    spend(home)
    for each in home.glob("ledger.sqlite*"):
        each.unlink()


def other_data(home: Path) -> None:
    data = Home.open(home).data_path("planets")
    shutil.copy(resolve_bundled("planets/keck"), data)


def unwelcome(home: Path) -> None:
    over = Home.open(home).welcome.model_copy(update={"ca_certificate": certificate(days=-1)})
    (home / "welcome.json").write_text(over.to_json())


def stray_rules(home: Path) -> None:
    with (home / "policy.toml").open("a") as file:
        file.write('\n[datasets.old]\npath = "old.parquet"\n')


MISTAKES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no welcome": ("welcome.json", lambda home: (home / "welcome.json").unlink(), "client join"),
    "certificate over": ("welcome.json", unwelcome, "ended on .*new welcome"),
    "coordinator unknown": (
        "policy.toml",
        lambda home: (home / "welcome.json").write_text(welcome(home).to_json()),
        "no coordinator with the plan key .*client join",
    ),
    "policy with a mistake": (
        "policy.toml",
        lambda home: edit(home / "policy.toml", "tasks =", "taks ="),
        "did you mean 'tasks'",
    ),
    "policy that lets nothing in": (
        "policy.toml",
        lambda home: edit(home / "policy.toml", 'tasks = ["planets"]', "tasks = []"),
        "lets no plan in",
    ),
    "rules for no dataset": ("policy.toml", stray_rules, "datasets.old.path is .*would count for nothing"),
    "key that others read": ("node.key", lambda home: (home / "node.key").chmod(0o644), "chmod 600"),
    "data gone": (
        "dataset planets",
        lambda home: Home.open(home).data_path("planets").unlink(),
        "does not exist",
    ),
    "data changed": ("dataset planets", other_data, "no longer what request.json offered .*client init"),
    "ledger gone": ("ledger.sqlite", cut_ledger, "in doubt.*--accept"),
    "too many threads": (
        "site.toml",
        lambda home: edit(home / "site.toml", "[limits]\nthreads = ", "[limits]\nthreads = 9"),
        "limits.threads is 9.* or fewer",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_line_with_its_mend(home: Path, mistake: str) -> None:
    what, make, says = MISTAKES[mistake]
    make(home)
    wrong, *others = [each for each in inspect_home(home) if not each.ok]
    assert all(each.says == wrong.says for each in others)  # the welcome needs the node's key
    assert wrong.what == what
    assert re.search(says, wrong.says, flags=re.DOTALL), wrong.says


def test_a_folder_that_is_no_home_is_said_so(tmp_path: Path) -> None:
    (found,) = inspect_home(tmp_path)
    assert not found.ok and "client init" in found.says
