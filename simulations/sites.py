"""The sites of a simulated federation: each participant of the plan as its own client sees it, and their client app."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from astrofed.client.app import build_client_app
from astrofed.client.policy import Policy
from astrofed.client.privacy.noise_keys import Peers, noise_key, public_digits
from astrofed.client.site import Site
from astrofed.shared import registry
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Participant, Plan, check_options
from astrofed.simulations.attack import Attack
from astrofed.simulations.bundled import PREFIX, resolve_bundled

HOMES = "sites"


def open_simulated_site(plan: Plan, index: int, run: Path | None, device: str = "cpu") -> Site:
    """Return participant number `index` of a plan as a site; its home lies in the run's folder, if there is one.

    `device`: where it trains and evaluates.

    Raises:
        UserMistake: the bundled dataset or the attack is unknown, or the policy can't be read.
    """
    participant = plan.participants[index]
    poison = _poison(participant)
    return Site(
        name=participant.name,
        data=data_path(participant),
        role=participant.role,
        home=run / HOMES / folder_name(participant.name) if run is not None else None,
        policy=Policy.load(Path(participant.policy)) if participant.policy is not None else None,
        peers=_peers(plan, participant.name, run) if run is not None else None,
        corrupt_inputs=poison.corrupt_inputs if poison is not None else None,
        corrupt_targets=poison.corrupt_targets if poison is not None else None,
        device=device,
    )


def _peers(plan: Plan, name: str, run: Path) -> Peers | None:
    """Return the keys of all that share noise; they are made in the sites' homes."""
    if not plan.shares_noise:
        return None
    homes = {each.name: run / HOMES / folder_name(each.name) for each in plan.trainers}
    keys = {other: public_digits(noise_key(home)) for other, home in homes.items() if other != name}
    return Peers(homes[name], keys) if name in homes else None


def data_path(participant: Participant) -> Path:
    """Return where a participant's data lie."""
    return resolve_bundled(participant.data) if participant.data.startswith(PREFIX) else Path(participant.data)


def folder_name(name: str) -> str:
    """Return a participant's name as a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _poison(participant: Participant) -> Attack | None:
    """Return the attack on its own data that a participant mounts, if it does."""
    if participant.attack is None:
        return None
    cls: type[Attack] = registry.get("attacks", participant.attack.name)
    options = check_options(cls.Options, participant.attack, f"participants.{participant.name}.attack")
    return cls(options) if cls.poisons_data else None


class NotInvited(UserMistake):
    """A message reached a participant that its plan doesn't name."""


def build_simulated_client_app(run: Path | None, names: Sequence[str] | None = None, device: str = "cpu") -> ClientApp:
    """Return the client app whose node number i is the participant `names[i]` of whichever plan the message carries.

    Without names it is that plan's participant number i. All train and evaluate on the same device.
    """

    opened: dict[int, tuple[Plan, Site]] = {}

    def open_site(context: Context, plan: Plan) -> Site:
        index = int(context.node_config["partition-id"])
        known = opened.get(index)
        if known is None or known[0] is not plan:
            place = index if names is None else _place(plan, names[index])
            known = opened[index] = (plan, open_simulated_site(plan, place, run, device))
        return known[1]

    return build_client_app(open_site)


def _place(plan: Plan, name: str) -> int:
    for place, participant in enumerate(plan.participants):
        if participant.name == name:
            return place
    raise NotInvited(f"{name}: the plan doesn't name this participant")


class RemoteClientApp(ClientApp):
    """The same client app for workers in other processes: it travels as two paths and is built where it runs."""

    def __init__(self, run: Path | None, names: Sequence[str], plugins: Sequence[Path]) -> None:
        super().__init__()
        self._run, self._names, self._plugins = run, tuple(names), tuple(plugins)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteClientApp, (self._run, self._names, self._plugins)

    def __call__(self, message: Message, context: Context) -> Message:
        """Hand the message to this process's client app."""
        return _local_app(self._run, self._names, self._plugins)(message, context)


@lru_cache(maxsize=4)
def _local_app(run: Path | None, names: tuple[str, ...], plugins: tuple[Path, ...]) -> ClientApp:
    for path in plugins:
        registry.load_plugin_file(path)
    return build_simulated_client_app(run, names)
