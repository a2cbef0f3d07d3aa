"""What differential privacy at a site can't be promised for: each mistake by name, with the mend.

A loss that couples units needs no refusal: gradients are taken of a function that is given one unit alone.
"""

import torch
from torch import Tensor, nn

from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Training
from astrofed.shared.plan_privacy import not_with_privacy


class CouplesUnits(UserMistake):
    """A layer of the model lets one unit's data into another unit's gradient."""


class KeepsData(UserMistake):
    """A model writes into its buffers while it trains: they would leave the site without noise."""


class NotWithPrivacy(UserMistake):
    """The plan trains in a way for which per-unit gradients or their noise are not what is accounted for."""


class NoTurn(UserMistake):
    """A request for a message with shared noise that doesn't say under which turn that is to be drawn."""


class WrongPrivacyUnit(UserMistake):
    """The plan protects another unit than the one that the dataset's contract declares."""


def check_private(model: nn.Module, training: Training) -> None:
    """Refuse what per-unit clipping can't bound.

    Raises:
        CouplesUnits: a layer normalises over the batch, or keeps statistics of it, trained or frozen.
        NotWithPrivacy: a key of [training] has no place beside [privacy].
    """
    mistake = not_with_privacy(training)
    if mistake is not None:
        raise NotWithPrivacy(mistake)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or getattr(layer, "track_running_stats", False):
            raise CouplesUnits(
                f"layer {name!r} ({type(layer).__name__}) mixes the units of a batch, so no unit's influence can be "
                "bounded; use GroupNorm or LayerNorm in its place, or remove the [privacy] section"
            )


def check_all_trained(model: nn.Module) -> None:
    """Refuse to share noise on a model of which a part is frozen here: at a site where it is not, noise would stay.

    Raises:
        NotWithPrivacy: see there.
    """
    frozen = next((name for name, parameter in model.named_parameters() if not parameter.requires_grad), None)
    if frozen is not None:
        raise NotWithPrivacy(
            f"parameter {frozen!r} is not trained at this site, and noise that sites share cancels only where all "
            "train all parameters; remove privacy.shared_noise"
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
