"""The benchmarks' digits: shares that cover all images once, held-out images that no training sees, and learning."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astrofed.client.app import open_task
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.shared import registry
from astrofed.shared.models.base import build_model
from astrofed.shared.seeds import derive_seed
from astrofed.simulations.bench.bare import BareDigits
from astrofed.simulations.bench.digits import UnknownShare, share, shuffled
from astrofed.simulations.bench.digits_sites import load_digits
from astrofed.simulations.bench.work import PLUGINS, plan_for


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    registry.load_plugin_file(PLUGINS["digits-cnn"])
    yield


@pytest.mark.parametrize("count", [1, 10, 100])
def test_shares_cover_all_images_once(count: int) -> None:
    shares = [share(f"digits:{index}/{count}") for index in range(count)]
    sizes = [len(part.labels) for part in shares]
    assert sum(sizes) == 1797 and max(sizes) - min(sizes) <= 1
    whole = share("digits:0/1")
    images = Counter(image.numpy().tobytes() for part in shares for image in part.images)
    assert images == Counter(image.numpy().tobytes() for image in whole.images)
    assert sum((part.labels.sum() for part in shares), torch.tensor(0)) == whole.labels.sum()


def test_no_training_image_is_held_out() -> None:
    part = share("digits:3/100")
    training, held_out = part.training[0], part.evaluation[0]
    assert len(training) + len(held_out) == len(part.labels) == 18 and len(held_out) == 1
    assert not any(torch.equal(a, b) for a in training for b in held_out)
    assert len(share("digits:0/800").training[1]) >= 1


@pytest.mark.parametrize("name", ["digits:3", "digits:10/10", "digits:-1/10", "digits:a/b", "digits:0/0", "0/900"])
def test_what_is_no_share_is_an_error(name: str) -> None:
    with pytest.raises(UnknownShare, match="expected digits:<index>/<count>"):
        share(name)


def test_an_epoch_has_each_image_once_in_an_order_that_the_seed_decides() -> None:
    images, labels = share("digits:0/10").training
    numbered = torch.arange(len(labels))

    def order(seed: int) -> torch.Tensor:
        batches = list(shuffled(images, numbered, 10)(torch.Generator().manual_seed(seed)))
        assert [len(rows) for _, rows in batches[:-1]] == [10] * (len(batches) - 1)
        assert all(torch.equal(pictures, images[rows]) for pictures, rows in batches)
        return torch.cat([rows for _, rows in batches])

    assert torch.equal(order(1), order(1)) and not torch.equal(order(1), order(2))
    assert torch.equal(order(1).sort().values, numbered)


def test_the_network_learns_to_read() -> None:
    plan = plan_for("digits-cnn", 3, 6)
    task = open_task(plan, Site("client-0", Path("digits:0/3")))
    bare = BareDigits(plan)
    before = task.evaluate(bare.model, {}, with_baselines=False)
    for _ in range(6):
        bare.run_round()
    after = task.evaluate(bare.model, {}, with_baselines=False)
    assert before["accuracy"] < 0.4 and after["accuracy"] > 0.85 and after["loss"] < before["loss"]


def test_the_task_says_what_it_has_and_trains_as_the_bare_loop_does() -> None:
    plan = plan_for("digits-cnn", 10, 1)
    task = open_task(plan, Site("client-4", Path("digits:4/10")))
    summary = task.summary()
    assert (summary.num_examples, summary.num_eval_examples, summary.unit) == (162, 18, "image")
    other = open_task(plan, replace(task.site, data=Path("digits:5/10"))).summary()
    assert other.fingerprint != summary.fingerprint
    model, bare = build_model(plan), BareDigits(plan)
    bare.round = 1
    outcome = task.train(model, {}, TrainInstruction(1, derive_seed(plan.seed, "train", 1, "client-4")))
    assert outcome.num_examples == bare.train_client(4) == 162
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), bare.model.parameters(), strict=True))


def test_the_digits_are_those_that_scikit_learn_loads() -> None:
    from sklearn import datasets

    images, labels = load_digits()
    expected = datasets.load_digits()
    assert images.shape == (1797, 64) and images.max() == 1
    assert (images * 16 == expected.data).all() and (labels == expected.target).all()
