"""The registry: all that ships loads, a user's file is taken over whole or not at all, mistakes name the mend."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from flwr.serverapp.strategy import FedAvg, FedMedian

from astrofed.client.task import Task
from astrofed.shared import registry
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.datacube_net import DatacubeNet
from astrofed.shared.registry import KINDS, BadPluginFile, BrokenPlugin, Kind, UnknownPlugin

STRATEGY = """
from flwr.serverapp.strategy import FedAvg

class Mine(FedAvg):
    '''Averages as I like it.'''
"""


@pytest.fixture(autouse=True)
def _unchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_added", {kind: dict(known) for kind, known in registry._added.items()})
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


def plugin_file(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_ships_loads_and_says_what_it_is(kind: Kind) -> None:
    """An entry point whose class was renamed would only fail at the user's."""
    found = [plugin for plugin in registry.plugins(kind) if "(astrofed." in plugin.origin or "(flwr." in plugin.origin]
    base = registry._load_object(registry._BASES[kind])
    assert found
    for plugin in found:
        assert issubclass(plugin.load(), base)
        assert plugin.summary and plugin.origin.startswith("astrofed (")
    assert [plugin.name for plugin in found] == sorted((plugin.name for plugin in found), key=str.lower)


@pytest.mark.parametrize("name", ["datacube-net", "datacube_net", "DatacubeNet", "DATACUBE NET"])
def test_names_match_however_they_are_spelt(name: str) -> None:
    assert registry.get("models", name) is DatacubeNet


def test_a_class_goes_by_its_full_dotted_name_too() -> None:
    assert registry.get("strategies", "flwr.serverapp.strategy.FedMedian") is FedMedian


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownPlugin, match=r"'fedmedain'; nearest: FedMedian.*--plugin FILE") as caught:
        registry.get("strategies", "fedmedain")
    assert isinstance(caught.value, UserMistake)
    with pytest.raises(UnknownPlugin, match=r"'zzzz'; known: .*datacube"):
        registry.get("tasks", "zzzz")


def test_a_user_s_file_registers_its_classes(tmp_path: Path) -> None:
    path = plugin_file(tmp_path, STRATEGY)
    (plugin,) = registry.load_plugin_file(path)
    assert (plugin.kind, plugin.name, plugin.origin) == ("strategies", "Mine", str(path))
    assert plugin.summary == "Averages as I like it."
    cls = registry.get("strategies", "mine")
    assert issubclass(cls, FedAvg)
    registry.load_plugin_file(path)
    assert registry.get("strategies", "mine") is cls, "a second --plugin of the same file must not import it anew"


def test_a_decorated_class_has_the_name_it_was_given(tmp_path: Path) -> None:
    text = STRATEGY.replace("class Mine", "@register('strategies', 'my-own')\nclass Mine")
    found = registry.load_plugin_file(plugin_file(tmp_path, f"from astrofed.shared.registry import register\n{text}"))
    assert [plugin.name for plugin in found] == ["my-own"]


def test_a_file_s_plugin_hides_an_installed_one_of_its_name(tmp_path: Path) -> None:
    registry.load_plugin_file(plugin_file(tmp_path, STRATEGY.replace("Mine", "FedMedian"), "hides.py"))
    assert registry.get("strategies", "FedMedian") is not FedMedian
    assert [plugin.name for plugin in registry.plugins("strategies")].count("FedMedian") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", "fails to import: SyntaxError"),
        ("import no_such_module\n", "fails to import: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('bye')\n", "fails to import: SystemExit: bye"),
        ("x = 1\n", "defines no plug-in: expected a class derived from one of astrofed.client.task:Task"),
        ("from flwr.serverapp.strategy import FedAvg\n", "defines no plug-in"),
        (
            "from astrofed.client.task import Task\nclass Half(Task):\n    def summary(self): ...\n",
            "Half lacks evaluate, train",
        ),
    ],
)
def test_a_file_that_is_no_plugin_says_why(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadPluginFile, match=words):
        registry.load_plugin_file(plugin_file(tmp_path, text))


def test_nothing_stays_of_a_file_that_fails(tmp_path: Path) -> None:
    """A class registered before the error would be used although its file was refused."""
    text = (
        STRATEGY.replace("class Mine", "@register('strategies', 'half')\nclass Mine") + "\nraise ValueError('late')\n"
    )
    path = plugin_file(tmp_path, f"from astrofed.shared.registry import register\n{text}")
    with pytest.raises(BadPluginFile, match="ValueError: late"):
        registry.load_plugin_file(path)
    with pytest.raises(UnknownPlugin):
        registry.get("strategies", "half")
    path.write_text(STRATEGY)
    assert registry.load_plugin_file(path)[0].name == "Mine", "mended, it must load in the same session"


def test_a_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadPluginFile, match=r"nothing\.py does not exist"):
        registry.load_plugin_file(tmp_path / "nothing.py")
    with pytest.raises(BadPluginFile, match=r"must end in \.py"):
        registry.load_plugin_file(plugin_file(tmp_path, "", "notes.txt"))


def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One broken package must be named, and must not hide what else there is."""
    point = EntryPoint("bad", "no_such_package.tasks:Bad", "astrofed.tasks")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(BrokenPlugin, match="'bad' of installed package can't be loaded: ModuleNotFoundError"):
        registry.get("tasks", "bad")


def test_a_notebook_s_class_can_be_registered() -> None:
    @registry.register("tasks", "notebook task")
    class Mine(Task):
        """Mine."""

    assert registry.get("tasks", "Notebook_Task") is Mine
