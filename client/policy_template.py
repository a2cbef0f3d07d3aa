"""The policy that a new site begins with: careful, complete and commented, for its operator to edit."""

import json
import tomllib
from pathlib import Path

from astrofed.client.policy import Policy, PolicyError
from astrofed.shared.files import write_atomically

_TEMPLATE = """\
# What this site allows. Its operator decides; no coordinator can change or read it.
# What is not named here is not allowed. See it in words, or find mistakes: astrofed client policy {path}
# See whether a plan would be let in, and what it would cost: astrofed client check PLAN --policy {path}

# Kinds of runs: "federated", "single", …
modes = ["federated"]

# Tasks and models that plans may name (`astrofed plugins` lists what is installed), and where these may come from:
# names of installed packages, or Python files on this machine.
tasks = []
models = []
plugins = ["astrofed"]

# Whose plans are looked at at all. Compare a key's fingerprint over the telephone before you write it down here.
{coordinators}
# With whom noise may be shared, so that less of it is needed (data.shared_noise below). The other site's operator gets
# the key from `astrofed client noise-key`; compare it over a channel that is not the coordinator's.
# [[peers]]
# name = "kepler"
# public_key = "64 hexadecimal digits (X25519)"

# Rules for every dataset that has none of its own below.
[data]
privacy = "required"      # a plan must train with differential privacy; "optional" lets updates leave without noise
epsilon = 1.0             # all runs together, for ever: the ledger holds it. Smaller is more private
delta = 1e-6              # below one over the number of your planets, worlds or customers
# shared_noise = {{ colluding = 1 }}   # noise may be shared with the peers, if one of them may tell all that it knows
max_rounds = 50
hours = []                # such as ["22:00-06:00"], by this machine's clock; empty: at any time
metrics = []              # what may be told of held-out data, such as ["loss", "rmse/*"]; a coordinator that gets no
                          # "loss" can't score its model on your data
min_units = 10            # a metric of fewer planets, worlds or customers never leaves
digits = 2                # metrics leave with so many significant digits. Rounding is no guarantee; noise is one:
# noise = {{ multiplier = 10.0, bounds = {{ loss = 3.0 }} }}     # charged to epsilon each time that metrics are told
statistics = []           # means and scales for standardisation that may leave, exact, such as ["median:*"]
describe = false          # whether the task's line of words about the data leaves
# max_update_norm = 100.0

# [datasets.catalogue]
# path = "data/catalogue"   # relative to this file
# epsilon = 4.0             # what is left out is as in [data]
"""


def policy_template(path: Path, coordinators: dict[str, str] | None = None) -> str:
    """Return the text of a careful policy; `coordinators`: public keys (hexadecimal) by name."""
    known = [
        f"[[coordinators]]\nname = {json.dumps(name)}\npublic_key = {json.dumps(key)}\n"
        for name, key in (coordinators or {}).items()
    ]
    example = '# [[coordinators]]\n# name = "coordinator"\n# public_key = "64 hexadecimal digits (Ed25519)"\n'
    return _TEMPLATE.format(path=path, coordinators="\n".join(known) or example)


def write_new_policy(path: Path, coordinators: dict[str, str] | None = None) -> Policy:
    """Write a careful policy and return it.

    Raises:
        PolicyError: there is a file already, which stays as it is, or a coordinator's name or key is none.
        CannotWrite: the folder is not writable.
    """
    if path.exists():
        raise PolicyError(f"policy {path} exists already; edit it, or remove it first")
    text = policy_template(path, coordinators)
    policy = Policy.parse(tomllib.loads(text), path)
    write_atomically(path, text.encode())
    return policy
