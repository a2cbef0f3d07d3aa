"""`astrofed bench privacy --audit`: what our private training shows of its data, and whether bugs would show."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from astrofed.simulations.audit.bound import CONFIDENCE
from astrofed.simulations.audit.cases import CASES, DELTA, Finding
from astrofed.simulations.audit.central import CENTRAL_CASES
from astrofed.simulations.audit.membership import Attack, attack
from astrofed.simulations.audit.planted import PLANTED
from astrofed.simulations.audit.planted_trees import PLANTED_TREES
from astrofed.simulations.audit.shared import PLANTED_SHARED, SHARED_CASES
from astrofed.simulations.bench.result import Machine, Target, this_machine, verdict

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class AuditResult:
    """What was found, and what it was found with."""

    machine: Machine
    honest: tuple[Finding, ...]
    planted: tuple[tuple[str, Finding], ...]  # the bug, and what it showed
    attacks: tuple[Attack, ...]
    seconds: float
    settings: dict[str, Any]

    @property
    def targets(self) -> tuple[Target, ...]:
        """What an audit has to show."""
        honest = [found for found in self.honest if not found.sound]
        missed = [name for name, found in self.planted if found.sound]
        blind = [each for each in self.attacks if each.epsilon is None and each.auc - 0.5 < 3 * each.error]
        unsound = [each for each in self.attacks if not each.sound]
        return (
            Target("trainings that show more than the ledger says", len(honest), not honest),
            Target("planted bugs that are missed", len(missed), not missed),
            Target("attacks on private training that show more than the ledger says", len(unsound), not unsound),
            Target("attacks without privacy that find nobody", len(blind), not blind),
        )

    @property
    def met(self) -> bool | None:
        """Whether all targets are met."""
        return verdict(self.targets)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        honest = [{**asdict(found), "sound": found.sound} for found in self.honest]
        planted = [{**asdict(found), "bug": name, "caught": not found.sound} for name, found in self.planted]
        rows = {"honest": honest, "planted": planted, "targets": [asdict(target) for target in self.targets]}
        return {**asdict(self), **rows, "met": self.met}

    def table(self) -> "Group":
        """Return the result for people."""
        from rich.console import Group
        from rich.table import Table

        caption = "\n".join(
            f"{'met' if target.met else 'MISSED'} {target.target}: {target.measured:g}" for target in self.targets
        )
        bounds = Table(title=f"Epsilon at delta {DELTA:g}: the ledger's, and more than which is shown")
        for name in ("training", "canaries", "ledger", "shown", "right guesses", "verdict"):
            bounds.add_column(name, justify="left" if name in ("training", "verdict") else "right")
        rows = [(found.case, found, "sound" if found.sound else "UNSOUND") for found in self.honest]
        rows += [(f"bug: {name}", found, "MISSED" if found.sound else "caught") for name, found in self.planted]
        for name, found, word in rows:
            guesses = f"{found.measured.right} / {found.measured.guesses}"
            numbers = (f"{found.accounted:.3f}", f"{found.measured.epsilon:.3f}", guesses)
            bounds.add_row(name, str(found.canaries), *numbers, word)
        members = Table(title="Members guessed by their loss", caption=caption, caption_justify="left")
        for name in ("epsilon", "AUC", "found at 1 % false", "accuracy", "shown"):
            members.add_column(name, justify="right")
        for each in self.attacks:
            spent = "none" if each.epsilon is None else f"{each.epsilon:.3f}"
            auc = f"{each.auc:.3f} ± {each.error:.3f}"
            members.add_row(spent, auc, f"{each.found:.1%}", f"{each.accuracy:.1%}", f"{each.measured.epsilon:.3f}")
        return Group(bounds, members)


def run_audit(quick: bool, seed: int = 1, done: Callable[[str], None] = lambda _: None) -> AuditResult:
    """Audit all cases, honest and with each planted bug, and attack; `quick` takes fewer canaries and cases."""
    machine, began, threads = this_machine(), time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        honest = []
        for case in (*CASES, *SHARED_CASES, *CENTRAL_CASES):
            honest.append((replace(case, side=case.side // 2) if quick else case).find(seed))
            done(f"{case.name}: {honest[-1].measured.epsilon:.3f} of {honest[-1].accounted:.3f}")
        planted = []
        for bug in (*PLANTED, *PLANTED_SHARED, *PLANTED_TREES):
            with bug.planted():
                planted.append((bug.name, bug.case.find(seed)))
            done(f"bug: {bug.name}: {planted[-1][1].measured.epsilon:.3f} of {planted[-1][1].accounted:.3f}")
        attacks = tuple(attack(epsilon, seed) for epsilon in ((None, 8.0) if quick else (None, 8.0, 1.0)))
    finally:
        torch.set_num_threads(threads)
    settings = {"quick": quick, "seed": seed, "delta": DELTA, "confidence": CONFIDENCE, "threads": 1}
    seconds = time.perf_counter() - began
    return AuditResult(machine, tuple(honest), tuple(planted), attacks, seconds, settings)
