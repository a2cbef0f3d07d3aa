"""The report: one page that stands alone, says only what the record supports, and is written for any run."""

import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astrofed.client.site import Site
from astrofed.client.tasks.datacube import DatacubeEmulation
from astrofed.server.record import LINES, NoRun, RecordBroken, RunRecord
from astrofed.server.report import write_report
from astrofed.server.showcase import NAMES, write_showcase
from astrofed.shared.files import CannotWrite
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.record import Enrolled, Quarantine, Round, Spent, Start

SITES = ("earthlike", "continents", "fast ocean")
WORLDS: dict[str, Any] = {
    "name": "three worlds",
    "rounds": 3,
    "task": {"name": "datacube"},
    "model": {"name": "datacube-net"},
    "strategy": {"name": "robust", "rule": "median", "f": 1},
    "participants": [{"name": name, "data": "/data"} for name in SITES],
}
PLANETS = {**WORLDS, "name": "catalogue", "task": {"name": "planets"}, "model": {"name": "mlp"}}
PRIVATE = {**PLANETS, "privacy": {"epsilon": 8.0, "delta": 1e-4, "unit": "planet"}}
VOID = ("area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "track", "wbr")


class Page(HTMLParser):
    """A parsed page: its text by section, and every attribute; unbalanced tags fail."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.sections: dict[str, str] = {"": ""}
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self._section = ""
        self.feed(self.source)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"unbalanced </{tag}>"
        if tag == "section":
            self._section = "end"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self._section = data
        if "style" not in self._open:
            text = re.sub(r"\s+", " ", data.replace("\N{MINUS SIGN}", "-"))
            self.sections[self._section] = self.sections.get(self._section, "") + text

    @property
    def text(self) -> str:
        return " ".join(self.sections.values())


def evaluation(number: int, **more: float) -> dict[str, float]:
    """Metrics that fall with the rounds, as a datacube task reports them."""
    loss = 0.6 + 0.4 / (1 + number)
    found = {"loss": loss, "rmse/ta": 4 * loss, **{f"rmse/ta/{k}": loss * (k + 1) for k in range(4)}, "rmse/ps": 500.0}
    if number == 0:
        found |= {"baseline/persistence/loss": 1.0, "baseline/persistence/rmse/ta": 4.0, "baseline/odd/loss": 0.7}
    return found | more


def complete(number: int, **more: Any) -> dict[str, Any]:
    """One round's entry: all accepted, evaluated at every site."""
    metrics = evaluation(number)
    took_part = SITES if number else ()
    return {
        "accepted": took_part,
        "loss": metrics["loss"],
        "metrics": metrics,
        "sites": dict.fromkeys(SITES, metrics),
    } | more


def record(
    folder: Path, plan: dict[str, Any], entries: Sequence[dict[str, Any]], refused: tuple[Quarantine, ...] = ()
) -> Path:
    """Write a run's folder with these rounds."""
    resolved: Plan = load_plan(plan)
    run = RunRecord.create(folder, resolved)
    enrolled = tuple(
        Enrolled(
            participant=participant.name,
            role=participant.role,
            num_examples=1200,
            num_eval_examples=6,
            num_units=300,
            unit="planet",
            fingerprint="f" * 64,
            description=f"the data of {participant.name}",
        )
        for participant in resolved.participants
        if participant.name not in {item.participant for item in refused}
    )
    run.append(
        Start(
            previous=run.previous,
            time="2026-11-24T12:00:00+00:00",
            versions={"astrofed": "0.1.0", "numpy": "2.0"},
            engine="embedded",
            parameters=196740,
            enrolled=enrolled,
            refused=refused,
        )
    )
    for number, entry in enumerate(entries):
        fixed = {"seconds": 2.5, "bytes": 1_000_000, "checkpoint": "c", "checkpoint_sha256": "0" * 64}
        run.append(Round(previous=run.previous, round=number, **fixed, **entry))
    return folder


def page(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run with everything a report can show."""
    plan = {
        **WORLDS,
        "participants": [
            {"name": "earthlike", "data": "bundled:worlds/earthlike"},
            {"name": "continents", "data": "/data", "attack": {"name": "sign-flip"}},
            {"name": "fast ocean", "data": "/data"},
            {"name": "eccentric", "data": "/data", "role": "evaluate"},
        ],
    }
    entries = []
    for number in range(4):
        physics = {"physics/hydrostatic/compliance": 0.91, "physics/hydrostatic/tolerance": 0.001}
        if number == 0:
            physics["baseline/data/physics/hydrostatic/compliance"] = 0.97
        metrics = evaluation(number, **physics)
        out = (Quarantine(participant="continents", reason=f"distance {number}.5e3 from the others"),) if number else ()
        into = ("earthlike", "fast ocean") if number else ()
        entry = complete(number, accepted=into, weights=dict.fromkeys(into, 0.5), quarantined=out, metrics=metrics)
        entries.append({**entry, "unseen": {**evaluation(number), "loss": 0.9}})
    yield record(tmp_path_factory.mktemp("runs") / "finished", plan, entries)


def test_the_verdict_says_what_the_record_supports(finished: Path) -> None:
    top = page(finished).sections[""]
    assert (
        "After 3 rounds the model's error is 0.700 of a typical month-to-month change: 30 % below persistence and "
        "level with odd; 1 of 3 participants was kept out in all 3 rounds." in top
    )
    assert (
        "The plan makes continents attack (sign-flip): its update was kept out in 3 and used in 0 of 3 rounds." in top
    )
    for fact in ("196 740 parameters", "median, f = 1", "3 of 3", "3 train, 1 unseen", "10 s", "4.00 MB", "numpy 2.0"):
        assert fact in top


def test_the_sections_stand_in_order(finished: Path) -> None:
    assert list(page(finished).sections)[1:] == [
        "Error by round",
        "end",
        "Who took part",
        "Kept out, and why",
        "Error by variable",
        "Unseen participants",
        "Sites",
        "Privacy",
        "What is guaranteed, and what is not",
        "Physics",
    ]


def test_who_was_kept_out_and_why_is_one_row_for_one_kind_of_reason(finished: Path) -> None:
    """Distances differ each round; a row for each would drown the rest."""
    found = page(finished)
    reasons = found.sections["Kept out, and why"]
    assert reasons.count("continents") == 1 and "distance 1.5e3 from the others" in reasons and "1–3" in reasons
    hints = [value for _, key, value in found.attributes if key == "title"]
    assert "continents, round 2: kept out" in hints and "earthlike, round 2: update used, weight 50 %" in [
        re.sub(r"\s", " ", hint) for hint in hints
    ]
    matrix = found.sections["Who took part"]
    assert matrix.count("✕") == 3 + 1 and matrix.count("50") == 6  # and one in the legend


def test_errors_by_variable_have_units_and_relations(finished: Path) -> None:
    found = page(finished).sections["Error by variable"]
    assert re.search(r"ta K\s*2\.80\s*4\.00\s*-30 %", found) and re.search(r"ps Pa\s*500\s*–", found)
    assert "By level" in found


def test_every_participant_and_the_unseen_one_are_named(finished: Path) -> None:
    found = page(finished).sections["Sites"]
    for name in (*SITES, "eccentric"):
        assert f"{name} " in found and f"the data of {name}" in found
    assert "attacks: sign-flip" in found and "0 of 3" in found and "300 (planet)" in found


def test_physics_shows_the_data_beside_the_model_and_what_is_not_evaluable(finished: Path) -> None:
    from astrofed.shared.physics import CONSTRAINTS

    found = page(finished).sections["Physics"]
    assert re.search(r"hydrostatic\s*91 %\s*97 %\s*0\.001", found)
    assert found.count("not evaluable") == len(CONSTRAINTS) - 1


def test_guarantees_are_those_of_the_plan(finished: Path, tmp_path: Path) -> None:
    robust = page(finished).sections["What is guaranteed, and what is not"]
    assert re.search(r"✓\s*Against lying participants\. Median tolerates f = 1 of 3", robust)
    assert re.search(r"✕\s*Against readers of the model\. No differential privacy", robust)
    plain = page(record(tmp_path / "run", {**WORLDS, "strategy": "FedAvg"}, [complete(0)]))
    assert re.search(
        r"✕\s*Against lying participants\. FedAvg: no guarantee[^;]*\.\s*✕",
        plain.sections["What is guaranteed, and what is not"],
    ), "keys that a stored plan merely repeats are not called unused"


def test_the_page_stands_alone_and_forbids_scripts(finished: Path) -> None:
    found = page(finished)
    assert "script" not in found.tags
    policy = next(value for tag, key, value in found.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'") and "script" not in policy
    for _, key, value in found.attributes:
        assert not key.startswith("on")
        if key in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert value.startswith("data:image/png;base64,")
    assert "@import" not in found.source and not re.search(r"url\((?!#)", found.source)


def test_what_participants_say_is_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&]]>"
    metrics = {**evaluation(0), f"rmse/{evil}": 1.0, f"baseline/{evil}/loss": 2.0, "rmse/</style>": 1.0}
    metrics |= {f"rmse/{evil.replace('/', '')}/{k}": 1.0 for k in range(3)} | {f"rmse/{evil.replace('/', '')}": 1.0}
    metrics |= {f"baseline/{evil.replace('/', '')}/loss": 2.0}
    spent = Spent(participant=evil, dataset=evil, unit=evil, epsilon=1.0, delta=1e-5)
    out = (Quarantine(participant=evil, reason=evil),)
    entries = [
        complete(
            number, metrics=metrics, unseen=metrics, quarantined=out, privacy=(spent,), skipped=evil if number else None
        )
        for number in range(3)
    ]
    run = record(tmp_path / "run", PRIVATE, entries, refused=(Quarantine(participant="continents", reason=evil),))
    item = {"variable": evil, "units": evil, "level": 0.5, "title": evil, "lat": np.array([45.0, -45.0])}
    fields = dict.fromkeys(("truth", "prediction", "error"), np.ones((2, 4)))
    write_showcase(run, {evil: {"maps": [{**item, "lon": np.arange(4) * 90.0, **fields}]}})
    found = page(run)
    assert "script" not in found.tags and "img" not in found.tags
    assert not any(key == "onerror" for _, key, _ in found.attributes)
    assert evil in found.sections["Kept out, and why"] and evil in found.text


@pytest.mark.parametrize("plan", [WORLDS, PLANETS, PRIVATE], ids=["worlds", "planets", "private"])
@pytest.mark.parametrize("rounds", [0, 1, 3, 4])
def test_a_run_killed_anywhere_has_a_report(tmp_path: Path, plan: dict[str, Any], rounds: int) -> None:
    run = record(tmp_path / "run", plan, [complete(number) for number in range(rounds)])
    with (run / LINES).open("ab") as file:
        file.write(b'{"kind": "round", "previ')
    found = page(run)
    expected = {
        0: "3 participants have enrolled; no round is complete yet.",
        1: "Before any training the model's error is 1.00",
        3: "After 2 of 3 rounds the model's error is 0.733",
        4: "After 3 rounds the model's error is 0.700",
    }
    assert expected[rounds] in found.sections[""]
    assert ("The run is not finished: round 2 of 3." in found.text) == (rounds == 3)
    assert all(name in found.text for name in SITES)


def test_a_run_that_could_not_begin_says_who_is_to_blame(tmp_path: Path) -> None:
    refused = (Quarantine(participant="fast ocean", reason="no such file /data"),)
    found = page(record(tmp_path / "run", WORLDS, [], refused))
    assert "The run did not begin: fast ocean could not enrol." in found.text
    assert "no such file /data" in found.sections["Kept out, and why"] and "not enrolled" in found.sections["Sites"]


def test_a_run_without_evaluation_promises_nothing(tmp_path: Path) -> None:
    entries = [{}, *({"accepted": SITES} for _ in range(3))]
    found = page(record(tmp_path / "run", WORLDS, entries))
    assert "After 3 rounds the model is not evaluated; no update was kept out." in found.sections[""]
    assert "Error by round" not in found.sections and "Error by variable" not in found.sections


def test_an_evaluation_of_long_ago_is_not_sold_as_the_last(tmp_path: Path) -> None:
    entries = [complete(0), complete(1), {"accepted": SITES}]
    assert (
        "At round 1, the last one evaluated after 2 of 3 rounds, the model's error is 0.800"
        in page(record(tmp_path / "run", WORLDS, entries)).text
    )


def test_where_everything_was_quarantined_nothing_is_claimed(tmp_path: Path) -> None:
    out = tuple(Quarantine(participant=name, reason="weights are not finite") for name in SITES)
    skipped = {"skipped": "0 usable replies; the quorum is 1", "quarantined": out}
    found = page(record(tmp_path / "run", WORLDS, [complete(0), skipped, skipped, skipped]))
    assert "only the initial model is evaluated: the model's error is 1.00" in found.sections[""]
    assert "no round changed the model" in found.sections[""]
    assert "the whole round" in found.sections["Kept out, and why"]


def test_usable_updates_of_a_skipped_round_are_not_shown_as_used(tmp_path: Path) -> None:
    entries = [complete(0), complete(1, accepted=SITES[:1], skipped="1 usable reply; the quorum is 2")]
    found = page(record(tmp_path / "run", WORLDS, entries))
    hints = [value for _, key, value in found.attributes if key == "title"]
    assert "earthlike, round 1: usable, but the round changed nothing" in hints
    assert "0 of 1" in found.sections["Sites"] and "continents, round 1: not asked" in hints


def test_what_each_site_spent_stands_with_its_unit(tmp_path: Path) -> None:
    spent = tuple(Spent(participant=n, dataset=f"d-{n}", unit="planet", epsilon=7.9, delta=1e-4) for n in SITES)
    found = page(record(tmp_path / "run", PRIVATE, [complete(0), complete(1, privacy=spent)]))
    assert re.search(r"fast ocean\s*d-fast ocean\s*planet\s*7\.90\s*1\.00 × 10⁻⁴", found.sections["Privacy"])
    assert re.search(r"✓\s*Against readers of the model\. Differential privacy for each planet", found.text)
    assert "ε ≤ 8, δ = 0.0001 per planet" in found.sections[""]


def test_without_privacy_the_page_says_so(finished: Path) -> None:
    assert "This run made no differential-privacy guarantee." in page(finished).sections["Privacy"]


def test_a_diverged_run_is_not_flattered(tmp_path: Path) -> None:
    entries = [complete(0), *(complete(n, loss=60.0**n, metrics={"loss": 60.0**n}) for n in (1, 2, 3))]
    found = page(record(tmp_path / "run", {**WORLDS, "strategy": "FedAvg"}, entries))
    assert "2.2 × 10⁵ times persistence" in found.sections[""]


def test_long_runs_of_many_participants_stay_small(tmp_path: Path) -> None:
    names = [f"site {number}" for number in range(150)]
    plan = {**PLANETS, "rounds": 200, "participants": [{"name": name, "data": "d"} for name in names]}
    out = tuple(Quarantine(participant=name, reason="x" * 5000) for name in names[:20])
    metrics = {"loss": 1.0, **{f"rmse/v{k}": 1.0 for k in range(500)}}
    entries = [
        {
            "loss": 1.0,
            "metrics": metrics,
            "accepted": names[20:] if number else (),
            "quarantined": out if number % 3 else (),
        }
        for number in range(201)
    ]
    found = page(record(tmp_path / "run", plan, entries))
    assert len(found.source) < 1_000_000 and all(f">{name}<" in found.source for name in names)
    assert "site 3, rounds 1 to 5: used in 0, kept out in 4 of 5" in [
        v for _, key, v in found.attributes if key == "title"
    ]


@pytest.fixture(scope="module")
def synthetic_maps() -> dict[str, Any]:
    """What the datacube task shows of an untrained model on a real world."""
    from astrofed.shared.models.base import build_model
    from astrofed.simulations.bundled import resolve_bundled

    plan = load_plan(WORLDS)
    task = DatacubeEmulation(plan, DatacubeEmulation.Options(), Site("earthlike", resolve_bundled("worlds/earthlike")))
    statistics = task.statistics()
    return task.showcase(build_model(plan), statistics)


def test_maps_of_the_datacube_task_are_drawn(finished: Path, tmp_path: Path, synthetic_maps: dict[str, Any]) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    write_showcase(run, {"earthlike": synthetic_maps, "eccentric": synthetic_maps})
    found = page(run)
    maps = found.sections["Truth, prediction and error"]
    assert maps.count("Area-weighted RMS error") == 2 * len(synthetic_maps["maps"]) >= 4
    assert "earthlike: ta, σ = 0.983, K" in maps and "60°N" in maps
    assert sum(tag == "image" for tag in found.tags) == 3 * maps.count("Area-weighted RMS error")
    ids = [value for _, key, value in found.attributes if key == "id"]
    assert len(ids) == len(set(ids)), "colour bars must not share their gradients"
    assert len(found.source) < 3_000_000


def test_damaged_maps_are_named_and_the_rest_is_written(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / NAMES).write_text("{")
    assert "can't be read" in page(run).sections["Truth, prediction and error"]


def test_the_same_record_gives_the_same_bytes_in_any_thread(
    finished: Path, tmp_path: Path, synthetic_maps: dict[str, Any]
) -> None:
    runs = [shutil.copytree(finished, tmp_path / name) for name in ("a", "b")]
    for run in runs:
        write_showcase(run, {"earthlike": synthetic_maps})
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(write_report, runs)
    assert first.read_bytes() == second.read_bytes()


def test_the_page_ends_with_the_digest_of_the_records_last_line(finished: Path) -> None:
    from hashlib import sha256

    last = (finished / LINES).read_bytes().splitlines()[-1]
    assert sha256(last).hexdigest() in page(finished).text and "5 lines" in page(finished).text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="holds no run"):
        write_report(tmp_path)
    RunRecord.create(tmp_path / "begun", load_plan(WORLDS))
    with pytest.raises(NoRun, match="nobody has enrolled"):
        write_report(tmp_path / "begun")
    assert not (tmp_path / "begun" / "report.html").exists()


def test_an_edited_record_gets_no_report(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    lines = (run / LINES).read_text()
    (run / LINES).write_text(lines.replace('"seconds":2.5', '"seconds":0.5', 1))
    with pytest.raises(RecordBroken):
        write_report(run)


def test_a_folder_that_is_not_writable_keeps_the_old_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = write_report(run).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CannotWrite, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".*unfinished"))
