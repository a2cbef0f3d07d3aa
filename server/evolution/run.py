"""Mode "evolution": weights and hyperparameters evolve on islands, and the federation goes on from the winner.

The evolution lies in `evolution/` below the run's folder: its plan, `lives.jsonl`, a run folder for each member in each
generation, and `evolved.json` with what it came to. Selection looks at the islands' own held-out data; the islands'
best members are compared on that of all training sites. Participants with role "evaluate" are asked about nobody but
the winner, in the rounds that follow.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from astrofed.server.beginning import Beginning
from astrofed.server.evolution.changes import middle
from astrofed.server.evolution.federated import RunFrom, Sites
from astrofed.server.evolution.lives import Book, Life
from astrofed.server.evolution.plans import check_evolution, islands_of
from astrofed.server.evolution.population import evolve
from astrofed.server.federation import Observer
from astrofed.server.record import check_free
from astrofed.server.search.lines import read_found
from astrofed.server.search.run import begin, speaker, with_values
from astrofed.shared.files import write_atomically
from astrofed.shared.plan import Plan

FOLDER, FOUND = "evolution", "evolved.json"


class Champion(BaseModel):
    """The best member of an island in the last generation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    life: Life
    loss: float  # mean over all training sites' held-out data


class EvolutionRecord(BaseModel):
    """What a finished evolution came to, as `evolved.json` holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    islands: tuple[tuple[str, ...], ...]  # the training sites of each
    before: float  # loss of a model drawn from the seed, mean over all training sites' held-out data
    rounds: int  # of training, over all members
    lives: tuple[Life, ...]
    champions: tuple[Champion, ...]  # by island
    winner: int  # its island, from 1


def evolved(plan: Plan, out: Path, *, resume: bool, observer: Observer, run: RunFrom) -> tuple[Plan, Beginning]:
    """Evolve as the plan says, or go on with it, and return the plan with the winner's values and what it begins with.

    Args:
        plan: of mode "evolution".
        out: the run's folder.
        resume: go on with the evolution that lies there.
        observer: hears of each member.
        run: runs a plan in a folder from a beginning, going on where it was.

    Raises:
        PlanError: a key can't evolve.
        RunExists, OtherPlan, RecordBroken: what lies in the folder is something else, or damaged.
        NobodyLives: no member of an island could be trained.
        Interrupted: the observer asked to stop.
    """
    settings, islands, folder = check_evolution(plan), islands_of(plan), out / FOLDER
    if not resume:
        check_free(out)
    begin(folder, plan)
    say = speaker(observer)
    say(f"evolution: {len(islands)} islands of {settings.population} members, {settings.generations} generations")
    sites, book = Sites(plan, folder, run, observer), Book(folder)
    before = sites.begin(middle(settings))
    found = evolve(settings, len(islands), plan.seed, sites, book, lambda life: say(line_of(life)))
    champions = tuple(Champion(life=life, loss=sites.look(life)) for life in found)
    winner = min(champions, key=lambda champion: (champion.loss, champion.life.place.island))
    record = EvolutionRecord(
        islands=tuple(tuple(names) for names in islands),
        before=before,
        rounds=settings.rounds * len(book.lives),
        lives=tuple(book.lives),
        champions=champions,
        winner=winner.life.place.island,
    )
    write_atomically(folder / FOUND, record.model_dump_json(indent=1).encode())
    say(f"winner: {line_of(winner.life)}; {winner.loss:.4f} over all training sites; all sites go on from it")
    return with_values(plan, winner.life.values), sites.beginning(winner.life.place)


def read_evolution(out: Path) -> EvolutionRecord | None:
    """Return what the evolution in a run's folder came to; None where there is none, or none that is finished.

    Raises:
        RecordBroken: the file can't be read.
    """
    return read_found(out / FOLDER / FOUND, EvolutionRecord)


def line_of(life: Life) -> str:
    """Return a life in one line."""
    values = ", ".join(f"{key.partition('.')[2]} {value:.3g}" for key, value in life.values.items())
    whence = {"kept": "", "born": " (born)"}.get(life.origin, f" ({life.origin} from {life.parent})")
    loss = "its training failed" if life.loss is None else f"loss {life.loss:.4f}"
    return f"member {life.place}{whence}: {values}: {loss}"
