"""What pydantic found wrong, in a user's words: the key with its path, the value, and what would be accepted."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def explain(
    error: ValidationError, model: type[BaseModel], where: str = "", owner: str = "", also: Iterable[str] = ()
) -> str:
    """Say in one line what is wrong: every key with its path, the value, and what would be accepted.

    `also` are keys that are valid beside the model's own at its top level.
    """
    return "; ".join(_problem(problem, model, where, owner, also) for problem in error.errors(include_url=False))


def _problem(problem: ErrorDetails, model: type[BaseModel], where: str, owner: str, also: Iterable[str]) -> str:
    location, kind, given = problem["loc"], problem["type"], problem["input"]
    key = ".".join(str(part) for part in (where, *location) if part != "") or "plan"
    if kind == "extra_forbidden":
        valid = [*_keys_at(model, location[:-1]), *(also if len(location) == 1 else ())]
        return f"{key}: unknown key{owner}; {_hint(str(location[-1]), valid)}"
    if kind == "missing":
        near = difflib.get_close_matches(str(location[-1]), _unknown_in(given), n=1, cutoff=0.5)
        return f"{key}: required, but missing" + (f"; is {near[0]!r} meant for it?" if near else "")
    if kind in ("model_type", "dict_type"):
        return f"{key}: expected a table of keys (given: {given!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" + (f" (given: {given!r})" if isinstance(given, str | int | float | list | tuple) else "")


def _hint(word: str, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid) or 'none'}"


def _unknown_in(given: Any) -> list[str]:
    """The keys of a plug-in's table that went to its options: one of them may be a misspelt `name`."""
    options = given.get("options") if isinstance(given, dict) else None
    return list(options) if isinstance(options, dict) else []


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    section: Any = model
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if argument is not Ellipsis and (found := _section_of(argument)) is not None:
            return found
    return None
