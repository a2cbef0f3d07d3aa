"""`astrofed client check` and `astrofed client policy`: what a site allows, and what it would say to a plan."""

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from astrofed.commands.output import console, only_json, print_json
from astrofed.commands.run import Json, PluginFile, Set

if TYPE_CHECKING:
    from astrofed.client.check import Examination
    from astrofed.client.service.inspection import Finding
    from astrofed.client.site import Site
    from astrofed.shared.plan import Plan

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The site's home folder, by default $ASTROFED_HOME.")
]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="The site's policy, by default policy.toml in its home.")
]
SiteOption = Annotated[
    str | None, typer.Option("--site", metavar="NAME", help="Which participant of the plan this site is.")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="PATH", help="The site's dataset, by default the plan's for it.")
]
New = Annotated[bool, typer.Option("--new", help="Write a careful policy to edit; never over one that is there.")]
PolicyFile = Annotated[
    Path | None, typer.Argument(help="The policy, by default policy.toml in $ASTROFED_HOME or here.")
]


OptionalPlan = Annotated[
    Path | None, typer.Argument(metavar="[PLAN.toml]", help="A plan; without one, only the home is looked at.")
]


def check(
    plan: OptionalPlan = None,
    home: HomeOption = None,
    policy: PolicyOption = None,
    site: SiteOption = None,
    data: DataOption = None,
    overrides: Set = None,
    plugin: PluginFile = None,
    as_json: Json = False,
) -> None:
    """Say whether a home is ready to start, each line ok or the mend; and whether the site would take part in a plan.

    Looked at is all that `astrofed client start` would use: site.toml, key, welcome, policy, data and ledger. Of a plan
    is said what it asks, what is refused, what it would cost. Nothing is spent, sent or written. Exit code 2 where
    something has to be mended, or where the site would refuse.
    """
    from dataclasses import asdict

    from astrofed.client.check import examine
    from astrofed.client.service.home import SITE_FILE
    from astrofed.client.service.inspection import inspect_home
    from astrofed.commands.client import cost_in_words, cost_json
    from astrofed.shared import registry
    from astrofed.shared.plan import load_plan

    folder = home or Path(os.environ.get("ASTROFED_HOME") or ".")
    with only_json(as_json):
        for file in plugin or []:
            registry.load_plugin_file(file)
        of_home = inspect_home(folder) if plan is None or (folder / SITE_FILE).exists() else []
        amiss = [each for each in of_home if not each.ok]
        found = None
        if plan is not None:
            loaded = load_plan(plan, overrides or [])
            if site is None and data is None and of_home:  # a plan for real sites names datasets, not paths
                loaded = load_plan(tomllib.loads(plan.read_text(encoding="utf-8")), overrides or [])
            found = examine(loaded, _site(loaded, folder, policy, site, data))
    if as_json:
        told: dict[str, Any] = {"home": [asdict(each) for each in of_home], "ready": not amiss if of_home else None}
        if found is not None:
            cost = None if found.cost is None else cost_json(found.cost)
            told |= {**asdict(found), "cost": cost, "takes_part": not found.refused}
        print_json(told)
    else:
        _show_home(of_home)
        if found is not None:
            _show(found, None if found.cost is None or found.refused else cost_in_words(found.cost))
    if amiss or (found is not None and found.refused):
        raise typer.Exit(2)


def _show_home(findings: "list[Finding]") -> None:
    for each in findings:
        mark = "ok  " if each.ok else "MEND"
        console().print(f"{mark} {each.what}: {each.says}", markup=False, soft_wrap=True)


def _show(found: "Examination", cost: str | None) -> None:
    screen = console()

    def say(text: str) -> None:
        screen.print(text, markup=False, soft_wrap=True)

    say(f"{found.site} is asked " + ", ".join(found.asked))
    for reason in found.refused:
        say(f"  refused: {reason}")
    if not found.refused:
        say("  it would take part")
    if cost is not None:
        say(f"  cost: {cost}")


def show_policy(path: PolicyFile = None, new: New = False, as_json: Json = False) -> None:
    """Check a site's policy and say in words what it allows."""
    from astrofed.client.policy import POLICY_FILE, Policy
    from astrofed.client.policy_template import write_new_policy
    from astrofed.client.policy_words import in_words

    file = path or Path(os.environ.get("ASTROFED_HOME") or ".") / POLICY_FILE
    file = file / POLICY_FILE if file.is_dir() else file
    policy = write_new_policy(file) if new else Policy.load(file)
    if as_json:
        print_json({"file": str(file), "policy": policy.model_dump(mode="json"), "words": in_words(policy)})
        return
    screen = console()
    screen.print(f"{file}: a valid policy" + (", written now" if new else ""), markup=False, soft_wrap=True)
    for line in in_words(policy):
        screen.print(f"  {line}", markup=False, soft_wrap=True)


def _site(plan: "Plan", home: Path, policy: Path | None, name: str | None, data: Path | None) -> "Site":
    """Return the site that the command speaks of: that of the home, if it is one, or a participant of the plan.

    Raises:
        NotForThisSite: the plan has no participant of the home's name, or names a dataset that it has not.
        PlanError: the plan has several participants and it isn't said which one this is, or none of that name.
        PolicyError: there is no policy.
    """
    from dataclasses import replace

    from astrofed.client.policy import POLICY_FILE, Policy
    from astrofed.client.service.home import SITE_FILE, Home
    from astrofed.shared.plan import PlanError
    from astrofed.simulations.sites import open_simulated_site

    changes: dict[str, Any] = {"home": home}
    if name is None and data is None and (home / SITE_FILE).exists():
        own = Home.open(home)
        name = own.participant(plan).name
        changes["data"] = own.data_path(own.participant(plan).data)
    names = [participant.name for participant in plan.participants]
    if name is None and len(names) > 1:
        raise PlanError(
            f"the plan has several participants; say which one this site is: --site, one of {', '.join(names)}"
        )
    if name is not None and name not in names:
        raise PlanError(f"--site {name!r} is no participant of the plan; it has {', '.join(names)}")
    found = open_simulated_site(plan, names.index(name) if name is not None else 0, None)
    if policy is not None or found.policy is None:
        changes["policy"] = Policy.load(policy or home / POLICY_FILE)
    if data is not None:
        changes["data"] = data
    return replace(found, **changes)
