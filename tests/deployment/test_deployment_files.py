"""The files for systemd, Docker and Kubernetes: read by the tools that would use them, and true to the commands."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "configs" / "deployment"
UNITS = sorted(FOLDER.glob("systemd/*.service"))
IMAGES = sorted(FOLDER.glob("docker/*.Dockerfile"))
MANIFESTS = sorted(FOLDER.glob("kubernetes/*.yaml"))


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _containers(path: Path) -> list[dict[str, Any]]:
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document["kind"] == "Deployment"]
    return [container for document in documents for container in document["spec"]["template"]["spec"]["containers"]]


def test_both_sides_have_a_file_of_each_kind() -> None:
    for files in (UNITS, IMAGES, MANIFESTS):
        assert len(files) == 2


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_the_units(path: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    installed = tmp_path / path.name
    installed.write_text(path.read_text().replace("/opt/astrofed/bin/", f"{Path(sys.executable).parent}/"))
    assert _run("systemd-analyze", "verify", installed) == ""
    exposure = re.search(
        r"exposure level for .*: ([\d.]+)", _run("systemd-analyze", "security", "--offline=yes", installed)
    )
    assert exposure is not None
    assert float(exposure[1]) < 2.5


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_the_dockerfiles_pass_the_linter(path: Path) -> None:
    assert _run(Path(sys.executable).parent / "hadolint", path) == ""


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_manifests_fit_the_schema_and_hold_nothing_else(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, "1.37", strict=True)
    for container in _containers(path):
        assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_schema_check_would_find_a_wrong_key() -> None:
    document = next(yaml.safe_load_all(MANIFESTS[0].read_text()))
    document["spec"]["acessModes"] = ["ReadWriteOnce"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.37", strict=True)


@pytest.mark.parametrize("path", UNITS + IMAGES, ids=lambda path: path.name)
def test_what_they_start_is_a_command_that_there_is(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".service":
        command = shlex.split(
            next(line for line in text.splitlines() if line.startswith("ExecStart=")).split("=", 1)[1]
        )[1:]
    else:
        lines = dict(line.split(" ", 1) for line in text.splitlines() if line.startswith(("ENTRYPOINT", "CMD")))
        command = json.loads(lines["ENTRYPOINT"])[1:] + json.loads(lines["CMD"])
    usage = _run(Path(sys.executable).parent / "astrofed", *command[:2], "--help")
    for option in (word for word in command if word.startswith("--")):
        assert option in usage
