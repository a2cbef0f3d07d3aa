"""The modes' benchmark measures what it says: sinusoids learned by the mode's own code, bare loops that do the same."""

import json
from pathlib import Path

import pytest
import torch

from astrofed.client.meta.algorithms import MetaLoss
from astrofed.client.task import TrainInstruction
from astrofed.client.training import train_locally
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import PlanError
from astrofed.simulations.bench import meta_worlds
from astrofed.simulations.bench.meta_sinusoid import Bare, endless, iteration_rows, sinusoid_plan, sinusoid_rows
from astrofed.simulations.bench.modes_result import ModesResult, interval
from astrofed.simulations.bench.result import this_machine
from astrofed.simulations.bench.single import single_rows
from astrofed.simulations.bench.sinusoid import OnlyEpisodes, draw, squared_error
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.simulate import simulate


def test_the_bare_loop_is_the_same_mathematics() -> None:
    plan = sinusoid_plan(5)
    assert plan.meta is not None
    model, bare = build_model(plan), Bare(plan)
    bare.run(5)
    loss = MetaLoss(model, squared_error, plan.meta)
    training = plan.training.model_copy(update={"max_steps": 5})
    train_locally(model, endless, loss, training, TrainInstruction(1, seed=1), rounds=1)
    for mine, other in zip(model.parameters(), bare.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_sinusoids_are_drawn_as_the_paper_says() -> None:
    drawn = draw(torch.Generator().manual_seed(1), 2000, 10, 15)
    x, y = (torch.cat(pair, dim=1) for pair in zip(drawn.support, drawn.query, strict=True))
    assert x.shape == y.shape == (2000, 25, 1) and x.min() >= -5 and x.max() <= 5
    assert 4.5 < y.abs().max() <= 5 and y.square().mean() == pytest.approx((0.1**2 + 0.5 + 25) / 6, rel=0.1)


def test_more_training_gives_smaller_errors() -> None:
    start, rows = sinusoid_rows(1, many=50), sinusoid_rows(150, many=50)
    assert [row.count for row in rows] == [600] * 3 + [50] * 3 and all(row.value is not None for row in rows)
    assert not any(row.targets for row in rows)  # they are for the full number of iterations
    assert all((row.value or 0) < 0.9 * (first.value or 0) for row, first in zip(rows, start, strict=True))
    found = iteration_rows(block=2, rounds=2)[0]
    assert found.value is not None and found.value > 0 and found.targets[0].met == (found.value <= 1.5)


def test_sinusoids_have_episodes_and_nothing_else(tmp_path: Path) -> None:
    plan = sinusoid_plan(1)
    with pytest.raises(PlanError, match="task 'sinusoids' can't train with differential privacy"):
        check_plan(type(plan).model_validate({**plan.to_dict(), "privacy": {"unit": "x", "epsilon": 1, "delta": 0.1}}))
    with pytest.raises(Exception, match="is for mode = 'meta'") as caught:
        simulate({**plan.to_dict(), "mode": "single"}, out=tmp_path / "run")
    assert not isinstance(caught.value, AssertionError) and issubclass(OnlyEpisodes, Exception)


@pytest.mark.slow
def test_unseen_worlds_are_compared_month_for_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TRAINED", 2), ("UNSEEN", 2), ("STEPS", 6), ("RATES", (0.01, 0.1))):
        monkeypatch.setattr(meta_worlds, name, value)
    found = meta_worlds.compare(tmp_path, 1, {"anil": {"algorithm": "anil"}})
    assert set(found) == {"federated", "fine-tuned", "anil"}
    assert all(len(values) == 2 and min(values) > 0 for values in found.values())
    assert found["federated"] != found["fine-tuned"] != found["anil"]


@pytest.mark.slow
def test_one_participant_is_lightnings_loop() -> None:
    row = single_rows(4)[0]
    assert row.value is not None and row.value > 0 and row.targets[0].measured == row.value
    assert float(row.note.split()[-1]) < 1e-5  # the same weights


def test_a_result_is_a_table_and_json() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0, 4.0])
    assert (mean, round(low, 3), round(high, 3)) == (2.5, 0.446, 4.554)  # t(3) = 3.182, s = 1.291
    result = ModesResult(this_machine(), tuple(iteration_rows(block=1, rounds=1)), {"quick": True})
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["rows"][0]["mode"] == "meta"
    assert result.table().row_count == 1
