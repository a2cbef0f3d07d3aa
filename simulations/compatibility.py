"""What a plan guarantees, and why some combinations can't run: checked before any data is touched."""

from astrofed.client.task import Task
from astrofed.server.strategies.build import build_strategy, check_guarantee
from astrofed.shared import registry
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, PlanError, check_options
from astrofed.simulations.attack import Attack


def check_plan(plan: Plan) -> list[str]:
    """Return what a plan guarantees and what it doesn't, a line each.

    Raises:
        PlanError: an option of a plug-in is wrong, or a combination can't work; the message says which and why.
        UnknownPlugin: a name that no plug-in has.
    """
    task: type[Task] = registry.get("tasks", plan.task.name)
    check_options(task.Options, plan.task, "task")
    build_model(plan)
    build_strategy(plan)
    for participant in plan.participants:
        if participant.attack is not None:
            attack: type[Attack] = registry.get("attacks", participant.attack.name)
            check_options(attack.Options, participant.attack, f"participants.{participant.name}.attack")
    return [*check_guarantee(plan), *_privacy(plan, task), *_faults(plan)]


def _privacy(plan: Plan, task: type[Task]) -> list[str]:
    if plan.privacy is None and plan.central_privacy is not None:
        return [
            "no differential privacy at the participants: what an update says of its data is not bounded for the server"
        ]
    if plan.privacy is None:
        return ["no differential privacy: what a participant's update says of its data is not bounded"]
    if not task.supports_privacy:
        raise PlanError(
            f"task {plan.task.name!r} can't train with differential privacy yet; remove the [privacy] section"
        )
    privacy = plan.privacy
    budget = (
        f"epsilon at most {privacy.epsilon:g}" if privacy.epsilon else f"noise multiplier {privacy.noise_multiplier:g}"
    )
    return [
        f"each participant's updates over the whole run: differential privacy per {privacy.unit}, {budget}, "
        f"delta {privacy.delta:g} (metrics on held-out data are not covered)"
    ]


def _faults(plan: Plan) -> list[str]:
    attackers = [participant.name for participant in plan.trainers if participant.attack is not None]
    if not attackers:
        return []
    tolerated = plan.strategy.f or 0 if plan.strategy.name == "robust" else 0
    warning = f"; more than the {tolerated} that the strategy tolerates" if len(attackers) > tolerated else ""
    return [f"{len(attackers)} of {len(plan.trainers)} participants attack ({', '.join(attackers)}){warning}"]
