"""`astrofed client`: a site's own commands; what its policy allows and what its privacy ledger says."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from astrofed.commands import site
from astrofed.commands.output import console, only_json, print_json
from astrofed.commands.policy import check, show_policy
from astrofed.commands.run import Json

if TYPE_CHECKING:
    from rich.table import Table

    from astrofed.client.privacy.ledger import Ledger
    from astrofed.client.privacy.ledger_plans import Planned
    from astrofed.client.privacy.ledger_report import DatasetSpent

app = typer.Typer(help="What a site does on its own machine.", no_args_is_help=True)
Home = Annotated[Path | None, typer.Argument(help="The site's home folder, by default $ASTROFED_HOME, or here.")]
Seals = Annotated[
    Path | None, typer.Option("--seals", metavar="DIR", help="Where head and key of the ledger are kept, if not there.")
]
WhatIf = Annotated[
    Path | None,
    typer.Option("--what-if", metavar="PLAN", help="Say what a run of this plan would cost; spends nothing."),
]
Accept = Annotated[
    bool,
    typer.Option("--accept", help="Go on with a ledger that is in doubt, as it lies there; this is written into it."),
]


app.command(
    "check", epilog="Example: astrofed client check configs/observatories.toml --site Kepler --policy policy.toml"
)(check)
app.command("policy", epilog="Example: astrofed client policy policy.toml --new")(show_policy)


@app.callback()
def _group() -> None:
    """What a site does on its own machine."""


_example = "Example: astrofed client"
app.command(epilog=f"{_example} init home --name kepler --contact ops@example.org --data kepler=/data/k.parquet")(
    site.init
)
app.command(epilog=f"{_example} join welcome.json home")(site.join)
app.command("noise-key", epilog=f"{_example} noise-key home >> other-home/policy.toml")(site.show_noise_key)
app.command(epilog=f"{_example} start home")(site.start)


@app.command(
    epilog="Example: astrofed client ledger runs/observatories/sites/Kepler --what-if configs/observatories.toml"
)
def ledger(
    path: Home = None, seals: Seals = None, what_if: WhatIf = None, accept: Accept = False, as_json: Json = False
) -> None:
    """Check a site's privacy ledger, and show what was spent on each dataset and what is left.

    PATH is the site's home folder; by default the one that the variable ASTROFED_HOME names, or else this folder.
    """
    home = _home(path or Path(os.environ.get("ASTROFED_HOME") or "."), seals)
    with only_json(as_json):
        from dataclasses import asdict

        from astrofed.client.privacy.ledger import Ledger
        from astrofed.client.privacy.ledger_report import spent_on_datasets

        found = Ledger(home, seals)
        doubt = found.accept() if accept else None
        book = found.book()
        spent = spent_on_datasets(book)
        costs = _costs(found, what_if) if what_if is not None else []
    accepted = [{"row": row.id, "time": row.time, "doubt": row.note} for row in book.accepted]
    if as_json:
        whole = {"ledger": str(home), "rows": book.last, "public_key": found.public_key, "accepted": accepted}
        print_json(
            {**whole, "datasets": [asdict(each) for each in spent], "what_if": [cost_json(each) for each in costs]}
        )
        return
    screen = console()

    def say(text: str) -> None:
        screen.print(text, markup=False, soft_wrap=True)

    if accept and doubt is None:
        say("nothing was in doubt")
    say(f"{home}: rows up to {book.last}, chained and signed with the key {found.public_key[:16]}…")
    for row in accepted:
        say(f"in doubt and accepted by the operator at {row['time']}: {row['doubt']}")
    for each in spent:
        budget = "no budget" if each.budget is None else f"of {each.budget:g}, {each.left:.4g} left"
        say(
            f"\ndataset {each.dataset[:12]}…, {each.units:,} × {each.unit}: "
            f"epsilon {each.epsilon:.4g} at delta {each.delta:g}, {budget}"
        )
        screen.print(_runs_table(each))
    for cost in costs:
        say(f"\nwhat if {cost.participant} trained by this plan: {cost_in_words(cost)}")


def _home(path: Path, seals: Path | None) -> Path:
    """Return the folder of a ledger that is given as such, or as its file.

    Raises:
        NoLedger: there is none, nor a trace of one.
    """
    from astrofed.client.privacy.ledger import FILE
    from astrofed.client.privacy.ledger_seal import HEAD, KEY
    from astrofed.client.privacy.mistakes import NoLedger

    home = path.parent if path.name == FILE else path
    if (home / FILE).exists() or any(((seals or home) / name).exists() for name in (HEAD, KEY)):
        return home
    below = sorted(str(each.parent) for each in (home / "sites").glob(f"*/{FILE}"))
    hint = f"did you mean {' or '.join(below)}?" if below else "give a site's home folder, which a private run makes"
    raise NoLedger(f"there is no privacy ledger in {home}; {hint}")


def _costs(found: "Ledger", path: Path) -> "list[Planned]":
    """Return what the plan would cost each of its training participants whose data lie on this machine."""
    from astrofed.client.privacy.ledger_plans import planned
    from astrofed.shared.plan import load_plan
    from astrofed.simulations.sites import open_simulated_site

    plan = load_plan(path)
    sites = [open_simulated_site(plan, number, None) for number in range(len(plan.participants))]
    training = [site for site in sites if site.role == "train"]
    return planned(plan, [site for site in training if site.data.exists()] or training[:1], found)


def cost_in_words(cost: "Planned") -> str:
    """Say what a plan would cost a participant."""
    found = cost.forecast
    if found is None:
        return f"refused; {cost.refused}"
    left = "no budget" if found.left is None else f"{found.left:.4g} left of {found.budget:g}"
    return (
        f"epsilon from {found.epsilon_before:.4g} to {found.epsilon_after:.4g} at delta {found.delta:g}, with "
        f"{found.event.steps:,} steps at noise multiplier {found.event.noise_multiplier:.4g}; {left}"
    )


def cost_json(cost: "Planned") -> dict[str, Any]:
    """Return the same as plain data."""
    found = cost.forecast
    return {
        "participant": cost.participant,
        "dataset": cost.dataset,
        "refused": cost.refused,
        "steps": found and found.event.steps,
        "sample_rate": found and found.event.sample_rate,
        "noise_multiplier": found and found.event.noise_multiplier,
        "delta": found and found.delta,
        "epsilon_before": found and found.epsilon_before,
        "epsilon_after": found and found.epsilon_after,
        "budget": found and found.budget,
        "left": found and found.left,
    }


def _runs_table(spent: "DatasetSpent") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "mode", "rounds", "unsettled", "steps", "noise multiplier", box=None, header_style="bold")
    for run in spent.runs:
        noise = f"{run.noise_multipliers[0]:.4g}"
        noise += f" to {run.noise_multipliers[-1]:.4g}" if len(run.noise_multipliers) > 1 else ""
        counts = (str(run.reservations), str(run.open), f"{run.steps:,}")
        table.add_row(escape(run.run or "restored when accepted"), run.mode, *counts, noise)
    return table
