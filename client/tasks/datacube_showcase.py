"""Maps for the report of a local simulation: what was to be predicted, what was predicted, and the difference."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import to_si
from astrofed.shared.models.datacube_layout import VARIABLES

# Variable and the sigma level nearest to which it is shown, None for variables without levels.
SHOWN: tuple[tuple[str, float | None, str], ...] = (
    ("ta", 1.0, "air temperature near the surface"),
    ("ua", 0.25, "zonal wind at jet level"),
    ("hus", 0.85, "specific humidity above the boundary layer"),
    ("ts", None, "surface temperature"),
)


def maps(world: World, sample: Sample, prediction: Tensor) -> dict[str, Any]:
    """Return {"maps": […]} for the first target month of a sample's last scored epoch.

    Each map has variable, units, level (sigma, or None), title, and arrays lat [lat] and lon [lon] in degrees, truth,
    prediction and error (prediction less truth) [lat, lon] in SI.
    """
    variables = world.layout.variables
    epoch = sample.scored[-1]
    both = torch.stack((world.targets(sample), prediction))[:, :, 0, epoch]
    truth, predicted = to_si(both, variables).numpy().astype(np.float64)
    month = int(world.cube.climate_time[sample.target]) + 1
    found = []
    for name, sigma, title in SHOWN:
        if name not in variables:
            continue
        level = 0 if sigma is None else int(np.abs(world.cube.lev - sigma).argmin())
        index = variables.index(name)
        found.append(
            {
                "variable": name,
                "units": VARIABLES[name].unit,
                "level": None if sigma is None else float(world.cube.lev[level]),
                "title": f"{title}, {world.cube.planet.name}, month {month}",
                "lat": world.cube.lat_deg,
                "lon": world.cube.lon_deg,
                "truth": truth[index, level],
                "prediction": predicted[index, level],
                "error": predicted[index, level] - truth[index, level],
            }
        )
    return {"maps": found}
