"""Functions compiled for the machine, without the interpreter's lock, and kept on disk where that can be written."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def compiled(function: FunctionT, taken_over: str = "", **options: Any) -> FunctionT:
    """Compile a function for numba's types; `options` are numba's.

    `taken_over`: a hash of what is compiled into it from other files, since numba looks at the function's file alone.
    """
    try:
        made = numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return cast(FunctionT, numba.njit(nogil=True, **options)(function))
    index: Any = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if hasattr(index, "_source_stamp"):
        index._source_stamp = (index._source_stamp, taken_over)
    return cast(FunctionT, made)
