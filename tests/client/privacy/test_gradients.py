"""Per-unit gradients are those of a loop over units: in every form, for every shipped model, and for odd ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from astrofed.client.privacy import gradients
from astrofed.client.privacy import units as units_
from astrofed.client.privacy.factored import Factored
from astrofed.client.privacy.gradients import (
    Gradients,
    OneByOne,
    Together,
    Units,
    WrittenOut,
    WrongUnitGradients,
    unit_gradients,
)
from astrofed.client.privacy.units import Rows, cheapest_form
from astrofed.client.tasks.datacube_batches import Batch, stack
from astrofed.client.tasks.datacube_physics import PhysicsTerm
from astrofed.client.tasks.datacube_samples import World, training_samples
from astrofed.client.tasks.datacube_scales import Scales, public_scales
from astrofed.client.tasks.datacube_scores import area_loss
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.shared.models.datacube_net import DatacubeNet
from astrofed.shared.models.mlp import MLP
from astrofed.shared.seeds import torch_seeded
from astrofed.simulations.bench.privacy_work import Attention
from astrofed.simulations.synthetic import synthetic_world

Loss = Callable[[nn.Module, Units], Tensor]


class Folded(nn.Module):
    """A model that folds time into the batch [unit, time, feature], where hooks count units wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv1d(3, 4, 1), nn.GroupNorm(1, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        units, times, features = x.shape
        hidden = self.inner(x.reshape(units * times, features, 1)).squeeze(-1)
        out: Tensor = self.head(hidden.reshape(units, times, 4)).mean(dim=1)
        return out


class Spread(nn.Module):
    """Linear layers in every use: once, several times, over rows, tied, frozen, without bias, with a weight outside."""

    def __init__(self) -> None:
        super().__init__()
        self.once = nn.Linear(3, 4)
        self.bare = nn.Linear(4, 4, bias=False)
        self.twice = nn.Linear(4, 4)
        self.rows = nn.Linear(1, 2)
        self.outside = nn.Linear(4, 4)
        self.tied, self.tie = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tie.weight = self.tied.weight
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(8, 2)
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.bare(torch.tanh(self.once(x))) + self.offset)
        hidden = self.tie(torch.tanh(self.tied(torch.tanh(self.twice(torch.tanh(self.twice(hidden)))))))
        hidden = self.frozen(self.outside(hidden)) @ self.outside.weight
        out: Tensor = self.head(self.rows(hidden[..., None]).flatten(1))
        return out


class Convolved(nn.Module):
    """Convolutions of one to three axes, with strides and margins, of one and of several samples a unit; and odd ones.

    Those with groups, dilation or another margin than zeros are nothing that rows of patches would be right for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(1, 0))
        self.line = nn.Conv1d(3, 4, 3, padding=2, bias=False)
        self.space = nn.Conv3d(1, 3, (2, 3, 1), padding=(0, 1, 0))
        self.grouped = nn.Conv1d(4, 4, 3, groups=2)
        self.spread = nn.Conv1d(4, 2, 2, dilation=2)
        self.around = nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular")
        self.alike = nn.Conv1d(2, 2, 3, padding="same")
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        units = len(x)
        hidden = torch.tanh(self.plane(x))  # [unit, 5, 3, 4]
        hidden = torch.tanh(self.space(hidden[:, None]))  # [unit, 3, 4, 3, 4]
        samples = hidden.transpose(1, 2).reshape(4 * units, 3, 12)  # four a unit
        hidden = torch.tanh(self.line(samples)).reshape(units, 4, 4, 14).mean(dim=1)
        hidden = self.alike(self.around(torch.tanh(self.spread(torch.tanh(self.grouped(hidden))))))
        out: Tensor = self.head(hidden.mean(dim=-1))
        return out


class Normed(nn.Module):
    """Norms of one and two axes, with and without weights of their own, and layers whose output is changed in place.

    One layer is given the same for all units.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.bare = nn.LayerNorm((2, 3)), nn.LayerNorm(3, elementwise_affine=False)
        self.scaled, self.twice = nn.LayerNorm(3, bias=False), nn.LayerNorm(3)
        self.rows, self.place = nn.Linear(3, 4), nn.Linear(2, 3)
        self.line = nn.Conv1d(4, 3, 2)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        units, times, features = x.shape
        x = self.wide(x.reshape(units, times // 2, 2, features)).reshape(x.shape) + self.place(torch.eye(2)[:1].to(x))
        hidden = torch.relu_(self.rows(self.twice(self.scaled(self.twice(x)) + self.bare(x))))
        out: Tensor = self.head(torch.relu_(self.line(hidden.transpose(1, 2))).mean(dim=-1))
        return out


class InPlace(MLP):
    """A perceptron that writes into a tensor of its own, which torch can't vectorise."""

    def forward(self, rows: Tensor) -> Tensor:
        out = torch.zeros(len(rows), 2, dtype=rows.dtype)
        out[:] = super().forward(rows)
        return out


class Branches(MLP):
    """A perceptron that decides by its input's values."""

    def forward(self, rows: Tensor) -> Tensor:
        out = super().forward(rows)
        return -out if bool(rows.sum() > 0) else out


def squared(model: nn.Module, batch: Units) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(dim=1).mean()


def smooth(model: nn.Module, batch: Units) -> Tensor:
    """With a penalty on the slope by the input, as losses with differential equations have it, the torch.func way."""

    def slope(row: Tensor) -> Tensor:
        total: Tensor = grad(lambda r: model(r[None]).sum())(row)
        return total

    return squared(model, batch) + torch.stack([slope(row) for row in batch[0]]).square().mean()


def smooth_by_autograd(model: nn.Module, batch: Units) -> Tensor:
    """The same by `autograd.grad(create_graph=True)`."""
    inputs = batch[0].detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
    return squared(model, batch) + slope.square().mean()


def after_a_step(model: nn.Module, batch: Units) -> Tensor:
    """A second-order objective (MAML): the loss on the second half of a unit's rows after a step on the first half."""
    support, query = (tuple(tensor[0].chunk(2)[half] for tensor in batch) for half in (0, 1))
    weights = dict(model.named_parameters())

    def inner(weights: dict[str, Tensor]) -> Tensor:
        return (functional_call(model, weights, (support[0],)) - support[1]).square().mean()

    steps = grad(inner)(weights)
    adapted = {name: weight - 0.1 * steps[name] for name, weight in weights.items()}
    return (functional_call(model, adapted, (query[0],)) - query[1]).square().mean()


def coupled(model: nn.Module, batch: Units) -> Tensor:
    """A penalty on the mean over the batch, which has no place in a loss of one unit."""
    out = model(batch[0])
    value: Tensor = (out - batch[1]).square().sum(dim=1).mean() + out.mean(dim=0).square().sum()
    return value


def drawn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def worlds(weights: dict[str, float]) -> tuple[Callable[[], nn.Module], Units, Loss]:
    """The datacube network on samples of a world, with physics in the loss, as if each were a unit."""
    layout = DatacubeLayout(variables=("ta", "hus", "ua", "va", "ps", "zg"))
    world = World(synthetic_world(1, lev=3, lat=8, lon=8), layout, "here")
    scales = Scales.pooled(public_scales(3, layout.variables))
    samples = training_samples(world.months, world.epochs, layout, 6)[:3]
    batch, physics = stack(world, samples, scales), PhysicsTerm(weights, layout.variables)

    def loss(model: nn.Module, units: Units) -> Tensor:
        part = Batch(*units, samples=tuple(samples[: len(units[0])]))
        changes = layout.level_means(model(part.state, part.forcing))
        value = area_loss(changes - (part.target - part.last) / scales.change, world.area)
        return value + physics(world, part, part.last + changes * scales.change)

    small = {"base_features": 8, "coarse_features": 8}
    return lambda: DatacubeNet(layout, **small), (batch.state, batch.forcing, batch.last, batch.target), loss


TABLE = drawn(5, 3), drawn(5, 2, seed=3)
SERIES = drawn(5, 6, 3), drawn(5, 2, seed=3)
TOKENS = drawn(5, 6, 8), drawn(5, 10, seed=3)
MAPS = drawn(5, 2, 5, 5), drawn(5, 2, seed=3)
SETS = drawn(5, 4, 3), drawn(5, 4, 2, seed=3)
PHYSICS = {"hydrostatic": 0.5, "mass-continuity": 0.5}
CASES: dict[str, tuple[Callable[[], nn.Module], Units, Loss, type]] = {
    "perceptron": (lambda: MLP(3, 2, hidden=(8, 5)), TABLE, squared, Factored),
    "tokens": (lambda: Attention(8, 2), TOKENS, squared, Factored),
    "datacube": (*worlds({}), Factored),
    "datacube with physics": (*worlds(PHYSICS), Factored),
    "folded time": (Folded, SERIES, squared, Factored),
    "convolutions of all kinds": (Convolved, MAPS, squared, Factored),
    "norms of all kinds": (Normed, SERIES, squared, Factored),
    "linear layers of all kinds": (Spread, TABLE, squared, Together),
    "slopes": (lambda: MLP(3, 2, hidden=(8,)), TABLE, smooth, Together),
    "slopes by autograd": (lambda: MLP(3, 2, hidden=(8,)), TABLE, smooth_by_autograd, OneByOne),
    "second order": (lambda: MLP(3, 2, hidden=(8,)), SETS, after_a_step, Together),
    "in place": (lambda: InPlace(3, 2, hidden=(8,)), TABLE, squared, OneByOne),
    "branches": (lambda: Branches(3, 2, hidden=(8,)), TABLE, squared, OneByOne),
    "couples its batch": (lambda: MLP(3, 2, hidden=(8,)), TABLE, coupled, Factored),
}


def made(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    with torch_seeded(1):
        model = build().to(dtype)
        for parameter in model.parameters():  # so that no gradient is 0 because a layer starts at 0
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def looped(model: nn.Module, units: Units, loss: Loss) -> list[list[Tensor]]:
    """The plain way: for each unit alone, the gradient that `backward` leaves."""
    found = []
    for index in range(len(units[0])):
        model.zero_grad()
        loss(model, tuple(tensor[index : index + 1] for tensor in units)).backward()  # type: ignore[no-untyped-call]
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found.append([torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights])
    model.zero_grad()
    return found


def weighted(found: Gradients, factors: Tensor, model: nn.Module) -> list[Tensor]:
    totals = [torch.zeros_like(parameter) for parameter in model.parameters() if parameter.requires_grad]
    found.add_weighted(factors, totals)
    return totals


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    whole = torch.stack([each.norm() for each in expected]).norm()
    return float(torch.stack([(a - b).norm() for a, b in zip(found, expected, strict=True)]).norm() / whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_each_units_gradient_is_that_of_a_loop_whatever_others_are_in_the_batch(case: str, dtype: torch.dtype) -> None:
    build, units, loss, form = CASES[case]
    model, units = made(build, dtype), tuple(tensor.to(dtype) for tensor in units)
    expected, count = looped(model, units, loss), len(units[0])
    chosen = cheapest_form(model, units, loss)
    assert type(chosen) is form
    forms = [chosen, Factored(model, loss, tuple(tensor[:1] for tensor in units))]
    for found in [each(model, units, loss) for each in (forms if form is Together else [chosen])]:
        for index in range(count):
            one = torch.zeros_like(found.squares)
            one[index] = 1.0
            assert relative(weighted(found, one, model), expected[index]) <= (1e-5 if dtype is torch.float32 else 1e-12)
            lengths = torch.stack([gradient.square().sum() for gradient in expected[index]])
            squares = found.squares[index].to(dtype)
            torch.testing.assert_close(squares, lengths, rtol=1e-4, atol=1e-5 * float(lengths.sum()))


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
@pytest.mark.parametrize("case", ["perceptron", "datacube with physics", "in place"])
def test_micro_batches_hold_every_chosen_unit_once(case: str, micro_batch: int | None) -> None:
    build, units, loss, _ = CASES[case]
    model, chosen = made(build, torch.float32), np.array([0, 2])
    expected = [sum(each[1:], each[0]) for each in zip(*(looped(model, units, loss)[i] for i in chosen), strict=True)]
    parts = list(Rows(units, loss, micro_batch).gradients(model, chosen))
    one_by_one = micro_batch == 1 or (micro_batch is None and case == "in place")
    assert [len(part.squares) for part in parts] == ([1, 1] if one_by_one else [2])
    sums = [weighted(part, torch.ones_like(part.squares), model) for part in parts]
    assert relative([sum(each[1:], each[0]) for each in zip(*sums, strict=True)], expected) <= 1e-5


def test_by_default_no_more_gradients_are_held_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, convolved = made(lambda: MLP(3, 2, hidden=(64,)), torch.float32), made(Folded, torch.float32)
    numbers = sum(parameter.numel() for parameter in convolved.parameters())
    monkeypatch.setattr(units_, "IN_MEMORY", 2 * 4 * numbers)
    sizes = [len(part.squares) for part in Rows(SERIES, squared).gradients(convolved, np.arange(5))]
    assert sizes == [2, 2, 1]
    monkeypatch.setattr(units_, "IN_MEMORY", 4 * sum(parameter.numel() for parameter in wide.parameters()))
    factored = [len(part.squares) for part in Rows(TABLE, squared).gradients(wide, np.arange(5))]
    assert factored == [2, 2, 1]  # a gradient takes as much as the factors of almost three


def test_units_with_large_outputs_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(lambda: nn.Conv1d(1, 2, 3), torch.float32)  # puts out 2 by 4 numbers for 6
    units = (drawn(5, 1, 6), drawn(5, 2, 4))
    for large, sizes in ((4 * 8, [1, 1, 1, 1, 1]), (4 * 8 + 1, [5])):
        monkeypatch.setattr(units_, "LARGE", large)
        assert [len(part.squares) for part in Rows(units, squared).gradients(model, np.arange(5))] == sizes


def test_a_layer_over_many_rows_keeps_the_smaller_of_gradients_and_factors() -> None:
    """18 rows of 6 by 2: gradients are fewer numbers; 2 rows of 6 by 8: factors are."""
    for rows, into, out, kept in ((18, 6, 2, False), (2, 6, 8, True)):
        layer, batch = made(lambda i=into, o=out: nn.Linear(i, o), torch.float32), (drawn(5, rows, into),)  # type: ignore[misc]

        def loss(model: nn.Module, batch: Units) -> Tensor:
            value: Tensor = model(batch[0]).square().sum()
            return value

        form = Factored(layer, loss, (batch[0][:1],))
        found: Any = form(layer, batch, loss)
        assert (found._terms[0][1] is not None) == kept
        assert form.numbers(layer) == (rows * (into + out) if kept else into * out) + out
        ones = torch.ones_like(found.squares)
        expected = [sum(each[1:], each[0]) for each in zip(*looped(layer, batch, loss), strict=True)]
        assert relative(weighted(found, ones, layer), expected) <= 1e-5


def test_only_layers_passed_once_whose_weights_go_nowhere_else_are_factored() -> None:
    model, unit = made(Spread, torch.float32), tuple(tensor[:1] for tensor in TABLE)
    found = {name: tuple(shape) for name, shape in Factored(model, squared, unit)._layers.items()}
    assert found == {"once": (1, 4), "bare": (1, 4), "rows": (1, 4, 2), "head": (1, 2)}

    def penalised(model: nn.Module, batch: Units) -> Tensor:
        assert isinstance(model, Spread)
        return squared(model, batch) + model.head.weight.square().sum()

    assert list(Factored(model, penalised, unit)._layers) == ["once", "bare", "rows"]

    def on_half_the_weights(model: nn.Module, batch: Units) -> Tensor:
        halves = {name: weight / 2 for name, weight in model.named_parameters()}
        value: Tensor = (functional_call(model, halves, (batch[0],)) - batch[1]).square().sum()
        return value

    assert Factored(model, on_half_the_weights, unit)._layers == {}


def test_only_convolutions_that_patches_are_right_for_are_factored() -> None:
    model, unit = made(Convolved, torch.float32), tuple(tensor[:1] for tensor in MAPS)
    assert list(Factored(model, squared, unit)._layers) == ["plane", "line", "space", "head"]
    assert list(Factored(model, squared, unit, convolutions=False)._layers) == ["head"]


def test_norms_and_layers_that_are_changed_in_place_are_factored() -> None:
    model, unit = made(Normed, torch.float32), tuple(tensor[:1] for tensor in SERIES)
    names = ["wide", "scaled", "rows", "place", "line", "head"]
    assert list(Factored(model, squared, unit)._layers) == names


def test_a_layer_inside_of_another_transformation_is_left_to_another_form() -> None:
    class Nested(MLP):
        def forward(self, rows: Tensor) -> Tensor:
            out: Tensor = torch.func.vmap(super().forward)(rows[:, None])[:, 0]
            return out

    model = made(lambda: Nested(3, 2, hidden=(8,)), torch.float32)
    assert type(cheapest_form(model, TABLE, squared)) is gradients.Together


def test_a_layer_passed_otherwise_than_at_first_is_noticed() -> None:
    class Moody(MLP):
        again = False

        def forward(self, rows: Tensor) -> Tensor:
            out = super().forward(rows)
            return out + self.head(self.body(rows)) if self.again else out

    model = made(lambda: Moody(3, 2, hidden=(8,)), torch.float32)
    form = Factored(model, squared, tuple(tensor[:1] for tensor in TABLE))
    model.again = True  # type: ignore[assignment]
    with pytest.raises(WrongUnitGradients, match=r"layer '(body\.0|head)' more often"):
        form(model, TABLE, squared)


def test_gradients_that_are_not_one_a_unit_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_time(*_: object, **__: object) -> Callable[..., dict[str, Tensor]]:
        return lambda parameters, batch: {name: p.new_zeros((30, *p.shape)) for name, p in parameters.items()}

    monkeypatch.setattr(gradients, "vmap", by_time)
    with pytest.raises(WrongUnitGradients, match=r"shape \(30,.*5 units are in the batch"):
        unit_gradients(made(Folded, torch.float32), SERIES, squared)


@pytest.mark.parametrize("case", ["perceptron", "folded time", "in place"])
def test_a_unit_whose_gradient_is_not_finite_counts_nothing(case: str) -> None:
    build, units, loss, _ = CASES[case]
    model, broken = made(build, torch.float32), units[0].clone()
    broken[1] = float("nan")
    found = cheapest_form(model, units, loss)(model, (broken, units[1]), loss)
    assert bool((found.squares[1] == 0).all()) and bool((found.squares[[0, 2, 3, 4]].sum(dim=1) > 0).all())
    without = [0, 2, 3, 4]
    kept = cheapest_form(model, units, loss)(model, tuple(tensor[without] for tensor in units), loss)
    ones, others = torch.ones_like(found.squares), torch.ones_like(kept.squares)
    assert relative(weighted(found, ones, model), weighted(kept, others, model)) <= 1e-6


def test_a_loss_that_depends_on_no_weight_has_no_gradient() -> None:
    def nothing(model: nn.Module, batch: Units) -> Tensor:
        return batch[0].sum()

    model = made(lambda: MLP(3, 2, hidden=(8,)), torch.float32)
    for form in (Together(), OneByOne()):
        found: Any = form(model, TABLE, nothing)
        assert isinstance(found, WrittenOut) and not bool(found.squares.any())
