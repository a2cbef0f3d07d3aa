"""The local training loop: the plan's optimiser to the bit, FedProx, clipping, seeds, and what ends a round early."""

import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Trainer
from torch import Tensor, nn

from astrofed.client.optimizers import make_optimizer
from astrofed.client.task import TrainInstruction
from astrofed.client.training import (
    BatchSource,
    LocalRound,
    TrainingDiverged,
    learning_rate,
    train_locally,
)
from astrofed.shared.plan import Training
from astrofed.shared.seeds import torch_seeded

Batch = tuple[Tensor, Tensor]
INPUTS = torch.randn(23, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.randn(23, 2, generator=torch.Generator().manual_seed(2))
OPTIMISERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def instruction(seed: int = 5, mu: float = 0.0, number: int = 1) -> TrainInstruction:
    return TrainInstruction(round=number, seed=seed, proximal_mu=mu)


def network(dropout: float = 0.0) -> nn.Sequential:
    with torch_seeded(3):
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))


def shuffled(size: int = 5) -> BatchSource[Batch]:
    def source(generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(INPUTS), generator=generator)
        for start in range(0, len(order), size):
            yield INPUTS[order[start : start + size]], TARGETS[order[start : start + size]]

    return source


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


class OneWeight(nn.Module):
    """A weight w, with the loss of which the gradient is known."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start], dtype=torch.float64))


def repeat(batch: float, times: int) -> BatchSource[float]:
    return lambda _generator: iter([batch] * times)


def half_square(model: nn.Module, target: float) -> Tensor:
    assert isinstance(model, OneWeight)
    return 0.5 * (model.w - target).square().sum()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_round_is_the_plain_loop_to_the_bit(name: str) -> None:
    training = Training.model_validate(
        {"optimizer": name, "epochs": 3, "learning_rate": 0.01, "weight_decay": 0.1, "gradient_clip": 0.5}
    )
    plain, ours = network(), network()
    optimizer = OPTIMISERS[name](plain.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(5)
    values = []
    for _ in range(3):
        for batch in shuffled()(generator):
            optimizer.zero_grad()
            value = loss(plain, batch)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
            values.append(value.detach())
    fit = train_locally(ours, shuffled(), loss, training, instruction(), rounds=1)
    assert torch.equal(weights(ours), weights(plain))
    assert fit.steps == len(values) == 15 and fit.loss == pytest.approx(float(torch.stack(values).mean()))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_fused_kernels_follow_the_definition_on_any_number_of_threads(name: str) -> None:
    training = Training.model_validate({"optimizer": name, "learning_rate": 0.01, "weight_decay": 0.1})
    start = torch.randn(100_003, generator=torch.Generator().manual_seed(0))
    gradients = torch.randn(5, 100_003, generator=torch.Generator().manual_seed(1))

    def after(make: Callable[[nn.Module], torch.optim.Optimizer], threads: int) -> Tensor:
        parameter = nn.Parameter(start.clone())
        optimizer = make(nn.ParameterList([parameter]))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        torch.set_num_threads(before)
        return parameter.detach()

    one, two = (after(lambda model: make_optimizer(model, training, 0.01), threads) for threads in (1, 2))
    reference = after(lambda m: OPTIMISERS[name](m.parameters(), lr=0.01, weight_decay=0.1, foreach=False), 1)
    assert torch.equal(one, two)
    torch.testing.assert_close(one, reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("max_steps", [None, 7])
def test_a_trainer_of_lightning_gives_the_same_weights(max_steps: int | None) -> None:
    training = Training(epochs=2, max_steps=max_steps, optimizer="adamw", learning_rate=0.01, gradient_clip=0.3)
    by_trainer, ours = network(), network()
    generator = torch.Generator().manual_seed(5)

    class Epochs:
        def __iter__(self) -> Iterator[Batch]:
            return shuffled()(generator)

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu", barebones=True, max_epochs=2, max_steps=max_steps or -1, use_distributed_sampler=False
        )
        trainer.fit(LocalRound(by_trainer, loss, training, 0.2, 0.01), train_dataloaders=Epochs())
    fit = train_locally(ours, shuffled(), loss, training, instruction(mu=0.2), rounds=1)
    assert torch.equal(weights(ours), weights(by_trainer))
    assert fit.steps == (max_steps or 10)


def test_fedprox_pulls_towards_the_global_weights() -> None:
    model, mu, rate = OneWeight(2.0), 0.5, 0.1
    training = Training(optimizer="sgd", learning_rate=rate)
    fit = train_locally(model, repeat(5.0, 40), half_square, training, instruction(mu=mu), rounds=1)
    # The step w -> w - rate ((w - 5) + mu (w - 2)) contracts to (5 + 2 mu) / (1 + mu) by 1 - rate (1 + mu) each time.
    fixed = (5 + 2 * mu) / (1 + mu)
    assert model.w.item() == pytest.approx(fixed + (2 - fixed) * (1 - rate * (1 + mu)) ** 40, abs=1e-12)
    path = [fixed + (2 - fixed) * (1 - rate * (1 + mu)) ** k for k in range(40)]
    assert fit.loss == pytest.approx(sum(0.5 * (w - 5) ** 2 for w in path) / 40)  # without the proximal term


def test_without_a_proximal_term_nothing_pulls() -> None:
    one, other = network(), network()
    training = Training(optimizer="sgd", learning_rate=0.1, epochs=2)
    train_locally(one, shuffled(), loss, training, instruction(mu=0.0), rounds=1)
    train_locally(other, shuffled(), loss, training, instruction(mu=3.0), rounds=1)
    start = weights(network())
    assert 0 < torch.dist(weights(other), start) < torch.dist(weights(one), start)


def test_weights_that_the_loss_does_not_reach_stay() -> None:
    model, spare = network(), nn.Parameter(torch.tensor([7.0]))
    model.register_parameter("spare", spare)
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.clone()
    training = Training(optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    train_locally(model, shuffled(), loss, training, instruction(mu=1.0), rounds=1)
    assert float(spare) == 7.0
    assert torch.equal(frozen, before)


def test_clipping_bounds_the_step() -> None:
    model = OneWeight(1.0)
    training = Training(optimizer="sgd", learning_rate=0.1, gradient_clip=2.0)
    train_locally(model, repeat(1e9, 1), half_square, training, instruction(), rounds=1)
    assert model.w.item() == pytest.approx(1.0 + 0.1 * 2.0, rel=1e-6)


@pytest.mark.parametrize(("max_steps", "steps"), [(1, 1), (4, 4), (5, 5), (7, 7), (10, 10), (99, 10), (None, 10)])
def test_max_steps_ends_the_round_also_within_an_epoch(max_steps: int | None, steps: int) -> None:
    drawn = []

    def source(generator: torch.Generator) -> Iterator[Batch]:
        for batch in shuffled()(generator):
            drawn.append(batch)
            yield batch

    training = Training(epochs=2, max_steps=max_steps)
    fit = train_locally(network(), source, loss, training, instruction(), rounds=1)
    assert fit.steps == steps == len(drawn)  # no batch is made in vain


def test_no_batches_mean_no_steps() -> None:
    model = network()
    fit = train_locally(model, lambda _: iter(()), loss, Training(), instruction(), rounds=1)
    assert (fit.loss, fit.steps) == (0.0, 0)
    assert torch.equal(weights(model), weights(network()))


def test_the_model_comes_back_in_training_mode_without_gradients() -> None:
    model = network().eval()
    modes = []

    def spying(model: nn.Module, batch: Batch) -> Tensor:
        modes.append(model.training)
        return loss(model, batch)

    train_locally(model, shuffled(), spying, Training(), instruction(), rounds=1)
    assert all(modes) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_a_diverging_loss_is_an_error_that_says_what_to_do(bad: float) -> None:
    training = Training(optimizer="sgd", learning_rate=0.25)
    with pytest.raises(TrainingDiverged, match=r"round 3; lower training.learning_rate \(now 0.25\)") as caught:
        train_locally(OneWeight(0.0), repeat(bad, 3), half_square, training, instruction(number=3), rounds=5)
    assert caught.value.exit_code == 2


def test_an_interrupt_passes_through_and_leaves_the_global_generator() -> None:
    def interrupted(generator: torch.Generator) -> Iterator[Batch]:
        yield next(shuffled()(generator))
        raise KeyboardInterrupt

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train_locally(network(dropout=0.5), interrupted, loss, Training(), instruction(), rounds=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_seed_alone_decides(dropout: float) -> None:
    def trained(seed: int, mess: int) -> Tensor:
        model = network(dropout)
        torch.manual_seed(mess)
        before = torch.get_rng_state()
        for _ in range(2):  # the second time the model is known
            model.load_state_dict(network(dropout).state_dict())
            train_locally(model, shuffled(), loss, Training(epochs=2), instruction(seed), rounds=1)
        assert torch.equal(torch.get_rng_state(), before)
        return weights(model)

    assert torch.equal(trained(5, mess=0), trained(5, mess=1))
    assert not torch.equal(trained(5, mess=0), trained(6, mess=0))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_two_threads_train_as_one_would(dropout: float) -> None:
    gate = threading.Barrier(2, timeout=20)

    def trained(seed: int, together: bool) -> Tensor:
        model = network(dropout)
        if together:
            gate.wait()
        for number in range(1, 4):
            train_locally(model, shuffled(2), loss, Training(epochs=2), instruction(seed, number=number), rounds=3)
        return weights(model)

    alone = [trained(seed, together=False) for seed in (1, 2)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(lambda seed: trained(seed, together=True), (1, 2)))
    assert all(torch.equal(one, other) for one, other in zip(alone, at_once, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_rounds_are_independent_of_those_before() -> None:
    """No optimiser state may travel from round to round: a site that joins late must not differ."""
    model = network()
    training = Training(optimizer="adam", learning_rate=0.05)
    train_locally(model, shuffled(), loss, training, instruction(number=1), rounds=2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    train_locally(model, shuffled(), loss, training, instruction(number=2), rounds=2)
    fresh = network()
    fresh.load_state_dict(start)
    train_locally(fresh, shuffled(), loss, training, instruction(number=2), rounds=2)
    assert torch.equal(weights(model), weights(fresh))


def test_the_learning_rate_follows_a_cosine() -> None:
    training = Training(learning_rate=0.8, decay=0.25)
    assert [learning_rate(training, number, 5) for number in range(1, 6)] == pytest.approx(
        [0.8, 0.2 + 0.6 * (0.5 + math.sqrt(0.125)), 0.5, 0.2 + 0.6 * (0.5 - math.sqrt(0.125)), 0.2]
    )
    assert learning_rate(training, 1, 1) == 0.8


@given(st.floats(1e-6, 10), st.floats(1e-3, 1), st.integers(1, 200))
def test_the_learning_rate_never_rises_nor_leaves_its_range(rate: float, decay: float, rounds: int) -> None:
    training = Training(learning_rate=rate, decay=decay)
    rates = [learning_rate(training, number, rounds) for number in range(1, rounds + 1)]
    assert rates[0] == pytest.approx(rate)
    assert rounds == 1 or rates[-1] == pytest.approx(rate * decay)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(rates))
