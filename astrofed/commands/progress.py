"""What a run looks like in the terminal: who takes part, a line a round, and the table at the end."""

import signal
import threading
from collections.abc import Iterable, Mapping
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from astrofed.shared.plan import Plan
from astrofed.shared.record import Round, Start
from astrofed.simulations.result import RunResult


class Progress:
    """Prints a run's rounds as they are done. The first Ctrl-C ends the run after its round, the second at once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("the participants enrol …")
        self._rounds = 0
        self._stop = threading.Event()
        self._before: object = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        self._status.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._status.stop()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def started(self, plan: Plan, start: Start) -> None:
        """Show who takes part."""
        self._rounds = plan.rounds
        ours = plan.strategy.name in ("robust", "block-mean")
        rule = f" ({plan.strategy.rule or 'default rule'}, f = {plan.strategy.f or 0})" if ours else ""
        self._console.print(
            f"[bold]{escape(plan.name)}[/]: {plan.rounds} rounds of {escape(plan.strategy.name)}{escape(rule)}, "
            f"{escape(plan.model.name)} with {start.parameters:,} parameters, {plan.engine.name}, seed {plan.seed}"
        )
        table = Table("participant", "data", "training", "held out", "privacy unit", box=None, header_style="dim")
        for site in start.enrolled:
            training = f"{site.num_examples:,}" if site.role == "train" else "only evaluates"
            units = f"{site.num_units:,} × {site.unit}" if site.role == "train" else ""
            row = (site.participant, site.description, training, f"{site.num_eval_examples:,}", units)
            table.add_row(*(escape(cell) for cell in row))
        self._console.print(table)
        self._status.update("the initial model and the baselines are evaluated …")

    def round_done(self, entry: Round) -> None:
        """Show one round."""
        self._console.print(_line(entry, self._rounds))
        if entry.round < self._rounds and not self._stop.is_set():
            self._status.update(f"round {entry.round + 1} of {self._rounds} …")

    def said(self, line: str) -> None:
        """Show a line."""
        self._console.print(escape(line), highlight=False)
        self._status.update("the next candidate …")

    def should_stop(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._stop.is_set()

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._stop.set()
        self._status.update("stopping after this round; Ctrl-C again stops at once …")


def _line(entry: Round, rounds: int) -> str:
    parts = ["initial model" if entry.round == 0 else f"round {entry.round:>{len(str(rounds))}} of {rounds}"]
    if entry.loss is not None:
        parts.append(f"loss [bold]{entry.loss:.4f}[/]")
    if entry.round == 0:
        scores = _headlines(entry.metrics)
        parts += [f"{escape(name)} {value:.4f}" for name, value in scores.items()]
    elif entry.central_privacy is not None:
        parts.append(f"epsilon {entry.central_privacy.epsilon:.3g} for each participant")
    else:
        parts.append(f"{len(entry.accepted)} accepted")
    if entry.seconds is not None:
        parts.append(f"{entry.seconds:.1f} s")
    if entry.skipped is not None:
        parts.append(f"[yellow]skipped: {escape(entry.skipped)}[/]")
    for item in entry.quarantined:
        parts.append(f"[red]kept out: {escape(item.participant)}[/] [dim]({escape(_short(item.reason))})[/]")
    return "  ".join(parts)


def _headlines(metrics: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for key, value in metrics.items():
        kind, _, rest = key.partition("/")
        name, _, metric = rest.partition("/")
        if kind == "baseline" and metric == "loss":
            found[name] = value
    return found


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def show_result(console: Console, result: RunResult) -> None:
    """Print the table of a finished run, and where its report lies."""
    baselines = result.baselines
    names = [name for name in baselines if "/" not in name]
    console.print()
    table = Table("", "model", *names, box=None, header_style="bold")
    for metric in _main_metrics(result.metrics):
        values = [baselines.get(_baseline_key(metric, name)) for name in names]
        if metric.endswith("loss") or any(value is not None for value in values):
            table.add_row(metric, f"{result.metrics[metric]:.4g}", *(_cell(result.metrics[metric], v) for v in values))
    console.print(table)
    if result.physics:
        console.print()
        console.print(_physics_table(result))
    if result.privacy:
        console.print()
        table = Table("participant", "epsilon", "delta", "for each", box=None, header_style="bold")
        for spent in result.privacy:
            table.add_row(escape(spent.participant), f"{spent.epsilon:.3f}", f"{spent.delta:g}", escape(spent.unit))
        console.print(table)
    if result.central_privacy is not None:
        whole = result.central_privacy
        console.print(
            f"\nall models released: epsilon {whole.epsilon:.3f} at delta {whole.delta:g} "
            "for each participant as a whole"
        )
    console.print(f"\nreport: {result.report}\nmodel:  {result.model_path}", soft_wrap=True, markup=False)


def _physics_table(result: RunResult) -> Table:
    first = result.rounds[0].metrics
    table = Table("physics", "compliance", "of the data", "tolerance", box=None, header_style="bold")
    for name, score in result.physics.items():
        if isinstance(score, str):
            table.add_row(name, score, "", "")
        else:
            data = first.get(f"baseline/data/physics/{name}/compliance")
            own = "" if data is None else f"{data:.1%}"
            table.add_row(name, f"{score['compliance']:.1%}", own, f"{score['tolerance']:g}")
    return table


def _main_metrics(metrics: Mapping[str, float]) -> Iterable[str]:
    """Headline first; no single levels, no physics (it has a table of its own)."""
    for prefix in ("", "unseen/"):
        own = [key.removeprefix(prefix) for key in metrics if key.startswith(prefix)]
        yield from (
            prefix + key
            for key in own
            if key in ("loss", "unadapted/loss", "adapted/loss") or (key.startswith("rmse/") and key.count("/") == 1)
        )


def _baseline_key(metric: str, name: str) -> str:
    prefix, rest = ("unseen/", metric.removeprefix("unseen/")) if metric.startswith("unseen/") else ("", metric)
    return f"{prefix}{name}" if rest == "loss" else f"{prefix}{name}/{rest}"


def _cell(own: float, value: float | None) -> str:
    if value is None:
        return ""
    if value == 0:
        return f"{value:.4g}"
    change = own / value - 1
    return f"{value:.4g} [{'green' if change < 0 else 'red'}]({change:+.0%})[/]"
