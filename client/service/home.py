"""A site's home folder: all that a site keeps for its part in federations, and nothing of anybody else's.

site.toml           name, contact, datasets by name, limits; written by `astrofed client init`, edited by people
policy.toml         what the site allows (`astrofed.client.policy`)
node.key            the node's private key (P-384), readable by its owner alone
noise.key           the private key by which noise is shared with other sites (X25519), made when first needed
request.json        the enrolment request, to be sent to a coordinator
welcome.json        the coordinator's answer, put here by `astrofed client join`
privacy-ledger.*    what was spent on each dataset; see `astrofed client ledger`
spool/              questions and replies that must outlast a crash
logs/               what happened, without data
crew.store          where the processes of several devices find each other; written anew at each start
"""

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from astrofed.client.policy import POLICY_FILE, Policy
from astrofed.client.privacy.noise_keys import Peers
from astrofed.client.site import Site
from astrofed.shared.errors import UserMistake
from astrofed.shared.keys import NodeKey, read_node_key
from astrofed.shared.membership import Text, Welcome, read_welcome
from astrofed.shared.plan import Name, Participant, Plan, Positive, Section
from astrofed.shared.toml_file import as_model, read_toml

if TYPE_CHECKING:
    from flwr.app import Context

SITE_FILE, KEY_FILE, REQUEST_FILE, WELCOME_FILE = "site.toml", "node.key", "request.json", "welcome.json"


class NoHome(UserMistake):
    """A folder that is no site's home."""


class BadSiteFile(UserMistake):
    """A site.toml that can't be used."""


class NotJoined(UserMistake):
    """The site has no coordinator's welcome yet."""


class NotForThisSite(UserMistake):
    """A plan that does not name this site, or a dataset that it does not have."""


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda:\d{1,3}", name):
        raise ValueError(f'{name!r} is no device; give "cpu", or "cuda:0" and so on')
    return name


Word = Annotated[str, Field(min_length=1)]


Device = Annotated[str, AfterValidator(_device)]


class OtherNode(Section):
    """Another machine of the site whose devices train along."""

    launch: Annotated[tuple[Word, ...], Field(min_length=1)]
    """What is put before a command to have it run there, such as ["ssh", "gpu2"] or ["srun", "-w", "gpu2"]."""
    devices: Annotated[tuple[Device, ...], Field(min_length=1)]


class Limits(Section):
    """What one task may take of this machine."""

    threads: Annotated[int, Field(ge=1)] | None = None
    """Cores; None: all."""
    memory_gb: Positive | None = None
    """10^9 bytes that the executor may hold; past it, it is ended. Needs Linux."""
    task_s: Positive = 3600.0
    """Seconds that one request may take."""
    message_mb: Positive = 2048.0
    """10^6 bytes that one request may have."""
    devices: Annotated[tuple[Device, ...], Field(min_length=1)] = ("cpu",)
    """Where networks are computed: "cpu" or "cuda:N". With several, each trains on its rows of every batch."""
    nodes: tuple[OtherNode, ...] = ()
    """Other machines of the site that train along; they see this home under the same path."""

    @property
    def places(self) -> tuple[tuple[str, OtherNode | None], ...]:
        """All devices, this machine's first, and the other machine that has each."""
        here = [(device, None) for device in self.devices]
        return (*here, *((device, node) for node in self.nodes for device in node.devices))

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len({device.partition(":")[0] for device, _ in self.places}) > 1:
            raise ValueError('devices of a site that train together are all GPUs, or all "cpu"; leave some out')
        for devices in (self.devices, *(node.devices for node in self.nodes)):
            twice = [name for name in devices if name != "cpu" and devices.count(name) > 1]
            if twice:
                raise ValueError(f"{twice[0]!r} is there twice; name each GPU of a machine once")
        return self


class SiteFile(Section):
    """What site.toml says."""

    name: Name
    contact: Text
    data: Annotated[dict[Name, Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    """Where each dataset lies, by the name that plans use; relative to the home."""
    limits: Limits = Limits()


@dataclass(frozen=True)
class Home:
    """A site's home folder and what its files say."""

    folder: Path
    file: SiteFile

    @classmethod
    def open(cls, folder: Path) -> "Home":
        """Read a home's site.toml.

        Raises:
            NoHome: there is none.
            BadSiteFile: it can't be used.
        """
        path = folder / SITE_FILE
        missing = NoHome(f"{folder} is no site's home: no {SITE_FILE} there; `astrofed client init` makes one")
        return cls(folder, as_model(SiteFile, read_toml(path, BadSiteFile, missing), BadSiteFile, path))

    @property
    def key(self) -> NodeKey:
        """The node's private key (errors as `read_node_key`)."""
        return read_node_key(self.folder / KEY_FILE)

    @property
    def welcome(self) -> Welcome:
        """The coordinator's welcome.

        Raises:
            NotJoined: there is none.
            NotAMembershipFile: it can't be read.
        """
        path = self.folder / WELCOME_FILE
        if not path.exists():
            raise NotJoined(
                f"{self.folder} has joined no federation: send {REQUEST_FILE} to the coordinator, and give what comes "
                f"back to `astrofed client join WELCOME {self.folder}`"
            )
        return read_welcome(path)

    @property
    def policy(self) -> Policy:
        """The site's policy (errors as `Policy.load`)."""
        return _policy(self.folder / POLICY_FILE)

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.folder / "logs"

    @property
    def spool(self) -> Path:
        """The folder of what must outlast a crash."""
        return self.folder / "spool"

    @property
    def blobs(self) -> Path:
        """The folder of messages' large contents."""
        return self.spool / "blobs"

    def data_path(self, name: str) -> Path:
        """Return where a dataset lies, by its name in site.toml.

        Raises:
            NotForThisSite: there is none of that name.
        """
        given = self.file.data.get(name)
        if given is None:
            raise NotForThisSite(f"site {self.file.name!r} has no dataset {name!r}")
        return self.folder / given

    def participant(self, plan: Plan) -> Participant:
        """Return what the plan says of this site.

        Raises:
            NotForThisSite: nothing, or it names a dataset that is not here.
        """
        found = next((each for each in plan.participants if each.name == self.site_name), None)
        if found is None:
            raise NotForThisSite(f"site {self.site_name!r} is not in the plan")
        self.data_path(found.data)
        return found

    @property
    def site_name(self) -> str:
        """The name by which the coordinator knows this site."""
        return self.file.name

    def open_site(self, context: "Context", plan: Plan) -> Site:
        """Return this site as a plan sees it, for the client app (errors as `participant`)."""
        participant = self.participant(plan)
        path = self.data_path(participant.data)
        policy = self.policy
        peers = Peers(self.folder, {peer.name: peer.public_key for peer in policy.peers})
        return Site(participant.name, path, participant.role, home=self.folder, policy=policy, peers=peers)

    def load_plugins(self) -> None:
        """Import the plug-in files that the policy names; they are the site's own."""
        from astrofed.shared import registry

        for each in self.policy.plugins:
            if each.endswith(".py"):
                registry.load_plugin_file(Path(each))


@lru_cache(maxsize=4)
def _policy(path: Path) -> Policy:
    return Policy.load(path)


def site_toml(name: str, contact: str, data: dict[str, str]) -> str:
    """Return the text of a new site.toml, commented for its operator."""
    cores, memory = os.cpu_count() or 1, _memory_gb()
    lines = "\n".join(f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in data.items())
    remembered = f"memory_gb = {memory:.1f}" if memory else "# memory_gb = 8.0"
    return f"""\
# A site of a federation: who it is, what data it has, and what of this machine training may take.
# What it allows stands in {POLICY_FILE}.
name = {json.dumps(name)}
contact = {json.dumps(contact, ensure_ascii=False)}

# Datasets by the names that plans use. Paths never leave this machine.
[data]
{lines}

[limits]
threads = {cores}          # cores that training may use
{remembered}      # past this, a task is ended and gets an error reply
task_s = 3600        # seconds that one request may take
message_mb = 2048    # the largest request that is taken
# devices = ["cuda:0"]    # compute on this GPU; on several, such as ["cuda:0", "cuda:1"], they share each batch
"""


def _memory_gb() -> float | None:
    """Return three quarters of this machine's memory, in 10^9 bytes."""
    try:
        return 0.75 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError):
        return None
