"""What the commands do to a server's folder: once, and with one clear error where it can't be."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from astrofed.cli import app
from astrofed.server.service.home import NoServer, ServerHome
from astrofed.server.service.jobs import JobFolder, Jobs, NothingToDo, RunSubmitted, UnknownRun
from astrofed.server.service.setup import NotForSites, enroll_site, make_server, submit_plan
from astrofed.server.service.sites import Sites
from astrofed.shared.keys import fingerprint, new_node_key, plan_public_key
from astrofed.shared.membership import OfferedDataset, make_request, read_welcome
from astrofed.shared.signed_plan import verify_plan

PLAN: dict[str, Any] = {
    "name": "first",
    "rounds": 2,
    "task": {"name": "planets"},
    "model": {"name": "mlp"},
    "strategy": {"name": "FedAvg"},
    "participants": [{"name": "kepler", "data": "archive"}],
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    list(make_server(folder, {"name": "Origins", "host": "fl.example.org"}))
    return folder


def _enroll(home: Path, name: str = "kepler", **options: Any) -> list[str]:
    key = new_node_key()
    offered = OfferedDataset(name="archive", fingerprint="ab" * 32, unit="planet", units=1200)
    path = home.parent / f"{name}.json"
    path.write_text(make_request(name, "ada@example.org", [offered], key).to_json())
    return list(enroll_site(home, path, ("default",), **options))


def _submit(home: Path, plan: dict[str, Any], **options: Any) -> Any:
    path = home.parent / "plan.toml"
    path.write_text(tomli_w.dumps(plan))
    given: dict[str, Any] = {"name": None, "federation": "default", "wait_s": 1.0, "quorum": None, "valid_days": 1.0}
    return submit_plan(home, path, [], **{**given, **options})


def test_a_server_is_made_once_and_says_so(home: Path) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    said = list(make_server(home, {"name": "Origins", "host": "fl.example.org"}))
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert any("as it should be" in line for line in said)
    assert home.stat().st_mode & 0o077 == 0


def test_another_name_gets_another_certificate_and_the_authority_stays(home: Path) -> None:
    authority = (home / "authority" / "ca.crt").read_bytes()
    said = list(make_server(home, {"host": "other.example.org"}))
    assert any("issued a certificate for other.example.org" in line for line in said)
    assert (home / "authority" / "ca.crt").read_bytes() == authority
    assert ServerHome(home).settings().name == "Origins"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"host": "not a host"}, "host"),
        ({"host": "h", "port": 70000}, "port"),
        ({"host": "h", "colour": "blue"}, "colour"),
        ({}, "host: required"),
    ],
)
def test_settings_that_can_not_be_are_named(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(NoServer, match=words):
        list(make_server(tmp_path / "s", {"name": "x", **given}))


def test_a_folder_without_a_server_or_with_a_long_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoServer, match="astrofed server init"):
        ServerHome(tmp_path).settings()
    with pytest.raises(NoServer, match="too long for a socket"):
        list(make_server(tmp_path / ("x" * 120), {"name": "x", "host": "h"}))


def test_a_welcome_is_written_for_the_site_alone(home: Path) -> None:
    said = _enroll(home)
    site = Sites(home / "sites").get("kepler")
    welcome = read_welcome(home / "welcomes" / "kepler.json")
    assert (welcome.site, welcome.node_fingerprint, welcome.address) == (
        "kepler",
        site.fingerprint,
        "fl.example.org:8443",
    )
    shown = site.fingerprint[:4] + " " + site.fingerprint[4:8]
    assert any(shown in line for line in said)
    plan_key = fingerprint(plan_public_key(welcome.plan_key))
    assert any(plan_key[:4] + " " + plan_key[4:8] in line for line in said)


def test_a_submitted_plan_is_signed_and_keeps_datasets_names(home: Path) -> None:
    _enroll(home)
    job, new = _submit(home, PLAN)
    assert new and job.run == "first"
    welcome = read_welcome(home / "welcomes" / "kepler.json")
    verified = verify_plan(job.signed, plan_public_key(welcome.plan_key), job.issued)
    assert json.loads(verified.plan)["participants"][0]["data"] == "archive"
    assert _submit(home, PLAN)[1] is False
    with pytest.raises(RunSubmitted, match="--name"):
        _submit(home, {**PLAN, "rounds": 3})
    assert _submit(home, {**PLAN, "rounds": 3}, name="second")[1]
    assert [each.job.run for each in Jobs(home / "jobs").all()] == ["first", "second"]


@pytest.mark.parametrize(
    ("participant", "words"),
    [
        ({"name": "tess", "data": "archive"}, "'tess' is not an enrolled site; enrolled: kepler"),
        ({"name": "kepler", "data": "/home/me/archive.parquet"}, "offers 'archive'"),
        ({"name": "kepler", "data": "archive", "attack": {"name": "sign-flip"}}, "simulations"),
    ],
)
def test_a_plan_for_others_than_the_enrolled_is_refused(home: Path, participant: dict[str, Any], words: str) -> None:
    _enroll(home)
    with pytest.raises(NotForSites, match=words):
        _submit(home, {**PLAN, "participants": [participant]})


def test_a_plan_for_another_federation_a_revoked_site_or_too_few_is_refused(home: Path) -> None:
    _enroll(home)
    with pytest.raises(NotForSites, match="--federation"):
        _submit(home, PLAN, federation="elsewhere")
    with pytest.raises(NotForSites, match="more than the plan's 1"):
        _submit(home, PLAN, quorum=2)
    Sites(home / "sites").revoke("kepler")
    with pytest.raises(NotForSites, match="revoked"):
        _submit(home, PLAN)


def test_stop_and_resume_leave_wishes_where_they_make_sense(home: Path) -> None:
    _enroll(home)
    _submit(home, PLAN)
    jobs = Jobs(home / "jobs")
    with pytest.raises(UnknownRun, match="there are: first"):
        jobs.stop("frist")
    with pytest.raises(NothingToDo, match="it is queued"):
        jobs.resume("first")
    assert jobs.stop("first") == "leaves the queue"
    jobs.get("first").note(status="stopped", round=4)
    with pytest.raises(NothingToDo, match="it is stopped"):
        jobs.stop("first")
    assert jobs.resume("first") == "goes on after round 4"
    assert jobs.get("first").wishes("resume") and not jobs.get("first").wishes("stop")


def test_a_damaged_job_does_not_stop_the_others(home: Path) -> None:
    _enroll(home)
    _submit(home, PLAN)
    _submit(home, PLAN, name="second")
    (home / "jobs" / "first" / "job.json").write_text("{")
    assert [each.job.run for each in Jobs(home / "jobs").all()] == ["second"]
    assert isinstance(Jobs(home / "jobs").get("second"), JobFolder)


def test_the_commands_say_what_they_did(tmp_path: Path) -> None:
    runner, folder = CliRunner(), str(tmp_path / "server")
    made = runner.invoke(app, ["server", "init", "--host", "127.0.0.1", "--home", folder])
    assert made.exit_code == 0 and "next: astrofed server enroll" in made.output
    _enroll(tmp_path / "server")
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(PLAN))
    sent = runner.invoke(app, ["server", "submit", str(tmp_path / "plan.toml"), "--home", folder, "--json"])
    assert json.loads(sent.stdout) == {"run": "first", "new": True}
    listed = runner.invoke(app, ["server", "list", "--home", folder, "--json"])
    (run,) = json.loads(listed.stdout)["runs"]
    assert (run["run"], run["status"], run["rounds"], run["model"]) == ("first", "queued", 2, None)
    status = runner.invoke(app, ["server", "status", "--home", folder])
    assert "is not running" in status.output and "kepler (default): not heard of" in status.output
    revoked = runner.invoke(app, ["server", "revoke", "kepler", "--home", folder])
    assert "refused from now on" in revoked.output
    assert runner.invoke(app, ["server", "renew", "--home", folder]).exit_code == 0
    assert "was given" not in runner.invoke(app, ["server", "logs", "--home", folder]).output
