"""What differential privacy at a site can't be promised for: each mistake by name, with the mend.

A loss that couples units needs no refusal: gradients are taken of a function that is given one unit alone.
"""

import torch
from torch import Tensor, nn

from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Training


class CouplesUnits(UserMistake):
    """A layer of the model lets one unit's data into another unit's gradient."""


class KeepsData(UserMistake):
    """A model writes into its buffers while it trains: they would leave the site without noise."""


class ClippedTwice(UserMistake):
    """The plan clips gradients both per unit and as a whole."""


class NotWithPrivacy(UserMistake):
    """The plan trains in a way for which per-unit gradients or their noise are not what is accounted for."""


class WrongPrivacyUnit(UserMistake):
    """The plan protects another unit than the one that the dataset's contract declares."""


def check_private(model: nn.Module, training: Training) -> None:
    """Refuse what per-unit clipping can't bound.

    Raises:
        CouplesUnits: a layer normalises over the batch, or keeps statistics of it, trained or frozen.
        ClippedTwice: `training.gradient_clip` is set.
        NotWithPrivacy: a key of [training] has no place beside [privacy].
    """
    _check_training(training)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or getattr(layer, "track_running_stats", False):
            raise CouplesUnits(
                f"layer {name!r} ({type(layer).__name__}) mixes the units of a batch, so no unit's influence can be "
                "bounded; use GroupNorm or LayerNorm in its place, or remove the [privacy] section"
            )
    if training.gradient_clip is not None:
        raise ClippedTwice(
            f"training.gradient_clip = {training.gradient_clip:g} has no place beside [privacy]: there "
            "privacy.clipping_norm clips each unit's gradient; remove training.gradient_clip"
        )


def _check_training(training: Training) -> None:
    reasons = {
        "precision": (training.precision != "fp32", "gradients are clipped and noised in single precision"),
        "checkpoint": (training.checkpoint, "per-unit gradients are taken of a function, not of a backward pass"),
        "accumulate": (training.accumulate > 1, "a step is one Poisson sample; privacy.micro_batch bounds the memory"),
        "optimizer": (
            training.optimizer in ("sophia", "muon"),
            "sophia's curvature would be released without noise, and muon regroups the weights that noise is for",
        ),
    }
    for key, (mistaken, reason) in reasons.items():
        if mistaken:
            raise NotWithPrivacy(
                f"training.{key} = {getattr(training, key)!r} has no place beside [privacy]: {reason}; leave it out"
            )


def check_unit(asked: str, declared: str, where: str) -> None:
    """Refuse to protect anything else than what the contract of the dataset says; `where` names site and data.

    Raises:
        WrongPrivacyUnit: the units differ.
    """
    if asked != declared:
        raise WrongPrivacyUnit(
            f"{where}: privacy.unit is {asked!r}, but the dataset's contract declares {declared!r}, and parts of one "
            f"{declared} can't be protected one by one; set privacy.unit = {declared!r}"
        )


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's buffers by name."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def check_buffers(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Refuse a model whose buffers are no longer those of `before`.

    Raises:
        KeepsData: one has changed.
    """
    for name, buffer in model.named_buffers():
        if name not in before or not torch.equal(buffer, before[name]):
            raise KeepsData(
                f"the model writes into its buffer {name!r} while it trains, which says something about the data that "
                "no noise hides; make it a parameter or leave it out, or remove the [privacy] section"
            )
