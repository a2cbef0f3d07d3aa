"""`astrofed export`: a run's model for other programs, checked before it is written."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astrofed.commands.output import console, only_json, print_json
from astrofed.commands.record import Run
from astrofed.commands.run import Json, PluginFile

if TYPE_CHECKING:
    from astrofed.shared.models.exporting import Exported


def export(
    run: Run,
    onnx: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="The ONNX file to write.", show_default=False)],
    provider: Annotated[
        str | None,
        typer.Option("--provider", help="What checks the file: cpu, cuda or tensorrt; by default the fastest here."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads for onnxruntime.")] = None,
    plugin: PluginFile = None,
    as_json: Json = False,
) -> None:
    """Write a run's model as ONNX; it appears only if onnxruntime gives the same numbers as torch."""
    screen = console(as_json=as_json)
    with only_json(as_json), screen.status("exporting …"):
        from astrofed.shared.registry import load_plugin_file
        from astrofed.simulations.export import export_run

        for file in plugin or []:
            load_plugin_file(file)
        done = export_run(run, onnx, provider=provider, threads=threads)
    if as_json:
        print_json(done.to_dict())
    else:
        _show(done)


def _show(done: "Exported") -> None:
    from astrofed.shared.models.exporting import TOLERANCE

    screen = console()
    worst = max(check.deviation for check in done.checks)
    head = f"{done.path}: {done.size / 1e6:.1f} MB, opset {done.opset}"
    screen.print(head, markup=False, soft_wrap=True)
    screen.print(
        f"same numbers as torch on {len(done.checks)} sets of sizes by onnxruntime ({done.provider}): largest "
        f"deviation {worst:.1e} of the output's root mean square, {TOLERANCE[done.provider]:g} allowed",
        markup=False,
    )
    for check in done.checks:
        sizes = ", ".join(f"{name} {size}" for name, size in check.sizes.items())
        threads = f"{done.threads} thread{'s' if done.threads > 1 else ''}"
        screen.print(f"  {1e3 * check.seconds:8.1f} ms  {sizes} ({threads})", markup=False)
    if "TensorrtExecutionProvider" not in done.available:
        screen.print("TensorRT is not installed here; where it is, --provider tensorrt checks and times the file")
