"""The meta-losses against closed forms: on quadratic tasks every algorithm's gradient is known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from astrofed.client.meta.adaptation import Adapter, predictions
from astrofed.client.meta.algorithms import MetaLoss, adapted_names
from astrofed.client.meta.episodes import Episode, Stacked
from astrofed.shared.models.mlp import MLP
from astrofed.shared.plan import Meta, PlanError
from astrofed.shared.seeds import torch_seeded

RATE = 0.1


class Point(nn.Module):
    """Weights w [2]; a task is a point t [1, 2], its loss ½|w − t|², its gradient w − t."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))


def half_square(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    assert isinstance(model, Point)
    return 0.5 * (model.w - batch[0]).square().sum(dim=-1).mean()


def episode(support: list[float], query: list[float]) -> Episode[tuple[Tensor, ...]]:
    return Episode(*((torch.tensor([point], dtype=torch.float64),) for point in (support, query)))


ONE = episode([3.0, 1.0], [0.5, 2.0])
TWO = episode([-1.0, 0.0], [2.0, -3.0])


def meta(**changes: Any) -> Meta:
    return Meta(**{"inner_rate": RATE, "inner_steps": 3, **changes})


def gradient(settings: Meta, *episodes: Episode[tuple[Tensor, ...]]) -> tuple[float, Tensor]:
    model = Point()
    value = MetaLoss(model, half_square, settings)(model, list(episodes))
    value.backward()  # type: ignore[no-untyped-call]
    assert model.w.grad is not None
    return value.item(), model.w.grad


def after(steps: int, *targets: Tensor) -> Tensor:
    w = Point().w.detach().clone()
    for index in range(steps):
        w = w - RATE * (w - targets[index % len(targets)])
    return w


def test_maml_differentiates_through_the_inner_steps() -> None:
    value, found = gradient(meta(), ONE)
    support, query = ONE.support[0][0], ONE.query[0][0]
    adapted = after(3, support)
    assert value == pytest.approx(0.5 * float((adapted - query).square().sum()))
    torch.testing.assert_close(found, (1 - RATE) ** 3 * (adapted - query))


def test_fomaml_leaves_out_the_inner_steps_own_dependence() -> None:
    value, found = gradient(meta(algorithm="fomaml"), ONE)
    adapted = after(3, ONE.support[0][0])
    assert value == pytest.approx(gradient(meta(), ONE)[0])
    torch.testing.assert_close(found, adapted - ONE.query[0][0])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_reptile_goes_to_where_steps_on_support_and_query_lead(steps: int) -> None:
    value, found = gradient(meta(algorithm="reptile", inner_steps=steps), ONE)
    start, (support, query) = Point().w.detach(), (ONE.support[0][0], ONE.query[0][0])
    torch.testing.assert_close(found, (start - after(steps, support, query)) / RATE)
    before_query = after(1, support)  # no step was taken on the query yet
    assert value == pytest.approx(0.5 * float((before_query - query).square().sum()))


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
def test_a_batch_is_the_mean_of_its_episodes_listed_or_stacked(algorithm: str) -> None:
    settings = meta(algorithm=algorithm)
    value, found = gradient(settings, ONE, TWO)
    singles = [gradient(settings, each) for each in (ONE, TWO)]
    assert value == pytest.approx(sum(single for single, _ in singles) / 2)
    torch.testing.assert_close(found, (singles[0][1] + singles[1][1]) / 2)
    model = Point()
    both = [(torch.stack([getattr(e, part)[0] for e in (ONE, TWO)]),) for part in ("support", "query")]
    stacked = MetaLoss(model, half_square, settings)(model, Stacked(*both))
    stacked.backward()  # type: ignore[no-untyped-call]
    assert stacked.item() == pytest.approx(value)
    assert model.w.grad is not None
    torch.testing.assert_close(model.w.grad, found)


def test_a_first_order_step_is_the_same_with_torch_func_and_leaves_no_graph() -> None:
    model, batch = network(), rows(5)
    loss = MetaLoss(model, squared, meta(algorithm="fomaml"))
    own = {name: p.detach() for name, p in model.named_parameters()}
    plain, mapped = (loss.step(own, batch, first_order=True, mapped=mapped) for mapped in (False, True))
    for name, weight in plain.items():
        torch.testing.assert_close(weight, mapped[name])
        assert not weight.requires_grad and not torch.equal(weight, own[name])


def test_weights_that_a_loss_does_not_reach_stay_as_they_are() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return squared(model.get_submodule("used"), batch)

    own = {name: p.detach() for name, p in model.named_parameters()}
    found = MetaLoss(model, loss, meta(algorithm="fomaml")).step(own, rows(5), first_order=True)
    assert {name for name in own if not torch.equal(own[name], found[name])} == {"used.weight", "used.bias"}


def test_a_long_gradient_is_cut_to_the_longest_that_a_step_may_have() -> None:
    value, _ = gradient(meta(inner_steps=1, inner_clip=0.5), ONE)
    support, query, start = ONE.support[0][0], ONE.query[0][0], Point().w.detach()
    slope = start - support
    adapted = start - RATE * 0.5 * slope / slope.norm()
    assert value == pytest.approx(0.5 * float((adapted - query).square().sum()))
    assert gradient(meta(inner_clip=1e6), ONE)[0] == pytest.approx(gradient(meta(), ONE)[0])


def network() -> MLP:
    with torch_seeded(1):
        model = MLP(3, 2, hidden=(8,))
        nn.init.normal_(model.linear.weight, std=0.3)
        return model


def squared(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def rows(*shape: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 3, generator=generator), torch.randn(*shape, 2, generator=generator)


def test_anil_adapts_the_last_layers_alone_and_teaches_all() -> None:
    model = network()
    assert adapted_names(model, meta(algorithm="anil")) == ["head.weight", "head.bias", "linear.weight"]
    adapted = Adapter(meta(algorithm="anil"), squared).adapted(model, rows(5))
    moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert moved == {"head.weight", "head.bias", "linear.weight"}
    MetaLoss(model, squared, meta(algorithm="anil"))(model, Stacked(rows(4, 5), rows(4, 6, seed=4))).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("head", [("heads.",), ("",)])
def test_a_head_that_is_nothing_or_everything_is_refused(head: tuple[str, ...]) -> None:
    settings = Meta.model_construct(algorithm="anil", head=head)
    with pytest.raises(PlanError, match=r"meta\.head: 'anil' adapts the last layers.*body\.0\.weight"):
        adapted_names(network(), settings)


def test_adaptation_is_plain_gradient_descent_on_a_copy() -> None:
    model, batch = network(), rows(5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted = Adapter(meta(adaptation_steps=4), squared).adapted(model, batch)
    plain = network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=RATE)
    for _ in range(4):
        optimizer.zero_grad()
        squared(plain, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, parameter in adapted.named_parameters():
        torch.testing.assert_close(parameter, plain.get_parameter(name))
        torch.testing.assert_close(model.get_parameter(name), before[name], rtol=0, atol=0)


def test_tasks_adapted_together_are_those_adapted_one_by_one() -> None:
    model, supports, (inputs, _) = network(), rows(6, 5), rows(6, 2, seed=9)
    adapter = Adapter(meta(), squared)
    together = predictions(model, adapter.stacked(model, supports), inputs)
    for index in range(6):
        own = adapter.adapted(model, (supports[0][index], supports[1][index]))
        torch.testing.assert_close(together[index], own(inputs[index]), rtol=1e-4, atol=1e-6)
