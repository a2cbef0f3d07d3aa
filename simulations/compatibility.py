"""What a plan guarantees, and why some combinations can't run: checked before any data is touched."""

from astrofed.client.meta.algorithms import adapted_names
from astrofed.client.meta.episodes import kind_of
from astrofed.client.meta.task import few_shot_of
from astrofed.client.task import Task
from astrofed.server.evolution.plans import check_evolution
from astrofed.server.privacy.conditions import against_whom
from astrofed.server.search.space import check_space
from astrofed.server.strategies.build import build_strategy, check_guarantee
from astrofed.shared import registry
from astrofed.shared.models.base import Model, build_model
from astrofed.shared.models.surrogate_layout import SurrogateLayout
from astrofed.shared.plan import Plan, PlanError, check_options
from astrofed.shared.registry import normalise
from astrofed.simulations.attack import Attack


def check_plan(plan: Plan) -> list[str]:
    """Return what a plan guarantees and what it doesn't, a line each.

    Raises:
        PlanError: an option of a plug-in is wrong, or a combination can't work; the message says which and why.
        UnknownPlugin: a name that no plug-in has.
    """
    task: type[Task] = registry.get("tasks", plan.task.name)
    check_options(task.Options, plan.task, "task")
    model = build_model(plan)
    build_strategy(plan)
    if plan.mode == "nas":
        check_space(plan)
    if plan.mode == "evolution":
        check_evolution(plan)
    for participant in plan.participants:
        if participant.attack is not None:
            attack: type[Attack] = registry.get("attacks", participant.attack.name)
            check_options(attack.Options, participant.attack, f"participants.{participant.name}.attack")
    return [
        *check_guarantee(plan),
        *_search(plan),
        *_evolution(plan),
        *_privacy(plan, task),
        *_mode(plan, task, model),
        *_faults(plan),
    ]


def _search(plan: Plan) -> list[str]:
    if plan.search is None:
        return []
    _check_spent_by_many(plan, "candidate", "search")
    charged = "; every candidate is charged to each site's ledger" if plan.privacy is not None else ""
    return [
        f"search: at most {plan.search.candidates} candidates of a space of {check_space(plan).size}, chosen by the "
        "training sites' held-out data, so the winner's score there is optimistic; unseen participants test "
        f"it{charged}"
    ]


def _evolution(plan: Plan) -> list[str]:
    settings = plan.evolution
    if settings is None:
        return []
    _check_spent_by_many(plan, "member", "evolution")
    sites = len(plan.trainers) if settings.islands else 1
    moves = f", the best moving on every {settings.migrate_every} generations" if sites > 1 else ""
    charged = "; every member is charged to its island's ledgers" if plan.privacy is not None else ""
    return [
        f"evolution: {settings.population} members on each of {sites} island{'s' * (sites > 1)}, "
        f"{settings.generations} generations of {settings.rounds} rounds{moves}; chosen by the training sites' "
        f"held-out data, so scores there are too good; then {plan.rounds} rounds of all sites from the winner{charged}"
    ]


def _check_spent_by_many(plan: Plan, one: str, whole: str) -> None:
    if plan.privacy is not None and plan.privacy.epsilon is not None:
        raise PlanError(
            f"privacy.epsilon: the first {one} of the {whole} would spend all of it; give privacy.noise_multiplier, "
            f"and every {one} is charged to each site's ledger"
        )
    if plan.central_privacy is not None:
        raise PlanError(
            f"central_privacy: not accounted over the {one}s of the {whole}; remove it, or use another mode"
        )


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
    told = [
        f"each participant's updates over the whole run: differential privacy per {privacy.unit}, {budget}, "
        f"delta {privacy.delta:g} (metrics on held-out data are not covered)"
    ]
    return [*told, against_whom(plan)] if plan.shares_noise else told


def _mode(plan: Plan, task: type[Task], model: Model) -> list[str]:
    if plan.mode == "multimodal" and not issubclass(task.Options, SurrogateLayout):
        raise PlanError(
            f"mode 'multimodal' is for tasks with modalities, such as 'surrogate'; {plan.task.name!r} has none: set "
            "task.name = 'surrogate', or mode = 'federated'"
        )
    given = {"meta": plan.meta, "customer": plan.customer}
    unused = [
        f"[{name}]: not used in mode {plan.mode!r}" for name, section in given.items() if section and name != plan.mode
    ]
    if plan.mode == "customer":
        kept = "stay there: nothing protects the data it was trained on" if plan.privacy is not None else "are told"
        return [*unused, f"{plan.customer_site} gets a model of its own, which never leaves it; its scores {kept}"]
    meta = plan.meta
    if plan.mode != "meta" or meta is None:
        return unused
    few_shot = few_shot_of(task, plan)
    adapted_names(model, meta)
    steps = meta.adaptation_steps or meta.inner_steps
    told = [
        *unused,
        f"{meta.algorithm} over {kind_of(few_shot, plan)}: metrics are of models adapted by {steps} "
        f"step{'s' * (steps > 1)} to at most {meta.support_shots} samples, on samples that neither saw",
    ]
    if plan.privacy is not None:
        told.append("adapted models and their scores stay at the sites: nothing protects what they were adapted to")
    return told


def _faults(plan: Plan) -> list[str]:
    attackers = [participant.name for participant in plan.trainers if participant.attack is not None]
    if not attackers:
        return []
    tolerated = plan.strategy.f or 0 if normalise(plan.strategy.name) in ("robust", "block-mean") else 0
    warning = f"; more than the {tolerated} that the strategy tolerates" if len(attackers) > tolerated else ""
    return [f"{len(attackers)} of {len(plan.trainers)} participants attack ({', '.join(attackers)}){warning}"]
