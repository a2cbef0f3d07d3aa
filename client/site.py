"""A site: one participant's own name, data and home folder, as the client on that machine knows them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from astrofed.client.policy import Policy
    from astrofed.client.privacy.noise_keys import Peers


@dataclass(frozen=True)
class Site:
    """Where a participant's data lies and where it keeps what it must not forget (the privacy ledger).

    `corrupt_inputs` and `corrupt_targets` are set only by simulations, for data-poisoning attacks: they map
    dimensionless training inputs and targets, samples first, to the poisoned ones. `device` is where models are trained
    and evaluated, as the machine's operator has it. `home` is None where nothing may be kept (a dry check). `policy` is
    what the site allows; None only in simulations, where sites do what the plan says. `peers` are the keys by which
    noise is shared with other sites.
    """

    name: str
    data: Path
    role: Literal["train", "evaluate"] = "train"
    home: Path | None = None
    policy: "Policy | None" = field(default=None, hash=False)
    peers: "Peers | None" = None
    corrupt_inputs: "Callable[[Tensor], Tensor] | None" = None
    corrupt_targets: "Callable[[Tensor], Tensor] | None" = None
    device: str = "cpu"


@dataclass(frozen=True)
class SiteSummary:
    """What a site tells the coordinator when it enrols: counts and a fingerprint, never data."""

    name: str
    role: Literal["train", "evaluate"]
    num_examples: int  # training samples
    num_eval_examples: int
    num_units: int  # privacy units (planets, worlds) among the training samples
    unit: str  # what one privacy unit is
    fingerprint: str  # sha256 of the dataset's content
    description: str  # one line for people
