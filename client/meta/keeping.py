"""A site's own adapted model, kept at its home: it never leaves the site.

`adapted.safetensors` holds the weights, `adapted.json` how they do on the site's held-out samples beside the shared
model's. Both are of the newest evaluation.
"""

import json
from pathlib import Path

from safetensors.torch import save

from astrofed.client.meta.episodes import AdaptedScores
from astrofed.shared.files import write_atomically

MODEL, SCORES = "adapted.safetensors", "adapted.json"


def keep(home: Path, scores: AdaptedScores) -> None:
    """Write a site's own model, if it has one, and both models' scores.

    Raises:
        CannotWrite: disk full, or not writable.
    """
    if scores.model is not None:
        state = {name: tensor.detach().contiguous() for name, tensor in scores.model.state_dict().items()}
        write_atomically(home / MODEL, save(state), flush=False)
    told = {"before": scores.before, "after": scores.after}
    write_atomically(home / SCORES, json.dumps(told, sort_keys=True).encode(), flush=False)
