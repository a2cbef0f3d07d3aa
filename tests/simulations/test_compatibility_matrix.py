"""Every combination of mode, strategy, privacy and engine is let run or refused with a reason; some are run here."""

from pathlib import Path
from typing import Any

import pytest

from astrofed.simulations.compatibility_matrix import (
    ENGINES,
    MODES,
    PRIVACY,
    combinations,
    matrix_markdown,
    plan_for,
    strategies,
)
from astrofed.simulations.simulate import simulate

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
SECTIONS = strategies()


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text() == matrix_markdown(), "run: astrofed plan matrix --out docs/compatibility.md"


def test_every_cell_runs_or_says_why_not() -> None:
    cells = list(combinations())
    assert len(cells) == len(MODES) * len(SECTIONS) * len(PRIVACY) * len(ENGINES)
    refused = {cell.refused for cell in cells if cell.refused}
    assert all(any(word in text for word in ("strategy", "privacy")) and len(text) > 30 for text in refused)
    for mode in MODES:
        runs = [cell for cell in cells if cell.mode == mode and not cell.refused]
        assert {cell.engine for cell in runs} == set(ENGINES)
        assert {cell.strategy for cell in runs} >= {"FedAvg", "robust: mean"}
    central = {cell.mode for cell in cells if cell.privacy == "at the server" and not cell.refused}
    assert central == set(MODES) - {"nas", "evolution"}


@pytest.mark.parametrize(
    ("mode", "strategy", "private"),
    [
        ("single", "FedAvg", False),
        ("federated", "robust: krum", True),
        ("federated", "robust: nnm + trimmed-mean", False),
        ("meta", "robust: median", False),
        ("meta", "FedProx", False),
        ("customer", "robust: geometric-median", True),
        ("customer", "FedAdam", False),
    ],
)
def test_some_of_what_is_let_run_does(tmp_path: Path, mode: str, strategy: str, private: bool) -> None:
    plan: dict[str, Any] = plan_for(mode, SECTIONS[strategy], "none", "embedded")
    plan["engine"]["threads"] = 1
    plan["participants"] = plan["participants"][:5]
    if mode == "meta":
        plan["meta"] |= {"episodes": 8}
    if private:
        plan["privacy"] = {"unit": "planet", "noise_multiplier": 1.0, "delta": 1e-5}
        plan["training"] = {"batch_size": 256}
    result = simulate(plan, out=tmp_path / "run")
    assert result.rounds[-1].skipped is None and result.metrics["loss"] > 0
    assert bool(result.privacy) == private
