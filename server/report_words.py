"""What a report says in sentences: the verdict, and what is guaranteed and what not. Only what the record supports."""

from dataclasses import dataclass

from astrofed.server.privacy.conditions import against_whom
from astrofed.server.report_numbers import figure, listed, relation
from astrofed.server.report_participation import kept_out, used
from astrofed.server.report_run import Run, robust_pipeline
from astrofed.server.report_scores import Scores, loss_phrase
from astrofed.server.strategies.build import check_guarantee
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan


@dataclass(frozen=True)
class Guarantee:
    """What is promised to whom, or that nothing is."""

    against: str
    holds: bool
    text: str


def verdict(run: Run, trained: Scores | None) -> str:
    """Return the run in one sentence: how good the model is, and who was kept out."""
    if not run.rounds:
        if run.start.refused:
            return f"The run did not begin: {listed([site.participant for site in run.start.refused])} could not enrol."
        return f"{len(run.start.enrolled)} participants have enrolled; no round is complete yet."
    return f"{_quality(run, trained)}{_participation(run)}."


def attacks(run: Run) -> list[str]:
    """Return a sentence for each participant that the plan makes attack: what became of it."""
    sentences = []
    for participant in run.plan.trainers:
        if participant.attack is None or not run.trained:
            continue
        name = participant.name
        if run.plan.central_privacy is not None:
            sentences.append(
                f"The plan makes {name} attack ({participant.attack.name}): how often its update was used is not "
                "recorded."
            )
            continue
        times_used = sum(name in used(entry) for entry in run.trained)
        times_out = sum(name in kept_out(entry) for entry in run.trained)
        sentences.append(
            f"The plan makes {name} attack ({participant.attack.name}): its update was kept out in {times_out} "
            f"and used in {times_used} of {_rounds(run.done)}."
        )
    return sentences


def guarantees(run: Run) -> list[Guarantee]:
    """Return what the plan enforces against lying participants, readers of the model and the coordinator."""
    return [*_robustness(run.plan), _model_readers(run.plan), _coordinator(run.plan)]


def _quality(run: Run, trained: Scores | None) -> str:
    done = _rounds(run.done) if run.finished else f"{run.done} of {_rounds(run.plan.rounds)}"
    if trained is None:
        return f"After {done} the model is not evaluated" if run.done else "The initial model could not be evaluated"
    number, loss = trained.last
    if number == run.done:
        when = f"After {done}" if number else "Before any training"
    elif number:
        when = f"At round {number}, the last one evaluated after {done},"
    else:
        when = f"{done} are done, but only the initial model is evaluated:"
    comparisons = listed([relation(loss, base, name) for name, base in trained.baselines.items() if base > 0])
    against = f": {comparisons}" if comparisons else ""
    return f"{when} the model's error is {figure(loss)}{loss_phrase(run.plan)}{against}"


def _participation(run: Run) -> str:
    if not run.trained:
        return ""
    if run.plan.central_privacy is not None:
        return "; who took part is not recorded, as privacy at the server asks"
    if all(entry.skipped is not None for entry in run.trained):
        return "; no round changed the model"
    sites, every = run.trainers, _rounds(run.done)
    always = [name for name in sites if all(name in kept_out(entry) for entry in run.trained)]
    ever = [name for name in sites if any(name in kept_out(entry) for entry in run.trained)]
    if always:
        return f"; {_of(len(always), len(sites))} kept out in {'all ' if run.done > 1 else ''}{every}"
    if ever:
        return f"; {_of(len(ever), len(sites))} kept out in some rounds"
    return "; no update was kept out"


def _robustness(plan: Plan) -> list[Guarantee]:
    if len(plan.trainers) == 1:
        return []
    pipeline = robust_pipeline(plan)
    try:
        text = "; ".join(check_guarantee(plan))
    except UserMistake as error:
        text = f"Nothing is known here of the strategy: {error}"
    return [Guarantee("lying participants", pipeline is not None and pipeline.f > 0, f"{text[0].upper()}{text[1:]}.")]


def _model_readers(plan: Plan) -> Guarantee:
    who = "readers of the model"
    if plan.central_privacy is not None:
        text = (
            "Differential privacy for each participant as a whole, over all models released, with the ε and δ listed "
            "under Privacy. Scores on held-out data, numbers of examples and fingerprints are not covered."
        )
        return Guarantee(who, True, text)
    if plan.privacy is None:
        text = "No differential privacy: nothing bounds what the model tells of a site's data."
        return Guarantee(who, False, text)
    text = (
        f"Differential privacy for each {plan.privacy.unit} in a site's training data, with the ε and δ listed under "
        "Privacy. Scores on held-out data are not covered."
    )
    if plan.shares_noise:
        shared = against_whom(plan)
        text += f" {shared[0].upper()}{shared[1:]}."
    return Guarantee(who, True, text)


def _coordinator(plan: Plan) -> Guarantee:
    who, sees = "a curious coordinator", "It sees each site's updates singly"
    if plan.privacy is None:
        return Guarantee(who, False, f"{sees} and in the clear.")
    if plan.shares_noise:
        return Guarantee(who, True, f"{sees}, under noise of which most is gone from their sum alone.")
    return Guarantee(who, True, f"{sees}, but with the noise of differential privacy already in them.")


def _rounds(number: int) -> str:
    return f"{number} round{'' if number == 1 else 's'}"


def _of(some: int, whole: int) -> str:
    return f"{some} of {whole} participant{'' if whole == 1 else 's'} {'was' if some == 1 else 'were'}"
