"""The plug-in registry: names in a plan become classes, through entry points or files given on the command line.

What ships is registered the same way as what a user adds (packaging entry points, groups `astrofed.<kind>`). A plan
holds names only: never code, never import paths. A file given by `--plugin` is imported once; every class in it that
derives from a kind's base class is registered under its own name, or under the name it was decorated with.
"""

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from astrofed.shared.errors import UserMistake

Kind = Literal["tasks", "models", "strategies", "rules", "attacks"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_BASES: dict[Kind, str] = {
    "tasks": "astrofed.client.task:Task",
    "models": "astrofed.shared.models.base:Model",
    "strategies": "flwr.serverapp.strategy:Strategy",
    "rules": "astrofed.server.aggregation.base:Rule",
    "attacks": "astrofed.simulations.attack:Attack",
}
T = TypeVar("T", bound=type)


class UnknownPlugin(UserMistake):
    """A plan names a plug-in that is not registered."""


class BadPluginFile(UserMistake):
    """A file given by --plugin can't be imported or holds no plug-in."""


class BrokenPlugin(UserMistake):
    """An installed package registers a plug-in that can't be loaded."""


@dataclass(frozen=True)
class Plugin:
    """One registered class: its kind, its name in plans, where it comes from, and how to load it."""

    kind: Kind
    name: str
    origin: str
    load: Callable[[], type]

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.load()) or "no description").splitlines()[0]


_added: dict[Kind, dict[str, Plugin]] = {kind: {} for kind in KINDS}


def normalise(name: str) -> str:
    """Names match without regard to case, hyphens, underscores and blanks: Multi-Krum is multi_krum is MultiKrum."""
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def _load_object(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


@cache
def _installed(kind: Kind) -> dict[str, Plugin]:
    found = {}
    for point in entry_points(group=f"astrofed.{kind}"):
        origin = point.dist.name if point.dist else "installed package"
        found[normalise(point.name)] = Plugin(kind, point.name, f"{origin} ({point.value})", _loader(point, origin))
    return found


def _loader(point: EntryPoint, origin: str) -> Callable[[], type]:
    def load() -> type:
        try:
            cls: type = point.load()
        except Exception as error:
            raise BrokenPlugin(
                f"plug-in {point.name!r} of {origin} can't be loaded: {type(error).__name__}: {error}; "
                "mend or uninstall the package that registers it"
            ) from error
        return cls

    return load


def plugins(kind: Kind) -> list[Plugin]:
    """Return every plug-in of a kind, sorted by name; a file's plug-in hides an installed one of its name."""
    return sorted({**_installed(kind), **_added[kind]}.values(), key=lambda plugin: plugin.name.lower())


def find(kind: Kind, name: str) -> Plugin:
    """Return the plug-in of that name (see `normalise`), or under its full dotted class name.

    Raises:
        UnknownPlugin: no plug-in has that name; the message says the nearest ones.
    """
    known = {**_installed(kind), **_added[kind]}
    plugin = known.get(normalise(name))
    if plugin is None:
        plugin = next((p for p in known.values() if p.origin.replace(":", ".").endswith(f" ({name})")), None)
    if plugin is None:
        near = difflib.get_close_matches(normalise(name), known, n=3, cutoff=0.5)
        names = [known[key].name for key in near] or [p.name for p in plugins(kind)]
        raise UnknownPlugin(
            f"no {kind} plug-in is named {name!r}; {'nearest' if near else 'known'}: {', '.join(names)}. "
            f"`astrofed plugins` lists all; --plugin FILE adds yours."
        )
    return plugin


def get(kind: Kind, name: str) -> type[Any]:
    """Return the class registered under that name (errors as `find`, and BrokenPlugin)."""
    return find(kind, name).load()


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """Return a class decorator that registers a plug-in under `name`, for files given by --plugin and for notebooks."""

    def add(cls: T) -> T:
        _added[kind][normalise(name)] = Plugin(kind, name, inspect.getsourcefile(cls) or cls.__module__, lambda: cls)
        return cls

    return add


def load_plugin_file(path: Path) -> list[Plugin]:
    """Import a Python file and register the plug-ins it defines; a file already imported is not imported again.

    Raises:
        BadPluginFile: the file is missing, fails to import, or defines no class of any plug-in kind; nothing of it
            stays registered.
    """
    path = path.resolve()
    module_name = f"astrofed_plugin_{path.stem}_{abs(hash(str(path))):x}"
    if module_name not in sys.modules:
        before = {kind: dict(known) for kind, known in _added.items()}
        try:
            _import_file(path, module_name)
            _register_module(path, module_name)
        except BadPluginFile:
            sys.modules.pop(module_name, None)
            _added.update(before)
            raise
    return _plugins_of(module_name)


def _plugins_of(module_name: str) -> list[Plugin]:
    return [p for kind in KINDS for p in _added[kind].values() if p.load().__module__ == module_name]


def _import_file(path: Path, module_name: str) -> None:
    if not path.is_file():
        raise BadPluginFile(f"plug-in file {path} does not exist; give the path of a Python file")
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise BadPluginFile(f"plug-in file {path} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise BadPluginFile(f"plug-in file {path} fails to import: {type(error).__name__}: {error}") from error


def _register_module(path: Path, module_name: str) -> None:
    """Register under its own name every class of a module that derives from a kind's base and has no name yet."""
    values = vars(sys.modules[module_name]).values()
    classes = [value for value in values if inspect.isclass(value) and value.__module__ == module_name]
    named = {plugin.load() for plugin in _plugins_of(module_name)}
    unfinished = []
    for kind in KINDS:
        base = _load_object(_BASES[kind])
        for cls in classes:
            if not issubclass(cls, base) or cls in named:
                continue
            if inspect.isabstract(cls):
                unfinished.append(f"{cls.__name__} lacks {', '.join(sorted(vars(cls)['__abstractmethods__']))}")
            else:
                register(kind, cls.__name__)(cls)
    if not _plugins_of(module_name):
        raise BadPluginFile(
            f"plug-in file {path} defines no plug-in: expected a class derived from one of {', '.join(_BASES.values())}"
            + (f"; {'; '.join(unfinished)}" if unfinished else "")
        )
