"""`astrofed simulate` and `astrofed train`: run a plan on this machine and show what it came to."""

from collections.abc import Callable
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astrofed.commands.output import console, only_json, print_json

if TYPE_CHECKING:
    from astrofed.shared.plan import Plan


class Engine(StrEnum):
    """Where messages travel."""

    embedded = "embedded"
    ray = "ray"


PlanFile = Annotated[Path, typer.Argument(help="The plan, a TOML file.", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the plan; may be repeated.")
]
PluginFile = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Python file with plug-ins; may be repeated.")
]
EngineName = Annotated[Engine | None, typer.Option("--engine", help="Override the plan's engine.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The run's folder; by default a new one in runs/.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, or the newest of this plan's name.")
]
Device = Annotated[
    str, typer.Option("--device", help="Where all participants compute, such as cuda:0; embedded engine only.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]


def simulate(
    plan: PlanFile,
    overrides: Set = None,
    plugin: PluginFile = None,
    engine: EngineName = None,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run a whole federation on this machine, any mode, and write its record and report."""
    given = _overrides(overrides, engine)
    _run(plan, given, plugin, out, resume=resume, device=device, as_json=as_json, chosen=lambda loaded: loaded)


def train(
    plan: Annotated[
        Path | None,
        typer.Argument(help="The plan; by default the mode's own, of ./configs or as shipped.", show_default=False),
    ] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="Override the plan's mode.")] = None,
    participants: Annotated[
        int | None,
        typer.Option(
            "--participants", min=1, help="How many of the plan's training sites; by default one, with --mode all."
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Override the plan's rounds.")] = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, help="Mode meta: each site's episodes in the whole run.")
    ] = None,
    support_shots: Annotated[
        int | None, typer.Option("--support-shots", min=1, help="Mode meta: samples that a task is adapted to.")
    ] = None,
    search_epochs: Annotated[
        int | None,
        typer.Option("--search-epochs", min=1, help="Mode nas: the most rounds that all candidates may take together."),
    ] = None,
    overrides: Set = None,
    plugin: PluginFile = None,
    engine: EngineName = None,
    out: Out = None,
    resume: Resume = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train with the plan's first participant alone (centralised), or in another mode with all of them.

    A plan that has a mode of its own, such as meta, keeps it.
    """
    keys = {
        "rounds": rounds,
        "meta.episodes": episodes,
        "meta.support_shots": support_shots,
        "search.rounds": search_epochs,
    }
    given = _overrides(overrides, engine)
    given += [f"{key}={value}" for key, value in keys.items() if value is not None]
    given += [f'mode="{mode}"'] if mode not in (None, "single") else []

    def chosen(loaded: "Plan") -> "Plan":
        from astrofed.simulations.simulate import single, with_trainers

        plain = mode == "single" or (mode is None and loaded.mode in ("single", "federated"))
        if plain and participants in (None, 1):
            return single(loaded)
        return loaded if participants is None else with_trainers(loaded, participants)

    _run(
        plan or _usual(mode, as_json=as_json),
        given,
        plugin,
        out,
        resume=resume,
        device=device,
        as_json=as_json,
        chosen=chosen,
    )


def _usual(mode: str | None, *, as_json: bool) -> Path:
    """Return the plan that shows a mode: from ./configs, as in a checkout, else the one that ships; says which."""
    from astrofed.shared.plan import PlanError

    name = f"{'quickstart' if mode in (None, 'single', 'federated') else mode}.toml"
    here, shipped = Path("configs") / name, Path(str(files("astrofed.configs"))) / name
    found = here if here.is_file() else shipped
    if not found.is_file():
        ship = ", ".join(sorted(plan.stem for plan in shipped.parent.glob("*.toml")))
        raise PlanError(
            f"no plan was given, and there is no {here} here; these ship with astrofed: {ship}; or give a plan's path"
        )
    console(as_json=as_json).print(f"plan: {found}", style="dim", soft_wrap=True)
    return found


def _overrides(overrides: list[str] | None, engine: Engine | None) -> list[str]:
    return [*(overrides or []), *([f"engine.name={engine.value}"] if engine is not None else [])]


def _run(
    plan: Path,
    overrides: list[str],
    plugins: list[Path] | None,
    out: Path | None,
    *,
    resume: bool,
    device: str,
    as_json: bool,
    chosen: "Callable[[Plan], Plan]",
) -> None:
    screen = console(as_json=as_json)
    from astrofed.shared.plan import load_plan

    loaded = load_plan(plan, overrides)  # before what is slow to load: a mistake in the plan is answered at once
    with only_json(as_json), screen.status("loading …"):
        from astrofed.commands.progress import Progress, show_result
        from astrofed.simulations.simulate import simulate as run_plan

    loaded = chosen(loaded)
    with only_json(as_json), Progress(screen) as progress:
        result = run_plan(loaded, out=out, resume=resume, plugins=plugins or [], observer=progress, device=device)
    if as_json:
        print_json(result.to_dict())
    else:
        show_result(screen, result)
