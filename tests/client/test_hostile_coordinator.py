"""A coordinator that asks for too much, or a plug-in that gives too much: a refusal, and nothing of the data in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import nn

from astrofed.client import app
from astrofed.client.policy import Policy
from astrofed.client.privacy.ledger import FILE, Ledger
from astrofed.client.privacy.noise_keys import Peers, noise_key, public_digits
from astrofed.client.site import Site
from astrofed.client.task import Statistics, TrainInstruction, TrainOutcome
from astrofed.client.tasks.planets import PlanetSurrogate
from astrofed.shared import registry
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan
from astrofed.simulations.bundled import resolve_bundled

Send, Leaks = Callable[..., Message], Callable[[Message], list[bytes]]
Asked, Place, Allowing = Callable[..., Plan], Callable[..., Site], Callable[..., Policy]
PRIVACY = {"unit": "planet", "epsilon": 4.0, "delta": 1e-5}
SHARED = {"unit": "planet", "noise_multiplier": 4.0, "delta": 1e-5, "shared_noise": {"colluding": 0}}
MEAN, ONE_STEP = {"name": "robust", "rule": "mean", "f": 0}, {"max_steps": 1, "optimizer": "sgd", "batch_size": 128}
TWO = [{"name": "K2", "data": str(resolve_bundled("planets/k2"))}, {"name": "TESS", "data": "tess"}]
KINDS = ("query.enrol", "query.statistics", "train", "evaluate")

TOO_MUCH: dict[str, tuple[dict[str, Any], str]] = {
    "a disabled mode": ({"mode": "single"}, "mode 'single' is not among the allowed: federated"),
    "no differential privacy": ({"privacy": None}, "differential privacy is required; .*epsilon at most 6"),
    "a larger epsilon": ({"privacy": {**PRIVACY, "epsilon": 7.0}}, "epsilon 7 is asked for, at most 6 is allowed"),
    "a larger delta": ({"privacy": {**PRIVACY, "delta": 1e-3}}, "delta 0.001 is asked for, at most 1e-05"),
    "a foreign task": ({"task": "datacube"}, "task 'datacube' is not among the allowed: planets"),
    "a task that nobody has": ({"task": "send-all-rows"}, "task 'send-all-rows' is not among the allowed"),
    "a foreign model": ({"model": "datacube-net"}, "model 'datacube-net' is not among the allowed: mlp"),
    "a foreign model in a mixture": (
        {"model": {"name": "mixture", "candidates": [{"name": "mlp"}, {"name": "datacube-net"}]}},
        "model 'datacube-net' is not among the allowed: mlp",
    ),
    "a foreign model deep in a mixture": (
        {"model": {"name": "Mix-ture", "candidates": [{"name": "mixture", "candidates": ["datacube-net"]}]}},
        "model 'datacube-net' is not among the allowed: mlp",
    ),
    "a mixture under privacy": (
        {"model": {"name": "mixture", "candidates": [{"name": "mlp"}, {"name": "mlp"}]}},
        "one unit's part in a mixture of networks is not bounded",
    ),
    "a mixture of nothing": ({"model": {"name": "mixture", "candidates": [7]}}, "has no list of networks"),
    "noise shared with others": (
        {"privacy": SHARED, "strategy": MEAN, "training": ONE_STEP, "participants": TWO},
        "noise is to be shared with other sites, which is not allowed",
    ),
    "too many rounds": ({"rounds": 51}, "51 rounds are asked for, at most 50 are allowed"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_plan_that_asks_for_too_much_is_refused_before_data_are_read(
    what: str, kind: str, send: Send, place: Place, asked: Asked, leaks: Leaks, tmp_path: Path
) -> None:
    changes, reason = TOO_MUCH[what]
    site = place(data=tmp_path / "there is nothing here")
    reply = send(site, kind, asked(**changes), asked(), **{"server-round": 1})
    assert reply.has_error() and not reply.has_content()
    assert "the site's policy refuses the plan" in reply.error.reason
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(reply.error.reason)
    assert leaks(reply) == [] and not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("evaluate", {"server-round": 0, "metrics": ["loss", "loss/each-planet"]}, "no metric 'loss/each-planet'"),
        ("evaluate", {"server-round": 0, "metrics": ["dex/pl_eqt"]}, "doesn't let metric 'dex/pl_eqt' out"),
        ("evaluate", {"server-round": 0, "per-sample-losses": True}, "doesn't know the setting 'per-sample-losses'"),
        ("train", {"server-round": 1, "return-gradients": True}, "doesn't know the setting 'return-gradients'"),
        ("train", {"server-round": 3}, "the plan has 2 rounds"),
        ("train", {"server-round": -1}, "the plan has 2 rounds"),
        ("query.per_sample_losses", {}, ""),
        ("query.enrol", {"plan": '{"name": "x"}'}, "no plan that this version"),
    ],
)
def test_a_message_that_asks_for_too_much_is_refused(
    kind: str, settings: dict[str, Any], reason: str, send: Send, place: Place, asked: Asked, leaks: Leaks
) -> None:
    reply = send(place(), kind, asked(), **settings)
    assert reply.has_error() and reason in reply.error.reason
    assert leaks(reply) == []


def test_noise_that_the_budget_cannot_pay_for_is_refused_at_enrolment(
    send: Send, place: Place, asked: Asked, leaks: Leaks, tmp_path: Path
) -> None:
    cheap = asked(privacy={"unit": "planet", "noise_multiplier": 0.4, "delta": 1e-5})
    reply = send(place(), "query.enrol", cheap)
    assert reply.has_error() and "the site's budget is 6, spent are 0, left 6" in reply.error.reason
    assert leaks(reply) == []
    reply = send(place(), "train", cheap, **{"server-round": 1})
    assert reply.has_error() and "the site's budget is 6" in reply.error.reason
    assert Ledger(tmp_path / "home").book().last == 0


def test_outside_its_hours_a_site_answers_nothing(send: Send, place: Place, asked: Asked, allowing: Allowing) -> None:
    reply = send(place(policy=allowing(hours=["00:00-00:00"])), "query.enrol", asked())
    assert not reply.has_error()  # the whole day
    closed = place(policy=allowing(hours=[_not_now()]))
    reply = send(closed, "query.enrol", asked())
    assert reply.has_error() and "answered only during" in reply.error.reason


def test_what_the_policy_allows_is_done_and_no_more_than_that_leaves(
    send: Send, place: Place, asked: Asked, leaks: Leaks, tmp_path: Path
) -> None:
    site, plan = place(), asked()
    enrolled = send(site, "query.enrol", plan)
    told = dict(enrolled.content.config_records["site"])
    assert told["num_examples"] == 431 and told["unit"] == "planet"
    assert "measured" not in str(told["description"])
    trained = send(site, "train", plan, **{"server-round": 1})
    metrics = dict(trained.content.metric_records["metrics"])
    assert set(metrics) == {"epsilon", "delta", "num-examples"} and 0 < float(str(metrics["epsilon"])) < 4
    scored = send(site, "evaluate", plan, **{"server-round": 1, "with-baselines": True})
    scores = dict(scored.content.metric_records["metrics"])
    assert set(scores) == {"loss", "rmse/pl_eqt", "rmse/pl_rade", "num-examples"}
    assert all(float(f"{value:.1e}") == value for name, value in scores.items() if name != "num-examples")
    assert [leaks(reply) for reply in (enrolled, scored)] == [[], []]
    assert len(Ledger(tmp_path / "home").book().settled) == 1


# What follows are plug-ins that a site might install by mistake.


@pytest.fixture
def leaky(monkeypatch: pytest.MonkeyPatch, asked: Asked, place: Place, allowing: Allowing) -> Callable[..., Any]:
    """Install a task with some methods replaced; give a site that allows it and a plan that names it."""

    def install(**methods: Any) -> tuple[Site, Plan]:
        class Kind(PlanetSurrogate):
            """As the honest task, but for these methods."""

        for name, method in methods.items():
            setattr(Kind, name, method)
        monkeypatch.setitem(registry._added, "tasks", {})
        registry.register("tasks", "leaky")(Kind)
        names = {"tasks": ["leaky"], "plugins": ["astrofed", __file__]}
        return place(policy=allowing(names, metrics=["*"], statistics=["mean:ok"])), asked(task="leaky")

    return install


def _names(
    self: PlanetSurrogate, model: nn.Module, statistics: Statistics, *, with_baselines: bool
) -> dict[str, float]:
    held_out = self.catalogue.held_out
    return {f"loss {name!r}": 1.0 for name in held_out.unit.tolist()}


def _per_sample(self: PlanetSurrogate, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> Any:
    return {"loss": self.catalogue.held_out.targets[:, 0].tolist()}


def _raises(self: PlanetSurrogate, *_: Any, **__: Any) -> Any:
    raise UserMistake(f"the first planet is {self.catalogue.training.unit[0]}")


def _crashes(self: PlanetSurrogate, *_: Any, **__: Any) -> Any:
    raise ValueError(f"could not convert {self.catalogue.held_out.zero_albedo[0]!r}")


def _rows(self: PlanetSurrogate) -> dict[str, Any]:
    return {"mean:rows": self.catalogue.training.features.numpy().astype(np.float64)}


def _smuggles(self: PlanetSurrogate, model: nn.Module, *_: Any) -> TrainOutcome:
    model.register_buffer("rows", self.catalogue.training.features)
    return TrainOutcome(431)


def _reshapes(self: PlanetSurrogate, model: nn.Module, *_: Any) -> TrainOutcome:
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    first.weight = nn.Parameter(self.catalogue.training.features)
    return TrainOutcome(431)


def _unpaid(self: PlanetSurrogate, model: nn.Module, *_: Any) -> TrainOutcome:
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    return TrainOutcome(431, {"epsilon": 0.1, "delta": 1e-5})


def _not_finite(self: PlanetSurrogate, model: nn.Module, _: Statistics, instruction: TrainInstruction) -> TrainOutcome:
    outcome = PlanetSurrogate.train(self, model, {}, instruction)
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    return outcome


def _miscounts(self: PlanetSurrogate, model: nn.Module, _: Statistics, instruction: TrainInstruction) -> TrainOutcome:
    outcome = PlanetSurrogate.train(self, model, {}, instruction)
    return TrainOutcome(int(self.catalogue.training.targets[0, 0] * 1e6), outcome.metrics)


@pytest.mark.parametrize(
    ("kind", "methods", "reason"),
    [
        ("evaluate", {"evaluate": _names}, "none of the metrics may leave"),
        ("evaluate", {"evaluate": _per_sample}, "not one finite number by name"),
        ("evaluate", {"evaluate": _raises}, "its policy keeps the details"),
        ("evaluate", {"evaluate": _crashes}, "its policy keeps the details"),
        ("query.enrol", {"summary": _crashes}, "its policy keeps the details"),
        ("query.enrol", {"summary": _raises}, "its policy keeps the details"),
        ("query.statistics", {"statistics": _rows}, "statistics may not leave as the site's policy has it"),
        ("train", {"train": _smuggles}, "other arrays than the global model"),
        ("train", {"train": _reshapes}, "other arrays than the global model"),
        ("train", {"train": _unpaid}, "the ledger knows nothing of private training in round 1"),
        ("train", {"train": _not_finite}, "not finite in round 1"),
        ("train", {"train": _miscounts}, "counts other samples than it enrolled with"),
        ("train", {"train": _raises}, "its policy keeps the details"),
    ],
)
def test_a_plug_in_that_gives_too_much_gives_nothing(
    kind: str, methods: dict[str, Any], reason: str, leaky: Callable[..., Any], send: Send, leaks: Leaks
) -> None:
    site, plan = leaky(**methods)
    reply = send(site, kind, plan, **({} if kind.startswith("query") else {"server-round": 1}))
    assert reply.has_error() and reason in reply.error.reason, reply
    assert leaks(reply) == []


def test_a_lie_about_epsilon_is_replaced_by_what_the_ledger_says(leaky: Callable[..., Any], send: Send) -> None:
    def lies(self: Any, model: nn.Module, _: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        outcome = PlanetSurrogate.train(self, model, {}, instruction)
        return TrainOutcome(outcome.num_examples, {"epsilon": 1e-9, "delta": 1e-12})

    site, plan = leaky(train=lies)
    metrics = dict(send(site, "train", plan, **{"server-round": 1}).content.metric_records["metrics"])
    assert metrics["epsilon"] > 0.1 and metrics["delta"] == 1e-5


def test_a_plug_in_from_elsewhere_is_refused_though_its_name_is_allowed(
    leaky: Callable[..., Any], send: Send, place: Place, allowing: Allowing
) -> None:
    _, plan = leaky()
    reply = send(place(policy=allowing({"tasks": ["leaky"]})), "query.enrol", plan)
    assert reply.has_error() and "comes from elsewhere than the plug-ins that are allowed" in reply.error.reason


def test_no_handler_can_answer_past_the_gate(
    send: Send, place: Place, asked: Asked, leaks: Leaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(request: app.Request) -> Any:
        _, gate = request.task()
        return gate.enrolment(request.task()[0].summary()).content  # not cleared any more

    monkeypatch.setattr(app, "_HANDLERS", {"query.enrol": app.Handler(answers)})
    reply = send(place(), "query.enrol", asked())
    assert reply.has_error() and "was not cleared" in reply.error.reason


def test_the_look_for_leaks_finds_them(leaks: Leaks, send: Send, leaky: Callable[..., Any]) -> None:
    for kind, methods in (("evaluate", {"evaluate": _raises}), ("query.statistics", {"statistics": _rows})):
        site, plan = leaky(**methods)
        trusting = Site(kind, site.data, home=site.home)
        assert leaks(send(trusting, kind, plan, **({"server-round": 1} if kind == "evaluate" else {})))


def test_the_sites_log_has_what_the_coordinator_is_not_told(
    leaky: Callable[..., Any], send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    site, plan = leaky(evaluate=_crashes)
    send(site, "evaluate", plan, **{"server-round": 1})
    assert "could not convert" in caplog.text and "K2: ValueError" in caplog.text


def test_a_ledger_is_not_made_by_refusals(send: Send, place: Place, asked: Asked, tmp_path: Path) -> None:
    send(place(), "train", asked(mode="single"), **{"server-round": 1})
    assert not (tmp_path / "home" / FILE).exists()


def _not_now() -> str:
    from datetime import datetime, timedelta

    later = datetime.now() + timedelta(hours=3)
    return f"{later:%H:%M}-{later + timedelta(hours=1):%H:%M}"


@pytest.mark.parametrize(
    ("rules", "peers", "reason"),
    [
        ({"shared_noise": {"colluding": 1}}, ["TESS"], "withstand 0 colluding sites, at least 1 are to be withstood"),
        ({"shared_noise": {"colluding": 0}}, [], "shared with 'TESS', whose key is not among the policy's peers"),
        ({"shared_noise": {"colluding": 0}, "max_update_norm": 9.0}, ["TESS"], "max_update_norm can't be held"),
    ],
)
def test_noise_is_shared_only_as_the_policy_says(
    rules: dict[str, Any],
    peers: list[str],
    reason: str,
    send: Send,
    place: Place,
    asked: Asked,
    allowing: Allowing,
    tmp_path: Path,
) -> None:
    keys = {name: public_digits(noise_key(tmp_path / name)) for name in peers}
    site = place(policy=allowing(**rules), peers=Peers(tmp_path / "home", keys))
    plan = asked(privacy=SHARED, strategy=MEAN, training=ONE_STEP, participants=TWO)
    reply = send(site, "train", plan, **{"server-round": 1, "noise-turn": "0" * 32})
    assert reply.has_error() and reason in reply.error.reason


def test_a_coordinator_that_repeats_a_turn_gets_no_second_message(
    send: Send, place: Place, asked: Asked, allowing: Allowing, leaks: Leaks, tmp_path: Path
) -> None:
    """By the difference of the two it would see the site's own share of the noise alone."""
    keys = {"TESS": public_digits(noise_key(tmp_path / "TESS"))}
    site = place(policy=allowing(shared_noise={"colluding": 0}), peers=Peers(tmp_path / "home", keys))
    plan = asked(privacy=SHARED, strategy=MEAN, training=ONE_STEP, participants=TWO)
    first = send(site, "train", plan, **{"server-round": 1, "noise-turn": "0" * 32})
    assert not first.has_error() and leaks(first) == []
    for number in (1, 2):
        again = send(site, "train", plan, **{"server-round": number, "noise-turn": "0" * 32})
        assert again.has_error() and "noise was drawn under turn" in again.error.reason and leaks(again) == []
    silent = send(site, "train", plan, **{"server-round": 2})
    assert silent.has_error() and "gives no turn" in silent.error.reason
    assert len(Ledger(tmp_path / "home").book().reserved) == 1
