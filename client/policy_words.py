"""A site's policy in words: what may run, what is spent, what leaves."""

from collections.abc import Sequence

from astrofed.client.policy import DataRules, Policy


def in_words(policy: Policy) -> list[str]:
    """Return what a policy allows, a line each."""
    lines = [
        f"coordinators: {_listed([f'{each.name} ({each.public_key[:16]}…)' for each in policy.coordinators])}",
        f"modes: {_listed(policy.modes)}; tasks: {_listed(policy.tasks)}; models: {_listed(policy.models)}",
        f"tasks and models may come from: {_listed(policy.plugins)}",
    ]
    if not (policy.modes and policy.tasks and policy.models):
        lines.append("so no plan is let in: name at least one mode, one task and one model")
    if policy.peers:
        lines.append(f"peers: {_listed([f'{each.name} ({each.public_key[:16]}…)' for each in policy.peers])}")
    lines += [f"any dataset: {line}" for line in rules_in_words(policy.data)]
    for name, rules in policy.datasets.items():
        lines += [f"dataset {name} ({rules.path}): {line}" for line in rules_in_words(rules)]
    return lines


def rules_in_words(rules: DataRules) -> list[str]:
    """Return what the rules for a dataset allow, a line each."""
    budget = f"epsilon {rules.epsilon:g} at delta {rules.delta:g}, over all runs"
    if rules.privacy == "required":
        lines = [f"trained on only with differential privacy, within {budget}"]
    else:
        lines = [f"trained on also without differential privacy; with it, within {budget}"]
    if rules.shared_noise is not None:
        lines.append(f"noise may be shared with the peers, if {rules.shared_noise.colluding} or more may collude")
    hours = f", during {' and '.join(rules.hours)}" if rules.hours else ""
    length = f", updates at most {rules.max_update_norm:g} long" if rules.max_update_norm is not None else ""
    lines.append(f"at most {rules.max_rounds} rounds a run{hours}{length}")
    lines.append(_metrics(rules))
    if rules.statistics:
        lines.append(f"statistics that leave, exact and not covered by epsilon: {_listed(rules.statistics)}")
    if rules.describe:
        lines.append("the task's line of words about the data leaves")
    return lines


def _metrics(rules: DataRules) -> str:
    if not rules.metrics:
        return "no metric leaves"
    which = f"metrics that leave: {_listed(rules.metrics)}, of at least {rules.min_units} units"
    if rules.noise is not None:
        bounds = ", ".join(f"{pattern} up to {bound:g}" for pattern, bound in rules.noise.bounds.items())
        return f"{which}, with noise of multiplier {rules.noise.multiplier:g} charged to epsilon ({bounds})"
    digits = "exact" if rules.digits is None else f"rounded to {rules.digits} digits"
    return f"{which}, {digits}, not covered by epsilon"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
