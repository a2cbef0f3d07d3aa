"""Which combinations of mode, strategy or rule, privacy and engine run: asked of the plan check, written as Markdown.

`docs/compatibility.md` is made by `astrofed plan matrix --out docs/compatibility.md`; a test says if it is current.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from astrofed.shared import registry
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Engine, Plan, load_plan
from astrofed.simulations.compatibility import check_plan

MODES: tuple[str, ...] = get_args(Plan.model_fields["mode"].annotation)
ENGINES: tuple[str, ...] = get_args(Engine.model_fields["name"].annotation)
Privacy = Literal["none", "at the site", "shared by the sites", "at the server"]
PRIVACY: tuple[Privacy, ...] = get_args(Privacy)
SITES = 9
_SITE = {"unit": "star", "noise_multiplier": 1.0, "delta": 1e-5}
_SERVER = {"noise_multiplier": 1.0, "delta": 1e-5}
_RULE_OPTIONS: Mapping[str, dict[str, Any]] = {
    "fltrust": {"reference": "site 1"},
    "clip": {"clip_norm": 1.0},
}
_BEFORE = ("nnm", "bucketing", "clip", "arc")  # what comes before a rule and is none by itself
_STRATEGY_OPTIONS: Mapping[str, dict[str, Any]] = {
    "flwr.Krum": {"num_malicious_nodes": 1},
    "flwr.MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "flwr.Bulyan": {"num_malicious_nodes": 1},
    "FedProx": {"proximal_mu": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1},
}


@dataclass(frozen=True)
class Combination:
    """One cell; `refused` is empty where the plan check lets it run."""

    mode: str
    strategy: str  # "FedAvg", "robust: krum", "robust: nnm + mean"
    privacy: Privacy
    engine: str
    refused: str


def combinations(engines: tuple[str, ...] = ENGINES) -> Iterator[Combination]:
    """Yield every combination with what the plan check says of it; only plug-ins that ship."""
    for mode in MODES:
        for name, section in strategies().items():
            for privacy in PRIVACY:
                for engine in engines:
                    yield Combination(mode, name, privacy, engine, _refused(mode, section, privacy, engine))


def strategies() -> dict[str, dict[str, Any]]:
    """Return a [strategy] section for each strategy and each rule that ships, by the name in the matrix."""
    found: dict[str, dict[str, Any]] = {}
    for plugin in registry.plugins("strategies"):
        if plugin.name != "robust" and "astrofed" in plugin.origin.partition(" (")[0]:
            found[plugin.name] = {"name": plugin.name, **_STRATEGY_OPTIONS.get(plugin.name, {})}
    for plugin in registry.plugins("rules"):
        if "astrofed" not in plugin.origin.partition(" (")[0]:
            continue
        options = _RULE_OPTIONS.get(plugin.name, {})
        if plugin.name in _BEFORE:
            rule = {"rule": "trimmed-mean", "pre": [plugin.name], "f": 1}
            found[f"robust: {plugin.name} + trimmed-mean"] = {"name": "robust", **rule, **options}
        else:
            found[f"robust: {plugin.name}"] = {"name": "robust", "rule": plugin.name, "f": 1, **options}
        if plugin.name == "mean":
            found["robust: mean"]["f"] = 0
    return found


def plan_for(mode: str, strategy: Mapping[str, Any], privacy: Privacy, engine: str) -> dict[str, Any]:
    """Return a plan of one combination; its data are never looked at."""
    task = "surrogate" if mode == "multimodal" else "planets"
    sites = 1 if mode == "single" else SITES
    plan: dict[str, Any] = {
        "name": "cell",
        "mode": mode,
        "task": task,
        "model": "mlp",
        "strategy": dict(strategy),
        "engine": {"name": engine},
        "participants": [{"name": f"site {n}", "data": "bundled:planets/k2"} for n in range(1, sites + 1)],
    }
    if mode == "multimodal":
        plan["model"] = "surrogate"
    if mode == "meta":
        plan["meta"] = {"tasks": "stars"}
    if mode == "nas":
        plan["search"] = {"space": {"model.hidden": [[8], [16]]}, "candidates": 2, "population": 2}
    if mode == "evolution":
        plan["evolution"] = {"keys": {"training.learning_rate": {"low": 1e-4, "high": 1e-2}}}
    if privacy == "at the site":
        plan["privacy"] = _SITE
    if privacy == "shared by the sites":
        plan["privacy"] = {**_SITE, "shared_noise": {"colluding": 0}}
        plan["training"] = {"max_steps": 1, "optimizer": "sgd"}
    if privacy == "at the server":
        plan["central_privacy"] = _SERVER
    return plan


def matrix_markdown() -> str:
    """Return the matrix: for each mode and kind of privacy what runs, and what is refused and why."""
    by_cell: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for cell in combinations():
        row = by_cell.setdefault((cell.mode, cell.privacy), {}).setdefault(cell.strategy, {})
        row[cell.engine] = cell.refused
    lines = [_HEAD]
    for (mode, privacy), rows in by_cell.items():
        lines += [f"## Mode `{mode}`, privacy {privacy}", ""]
        runs = [name for name, found in rows.items() if not any(found.values())]
        lines += [f"Runs on {', '.join(ENGINES)} and at real sites: {', '.join(runs) or 'nothing'}.", ""]
        reasons: dict[str, list[str]] = {}
        for name, found in rows.items():
            for engine, reason in found.items():
                reason = reason.replace(f"central_privacy: {name!r}", "central_privacy: it")
                if reason:
                    everywhere = len(set(found.values())) == 1
                    label = name if everywhere else f"{name} on {engine}"
                    if label not in reasons.setdefault(reason, []):
                        reasons[reason].append(label)
        if reasons:
            lines += ["| refused | because |", "|---|---|"]
            lines += [f"| {', '.join(names)} | {reason.replace('|', '/')} |" for reason, names in reasons.items()]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


_HEAD = f"""\
# What goes with what

Made by `astrofed plan matrix --out docs/compatibility.md`; do not edit. Every combination of mode, strategy or rule,
kind of privacy and engine was given to the plan check, with {SITES} training sites (one in mode `single`), one of them
lying where a rule takes `f`. What is refused is refused before any data are read, with the reason that stands here.
Real sites are those of `astrofed server submit`, which makes the same check, looks at no `[engine]`, and refuses
`participants.*.attack` besides; asynchronous rounds (`strategy.buffer`) and open membership run there too.
Privacy "at the site" is DP-SGD (`[privacy]`), "shared by the sites" the same with noise that cancels but for one site's
(`[privacy.shared_noise]`), "at the server" is `[central_privacy]`.
"""


def _refused(mode: str, strategy: Mapping[str, Any], privacy: Privacy, engine: str) -> str:
    try:
        check_plan(load_plan(plan_for(mode, strategy, privacy, engine)))
    except UserMistake as error:
        return str(error)
    return ""
