"""The queue with real processes: federations apart, quorums, stopping, resuming, revoking."""

from typing import Any

import pytest

from astrofed.server.record import read_record
from astrofed.server.service.jobs import Jobs
from astrofed.server.service.sites import Sites

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _serving(deployment: Any) -> None:
    deployment.enroll("tess", "k2", federation="north")
    deployment.enroll("la_silla", "keck", federation="south")
    deployment.start()
    deployment.connect("tess", "k2", "la_silla")
    deployment.connect("keck")


def _of(plan: dict[str, Any], name: str, *sites: str, **changes: Any) -> dict[str, Any]:
    return {**plan, "name": name, "participants": [{"name": site, "data": "planets"} for site in sites], **changes}


def test_runs_of_two_federations_go_on_at_once_and_apart(deployment: Any, planets: dict[str, Any]) -> None:
    deployment.submit(_of(planets, "north run", "tess", "k2", rounds=6), federation="north")
    deployment.submit(_of(planets, "south run", "la_silla", "keck", rounds=6), federation="south")
    deployment.until(
        lambda: {deployment.state(run).status for run in ("north run", "south run")} == {"running"}, "both run at once"
    )
    for run, sites in (("north run", {"tess", "k2"}), ("south run", {"la_silla", "keck"})):
        assert deployment.finish(run).status == "done"
        start, rounds = read_record(deployment.run_folder(run))
        assert start is not None and {site.participant for site in start.enrolled} == sites
        assert all(set(entry.accepted) == sites and not entry.quarantined for entry in rounds[1:])


def test_a_run_is_stopped_after_its_round_and_resumed(deployment: Any, planets: dict[str, Any]) -> None:
    deployment.submit(_of(planets, "long", "tess", "k2", rounds=300), federation="north")
    deployment.reach("long", 1)
    jobs = Jobs(deployment.home / "jobs")
    jobs.stop("long")
    stopped = deployment.finish("long")
    assert stopped.status == "stopped" and stopped.round is not None and stopped.round < 300
    jobs.resume("long")
    deployment.until(lambda: (deployment.state("long").round or 0) > (stopped.round or 0), "it goes on")
    jobs.stop("long")
    assert deployment.finish("long").status == "stopped"
    _, rounds = read_record(deployment.run_folder("long"))
    assert [entry.round for entry in rounds] == list(range(len(rounds)))


def test_a_run_waits_for_its_sites_and_then_goes_on_with_a_quorum_or_fails_by_name(
    deployment: Any, planets: dict[str, Any]
) -> None:
    deployment.enroll("absent", federation="north")
    plan = _of(planets, "without quorum", "tess", "k2", "absent", rounds=1)
    deployment.submit(plan, federation="north", wait_s=1.0)
    failed = deployment.finish("without quorum")
    assert failed.status == "failed"
    assert "not connected: absent" in failed.reason and "--quorum" in failed.reason
    deployment.submit({**plan, "name": "with quorum"}, federation="north", wait_s=1.0, quorum=2)
    assert deployment.finish("with quorum").status == "done"
    start, rounds = read_record(deployment.run_folder("with quorum"))
    assert start is not None
    assert [site.participant for site in start.enrolled] == ["tess", "k2"]
    assert [item.participant for item in start.refused] == ["absent"]
    assert rounds[-1].accepted == ("tess", "k2")


def test_a_site_revoked_during_a_run_is_out_of_it(deployment: Any, planets: dict[str, Any]) -> None:
    plan = _of(planets, "revoked", "la_silla", "keck", rounds=300)
    plan["strategy"] = {"name": "FedAvg", "timeout_s": 10.0}
    deployment.submit(plan, federation="south")
    deployment.reach("revoked", 1)
    Sites(deployment.home / "sites").revoke("keck")
    count = deployment.state("revoked").round or 0
    deployment.reach("revoked", count + 3)
    Jobs(deployment.home / "jobs").stop("revoked")
    assert deployment.finish("revoked").status == "stopped"
    _, rounds = read_record(deployment.run_folder("revoked"))
    assert rounds[-1].accepted == ("la_silla",)
    assert {item.reason for item in rounds[-1].quarantined if item.participant == "keck"} == {"the site was revoked"}
