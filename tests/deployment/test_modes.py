"""Every kind of run at real sites: server, TLS and the sites' own clients, each in its own process."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astrofed.client.meta.keeping import MODEL
from astrofed.client.privacy.noise_keys import noise_key, public_digits
from astrofed.server.evolution.run import read_evolution
from astrofed.server.record import read_record, verify_run
from astrofed.server.search.run import read_search
from astrofed.server.service.jobs import Jobs
from astrofed.shared.record import Round

pytestmark = pytest.mark.slow
NAMES = ("tess", "k2", "kepler")
MODES = '["federated", "single", "meta", "customer", "nas", "evolution"]'


@pytest.fixture(scope="module")
def sites(site_homes: Any, deployment: Any) -> Any:
    """Three sites, of which the last has not started its client yet."""
    for name in NAMES:
        site_homes.set_up(name)
    for name in NAMES:
        policy = site_homes.folder / name / "policy.toml"
        text = policy.read_text().replace('modes = ["federated"]', f"modes = {MODES}")
        text = text.replace("\n[data]\n", "\n[data]\nshared_noise = { colluding = 0 }\n")
        peers = [noise_key_of(site_homes, each) for each in NAMES if each != name]
        policy.write_text("\n".join([text, *peers]))
    deployment.start()
    for name in NAMES[:2]:
        site_homes.start(name)
    deployment.until(lambda: all("as node" in site_homes.log(name) for name in NAMES[:2]), "two sites are connected")
    return site_homes


def noise_key_of(sites: Any, name: str) -> str:
    """Return what `astrofed client noise-key` shows at a site."""
    digits = public_digits(noise_key(sites.folder / name))
    return f'[[peers]]\nname = "{name}"\npublic_key = "{digits}"\n'


@pytest.fixture
def all_sites(sites: Any) -> Any:
    """The three sites with their clients."""
    if "kepler" not in sites.processes:
        sites.start("kepler")
    return sites


@pytest.fixture(scope="module")
def plan(planets: dict[str, Any]) -> dict[str, Any]:
    return {**planets, "rounds": 2, "participants": [{"name": name, "data": "planets"} for name in NAMES]}


def done(sites: Any, run: str) -> tuple[Path, list[Round]]:
    """Wait for a run; return its folder and its rounds, in each of which all sites took part."""
    state = sites.deployment.finish(run)
    assert state.status == "done", state.reason + sites.deployment.logs()
    folder = sites.deployment.run_folder(run)
    verify_run(folder)
    assert (folder / "report.html").is_file()
    rounds = read_record(folder)[1]
    assert all(entry.accepted == NAMES and not entry.quarantined for entry in rounds[1:])
    return folder, rounds


def test_a_site_joins_a_run_of_open_membership_with_buffered_rounds(sites: Any, plan: dict[str, Any]) -> None:
    strategy = {"name": "FedAvg", "membership": "open", "quorum": 2, "buffer": 2}
    sites.deployment.submit({**plan, "name": "open", "rounds": 10_000, "strategy": strategy}, wait_s=1.0)
    sites.deployment.reach("open", 2)
    sites.start("kepler")

    def rounds() -> list[Round]:
        return list(read_record(sites.deployment.run_folder("open"))[1])

    sites.deployment.until(lambda: "kepler" in {name for entry in rounds() for name in entry.accepted}, "kepler is in")
    Jobs(sites.deployment.home / "jobs").stop("open")
    assert sites.deployment.finish("open").status == "stopped", sites.deployment.logs()
    assert [site.participant for entry in rounds() for site in entry.joined] == ["kepler"]
    assert all(len(entry.accepted) == 2 for entry in rounds()[1:])
    assert any("rounds ago" in note for entry in rounds() for note in entry.notes)


def test_meta_learning_is_stopped_and_resumed_and_makes_the_embedded_engines_model(
    all_sites: Any, plan: dict[str, Any], embedded: Callable[[dict[str, Any]], str]
) -> None:
    few = {**plan, "name": "meta", "mode": "meta", "rounds": 4, "meta": {"tasks": "sites", "episodes": 64}}
    few["training"] = {"batch_size": 4, "learning_rate": 0.01, "optimizer": "adam"}
    all_sites.deployment.submit(few)
    all_sites.deployment.reach("meta", 1)
    jobs = Jobs(all_sites.deployment.home / "jobs")
    jobs.stop("meta")
    assert all_sites.deployment.finish("meta").status == "stopped"
    jobs.resume("meta")
    all_sites.deployment.until(lambda: all_sites.deployment.state("meta").status != "stopped", "it is taken up")
    folder, rounds = done(all_sites, "meta")
    assert len(rounds) == 5 and "unadapted/loss" in rounds[-1].metrics
    assert "unadapted" in (folder / "report.html").read_text()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == embedded(few)
    for name in NAMES:  # its own model stays at each site
        assert (all_sites.folder / name / MODEL).is_file()


def test_a_customer_gets_a_model_of_its_own_and_its_ledger_is_charged(all_sites: Any, plan: dict[str, Any]) -> None:
    customer = {**plan, "name": "customer", "mode": "customer", "customer": {"site": "k2", "epochs": 1}}
    customer["privacy"] = {"epsilon": 4.0, "delta": 1e-5, "unit": "planet"}
    path = all_sites.folder / "k2" / MODEL
    before = path.read_bytes() if path.exists() else b""
    all_sites.deployment.submit(customer)
    folder, rounds = done(all_sites, "customer")
    assert "k2" in (folder / "report.html").read_text()
    spent = {each.participant: each.epsilon for each in rounds[-1].privacy}
    assert set(spent) == set(NAMES)
    (dataset,) = all_sites.ledger("k2")["datasets"]
    assert [(run["run"], run["reservations"], run["open"]) for run in dataset["runs"]] == [("customer", 2, 0)]
    assert dataset["epsilon"] == pytest.approx(spent["k2"]) and 0 < spent["k2"] <= 4.0
    assert path.read_bytes() not in (before, (folder / "model.safetensors").read_bytes())


def test_candidates_of_a_search_are_parts_of_the_plan_that_was_signed(all_sites: Any, plan: dict[str, Any]) -> None:
    space = {"model.hidden": [[8], [16]], "training.learning_rate": [1e-3, 1e-2]}
    search = {"space": space, "candidates": 2, "population": 2, "rungs": [1]}
    all_sites.deployment.submit({**plan, "name": "nas", "mode": "nas", "search": search})
    folder, _ = done(all_sites, "nas")
    found = read_search(folder)
    assert found is not None and found.winner in [trial.number for trial in found.trials]
    assert (
        f"winner: candidate {found.winner}" in (all_sites.deployment.home / "jobs" / "nas" / "worker.log").read_text()
    )


def test_members_of_an_evolution_are_trained_on_their_islands(all_sites: Any, plan: dict[str, Any]) -> None:
    keys = {"training.learning_rate": {"low": 1e-3, "high": 1e-1}}
    evolution = {"population": 2, "generations": 1, "rounds": 1, "keys": keys}
    all_sites.deployment.submit({**plan, "name": "evolution", "mode": "evolution", "evolution": evolution})
    folder, rounds = done(all_sites, "evolution")
    found = read_evolution(folder)
    assert found is not None and found.islands == tuple((name,) for name in NAMES)
    assert all(life.loss is not None for life in found.lives)
    assert rounds[-1].loss is not None and rounds[-1].loss < found.before


def test_a_differentiable_search_trains_the_mixture_at_the_sites_and_makes_the_embedded_engines_model(
    all_sites: Any, plan: dict[str, Any], embedded: Callable[[dict[str, Any]], str]
) -> None:
    search = {"algorithm": "differentiable", "space": {"model.hidden": [[1], [32]]}}
    training = {"batch_size": 8, "learning_rate": 0.01, "optimizer": "adam"}
    mixed = {**plan, "name": "mixed", "mode": "nas", "search": search, "training": training}
    all_sites.deployment.submit(mixed)
    folder, _ = done(all_sites, "mixed")
    rounds = read_record(folder / "search" / "mixture")[1]
    assert all(entry.accepted == NAMES and not entry.quarantined for entry in rounds[1:])
    found = read_search(folder)
    assert found is not None and sum(each.share for each in found.shares) == pytest.approx(1)
    assert len({each.share for each in found.shares}) == 2  # they were trained
    assert "mixed by shares" in (folder / "report.html").read_text()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == embedded(mixed)


def test_sites_share_noise_with_those_whose_keys_their_policies_name(all_sites: Any, plan: dict[str, Any]) -> None:
    shared = {
        "privacy": {"unit": "planet", "noise_multiplier": 4.0, "delta": 1e-5, "shared_noise": {"colluding": 0}},
        "strategy": {"name": "robust", "rule": "mean", "f": 0},
        "training": {"batch_size": 64, "max_steps": 1, "optimizer": "sgd", "learning_rate": 0.1},
    }
    all_sites.deployment.submit({**plan, **shared, "name": "shared-noise"})
    _, rounds = done(all_sites, "shared-noise")
    assert all(entry.skipped is None for entry in rounds)
    assert rounds[-1].loss is not None and rounds[0].loss is not None and rounds[-1].loss < rounds[0].loss + 0.1
    (dataset,) = all_sites.ledger("k2")["datasets"]
    assert any(each["run"].startswith("shared-noise") for each in dataset["runs"])


EVOLVING = {"training.learning_rate": {"low": 1e-3, "high": 1e-1}}


SEARCHING = {"space": {"model.hidden": [[8], [16]]}, "candidates": 2, "population": 2, "rungs": [1]}
PARTS = 4  # rounds of training at one site: of two candidates or members one each, and two of the winner


@pytest.mark.parametrize(
    ("mode", "section", "first"),
    [
        ("nas", {"search": SEARCHING}, "worker: candidate 1 "),
        (
            "evolution",
            {"evolution": {"population": 2, "generations": 1, "rounds": 1, "keys": EVOLVING}},
            "worker: member 1.1.1 ",
        ),
    ],
)
def test_a_private_search_or_evolution_goes_on_after_its_worker_was_killed_and_every_part_is_charged(
    all_sites: Any, plan: dict[str, Any], mode: str, section: dict[str, Any], first: str
) -> None:
    deployment, run = all_sites.deployment, f"private-{mode}"
    private = {
        "privacy": {"noise_multiplier": 4.0, "delta": 1e-5, "unit": "planet"},
        "strategy": {"name": "robust", "rule": "median", "f": 1},
        "training": {"batch_size": 32, "learning_rate": 0.01, "optimizer": "sgd"},
    }
    deployment.submit({**plan, "name": run, "mode": mode, **section, **private})
    log = deployment.home / "jobs" / run / "worker.log"
    deployment.until(lambda: log.is_file() and first in log.read_text(), "a part is trained")
    deployment.kill("astrofed.server.service.worker")
    _, rounds = done(all_sites, run)
    assert log.read_text().count("worker: started") == 2
    assert log.read_text().count(first) == 1  # what was done is not done again
    (dataset,) = all_sites.ledger("k2")["datasets"]
    charged = sum(each["reservations"] for each in dataset["runs"] if each["run"].startswith(run))
    assert PARTS <= charged <= PARTS + 1, dataset  # what was going on may have been charged when the worker died
    assert dataset["epsilon"] == pytest.approx({each.participant: each.epsilon for each in rounds[-1].privacy}["k2"])
