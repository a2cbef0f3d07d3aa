"""Files in TOML that people edit: a mistake in one is an error that names the file, the key and the mend."""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from astrofed.shared.errors import UserMistake
from astrofed.shared.explain import explain

ModelT = TypeVar("ModelT", bound=BaseModel)


def read_toml(path: Path, mistake: type[UserMistake], missing: UserMistake, what: str = "") -> dict[str, Any]:
    """Return what a file holds; `what` names its kind in errors.

    Raises:
        UserMistake: `missing` if there is no such file, a `mistake` if it can't be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise missing from None
    except (OSError, UnicodeDecodeError) as error:
        raise mistake(f"{what}{path} can't be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise mistake(f"{what}{path} is not valid TOML: {error}") from None


def as_model(kind: type[ModelT], data: object, mistake: type[UserMistake], where: object) -> ModelT:
    """Return plain data as a model; `where` says in errors what they come from.

    Raises:
        UserMistake: a `mistake` that names each key that is wrong.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise mistake(f"{where}: " + explain(error, kind)) from None
