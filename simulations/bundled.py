"""The datasets that ship with the package, by name: "bundled:worlds/w1_continents", "bundled:planets/kepler"."""

import difflib
from importlib.resources import files
from pathlib import Path

from astrofed.shared.errors import UserMistake

PREFIX = "bundled:"
_SUFFIXES = {"worlds": ".zarr"} | dict.fromkeys(("histories", "planets", "spectra", "transits"), ".parquet")


class UnknownBundledDataset(UserMistake):
    """No dataset of that name ships with the package."""


def bundled_names() -> list[str]:
    """Return the name of every dataset that ships, sorted, each with its prefix: "bundled:planets/k2" …"""
    root = _root()
    return [
        f"{PREFIX}{kind}/{path.stem}"
        for kind, suffix in sorted(_SUFFIXES.items())
        for path in sorted((root / kind).glob(f"*{suffix}"))
    ]


def resolve_bundled(name: str) -> Path:
    """Return the path of a shipped dataset; the prefix "bundled:" may be left out.

    Raises:
        UnknownBundledDataset: none has that name; the message says the nearest.
    """
    full = name if name.startswith(PREFIX) else PREFIX + name
    names = bundled_names()
    if full not in names:
        near = difflib.get_close_matches(full, names, n=3, cutoff=0.6)
        raise UnknownBundledDataset(
            f"no dataset {name!r} ships with astrofed; {'nearest' if near else 'there are'}: {', '.join(near or names)}"
        )
    kind, _, stem = full.removeprefix(PREFIX).partition("/")
    return _root() / kind / f"{stem}{_SUFFIXES[kind]}"


def _root() -> Path:
    return Path(str(files("astrofed.simulations"))) / "data"
