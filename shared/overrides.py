"""Overrides of a plan's keys on the command line: `--set strategy.f=1`, `--set participants.continents.attack=`."""

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from astrofed.shared.errors import UserMistake


class BadOverride(UserMistake):
    """An override on the command line that can't be applied."""


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set, or with an empty value remove, what an override's dotted key names in a plan's plain data.

    Tables on the way are made where they are absent. A part goes by name or number where it leads into a list, and may
    stand in double quotes if it holds dots.

    Raises:
        BadOverride: the text is not key=value, or the key leads nowhere.
    """
    key, equals, text = (part.strip() for part in override.partition("="))
    path = _parts(key)
    if not equals or not path:
        raise BadOverride(f"--set {override!r}: expected key=value, such as --set rounds=3 or --set strategy.f=1")
    target: Any = data
    for part in path[:-1]:
        target = _child(target, part, key, create=bool(text))
    last: Any = _index(target, path[-1], key) if isinstance(target, list) else path[-1]
    if text:
        target[last] = _value(text)
    elif isinstance(target, list) or last in target:
        del target[last]
    else:
        raise BadOverride(f"--set {key}=: there is no {last!r} to remove; there are: {', '.join(target) or 'no keys'}")


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """Set what a dotted key names to a value as it is; tables on the way are made (BadOverride: it leads nowhere)."""
    *way, last = _parts(key)
    target: Any = data
    for part in way:
        target = _child(target, part, key, create=True)
    target[last] = value


def get_key(data: Mapping[str, Any], key: str) -> Any:
    """Return what a dotted key names (BadOverride: it leads nowhere)."""
    target: Any = data
    for part in _parts(key):
        if not isinstance(target, Mapping) or part not in target:
            raise BadOverride(f"{key}: there is no {part!r}")
        target = target[part]
    return target


def _parts(key: str) -> list[str]:
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|([^."]+)', key)]


def _value(text: str) -> Any:
    """A TOML value as plain data, or the text itself where it is none: --set strategy=krum needs no quotes."""
    try:
        return json.loads(json.dumps(tomllib.loads(f"value = {text}")["value"], default=str))
    except tomllib.TOMLDecodeError:
        return text


def _child(target: Any, part: str, key: str, *, create: bool) -> Any:
    """Return what lies under one part of an override's key; a table that is not there yet is made."""
    place: Any = _index(target, part, key) if isinstance(target, list) else part
    if isinstance(target, dict) and create:
        target.setdefault(part, {})
    child = target[place] if isinstance(target, list) else target.get(place)
    if isinstance(child, str):  # strategy = "krum" is short for strategy.name = "krum"
        child = target[place] = {"name": child}
    if not isinstance(child, dict | list):
        raise BadOverride(f"--set {key}: {part!r} holds {child!r}, which has no keys below it")
    return child


def _index(items: list[Any], part: str, key: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else item for item in items]
    if part in names:
        return names.index(part)
    if re.fullmatch(r"\d+", part) and int(part) < len(items):
        return int(part)
    known = ", ".join(str(name) for name in names if name is not None)
    raise BadOverride(f"--set {key}: no item {part!r}; give one of: {known}; or its number, 0 to {len(items) - 1}")
