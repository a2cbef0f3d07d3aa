"""The showcase: maps come back as they were kept, and a damaged one says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astrofed.server.showcase import ARRAYS, NAMES, ShowcaseDamaged, read_showcase, write_showcase


def world_map(variable: str = "ta", units: str = "K", level: float | None = 0.98) -> dict[str, Any]:
    """A map as a task's `showcase` returns it: 8 latitudes, 16 longitudes."""
    lat, lon = np.linspace(78.75, -78.75, 8), np.arange(16) * 22.5
    truth = 280 - 40 * np.sin(np.deg2rad(lat[:, None])) ** 2 + 3 * np.cos(np.deg2rad(lon))
    prediction = truth + np.sin(np.deg2rad(2 * lon))
    fields = {"truth": truth, "prediction": prediction, "error": prediction - truth}
    return {
        "variable": variable,
        "units": units,
        "level": level,
        "title": f"map of {variable}",
        "lat": lat,
        "lon": lon,
        **fields,
    }


def test_maps_come_back_as_they_were_kept_in_order_and_by_participant(tmp_path: Path) -> None:
    kept = world_map(), world_map("ts", level=None), world_map("ua", "m/s")
    write_showcase(tmp_path, {"here": {"maps": [kept[0], kept[1]]}, "there": {"maps": [kept[2]]}})
    found = read_showcase(tmp_path)
    assert [(item.participant, item.variable, item.level) for item in found] == [
        ("here", "ta", 0.98),
        ("here", "ts", None),
        ("there", "ua", 0.98),
    ]
    for item, given in zip(found, kept, strict=True):
        for name in ("lat", "lon", "truth", "prediction", "error"):
            np.testing.assert_array_equal(getattr(item, name), given[name])


def test_a_task_without_maps_leaves_no_files(tmp_path: Path) -> None:
    write_showcase(tmp_path, {"kepler": {}, "tess": {"maps": []}})
    assert list(tmp_path.iterdir()) == [] and read_showcase(tmp_path) == ()


def test_the_same_maps_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_showcase(tmp_path / name, {"here": {"maps": [world_map()]}})
    assert (tmp_path / "a" / ARRAYS).read_bytes() == (tmp_path / "b" / ARRAYS).read_bytes()


def drop_arrays(run: Path) -> None:
    (run / ARRAYS).unlink()


def cut_arrays(run: Path) -> None:
    (run / ARRAYS).write_bytes((run / ARRAYS).read_bytes()[:100])


def garble_names(run: Path) -> None:
    (run / NAMES).write_text('{"maps": [{"participant": 3}]}')


def name_what_is_not_there(run: Path) -> None:
    (run / NAMES).write_text((run / NAMES).read_text().replace("map0", "map7"))


def pickle_arrays(run: Path) -> None:
    np.savez(run / ARRAYS, **{f"map0/{name}": np.array([print, None]) for name in ("lat", "lon")})  # type: ignore[arg-type]


def transpose(run: Path) -> None:
    item = world_map()
    write_showcase(run, {"here": {"maps": [item | {"truth": item["truth"].T}]}})


def blow_up(run: Path) -> None:
    item = world_map()
    write_showcase(run, {"here": {"maps": [item | {"error": item["error"] * np.inf}]}})


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "damage", [drop_arrays, cut_arrays, garble_names, name_what_is_not_there, pickle_arrays, transpose, blow_up]
)
def test_damage_is_named_and_nothing_is_unpickled(tmp_path: Path, damage: Any) -> None:
    write_showcase(tmp_path, {"here": {"maps": [world_map()]}})
    damage(tmp_path)
    with pytest.raises(ShowcaseDamaged, match="showcase"):
        read_showcase(tmp_path)
