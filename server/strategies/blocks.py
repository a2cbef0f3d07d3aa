"""Averaging block by block: sites that train only parts of a model federate with sites that train others.

A model's parameters fall into blocks by their names: what stands below `encoders.<block>` belongs to that block,
everything else to the block "shared". A site that lacks a modality sends its block back as it came, bit for bit; each
block goes through the rule by itself, with the sites that trained it and no others.

Which sites may train a block follows from the plan (`task.modalities`), not from what replies claim: an update to a
block that a site was not given is ignored. So at most the plan's f liars stand among a block's trainers, and the
rule's guarantee holds in each block that has enough of them. The plan is refused where a block has too few, unless it
trusts them by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray
from pydantic import Field

from astrofed.server.aggregation.base import Floats, TooFewReplies
from astrofed.server.aggregation.rules_centre import TrustedReference
from astrofed.server.strategies.messages import mean_metrics, scalars
from astrofed.server.strategies.robust import Options, RobustStrategy, build_pipeline, take
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import Name, Plan, PlanError, Positive
from astrofed.shared.seeds import derive_seed

SHARED, MARK = "shared", "encoders"
SECOND, TINY = 0.99, 1e-10  # of Adam on the server
Arrays = dict[str, NDArray[Any]]


def block_of(name: str) -> str:
    """Return the block that a parameter belongs to: what follows "encoders" in its name, or "shared"."""
    parts = name.split(".")
    return parts[parts.index(MARK) + 1] if MARK in parts[:-1] else SHARED


class BlockOptions(Options):
    """Keys beside the rule's and those of the robust strategy.

    `trust`: by block, the only sites whose updates to it are used, as a plain mean; for blocks that too few sites
    train for the rule. `server_momentum`: the model moves by v <- factor · v + step (Hsu et al. 2019, FedAvgM).
    `server_rate`: it moves by Adam of this rate on the rounds' steps (Reddi et al. 2021, FedAdam; its first factor
    is then `server_momentum`, 0.9 by default); by the last round the rate has fallen by `training.decay`.
    """

    trust: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    server_rate: Positive | None = None


class BlockMean(RobustStrategy):
    """Aggregates each block of a model over the sites that trained it, by a mean or any robust rule, per block."""

    own_options = BlockOptions

    def __init__(
        self,
        rule: str | None = None,
        pre: Sequence[str] = (),
        f: int | None = None,
        weights: Literal["equal", "examples"] = "equal",
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Build the strategy: arguments as `RobustStrategy`, but the rule is the mean where none is named.

        Raises:
            PlanError: see `RobustStrategy`; or an option that works on whole models (momentum of participants, a rule
                that starts from the last step or trusts one participant) is asked for.
        """
        super().__init__(rule or "mean", pre, f, weights, options, seed)
        self.block_options = take(BlockOptions, "block-mean", options or {})
        if self.options.momentum:
            raise PlanError(
                "strategy.momentum: a participant's own is not kept block by block; remove it, or use server_momentum"
            )
        if self._uses_last_step() or isinstance(self.pipeline.rule, TrustedReference):
            raise PlanError(
                f"strategy.rule: {self.pipeline.name} needs whole models in every round (start = 'model' makes centred "
                "clipping do without); use another rule, or name = 'robust'"
            )
        self._plain = build_pipeline("mean", (), 0, {})
        self._trainers: dict[str, frozenset[str]] = {}
        self._velocity: Arrays = {}
        self._square: Arrays = {}
        self._steps, self._decay = 0, 1.0

    def declare(self, plan: Plan, blocks: Iterable[str]) -> None:
        """Take from the plan who may train which of the model's blocks.

        Raises:
            PlanError: a block that is trusted doesn't exist, or its sites aren't in the plan, or a block has too few
                trainers for the rule.
        """
        names = [participant.name for participant in plan.trainers]
        given = plan.task.options.get("modalities", {})
        self._decay = plan.training.decay ** (1 / plan.rounds)
        self._trainers = {}
        for block in dict.fromkeys(blocks):
            allowed = [name for name in names if block == SHARED or block in given.get(name, (block,))]
            self._trainers[block] = frozenset(allowed)
        for block, trusted in self.block_options.trust.items():
            if block not in self._trainers:
                raise PlanError(f"strategy.trust: the model has no block {block!r}; it has {', '.join(self._trainers)}")
            for name in trusted:
                if name not in self._trainers[block]:
                    raise PlanError(f"strategy.trust.{block}: {name!r} trains no such block in this plan")
            self._trainers[block] = frozenset(trusted)
        need = self.pipeline.minimum_replies()
        for block, own in self._trainers.items():
            if need is not None and block not in self.block_options.trust and 0 < len(own) < need:
                raise PlanError(
                    f"strategy.f: block {block!r} is trained by {len(own)} of the plan's sites; {self.pipeline.name} "
                    f"with f = {self.pipeline.f} needs {need}: lower f, let more sites train it (task.modalities), or "
                    f"trust them by name (strategy.trust = {{ {block} = [{', '.join(map(repr, sorted(own)))}] }})"
                )

    @property
    def promises(self) -> list[str]:
        """What holds beside the rule's guarantee, a line each."""
        lines = [f"block {block!r}: {len(own)} sites may train it" for block, own in self._trainers.items()]
        return lines + [
            f"block {block!r} is trusted to {', '.join(own)}: if they lie, that block is their own"
            for block, own in self.block_options.trust.items()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new model, and the mean metrics of those whose shared block is in it.

        (None, None) where the rule needs more replies for the shared block; any other block is then left as it was.
        """
        replies = list(replies)
        nodes = [reply.metadata.src_node_id for reply in replies]
        self.weights, self.left_out, self.skipped, self.notes = None, {}, None, []
        models = [to_numpy(reply.content.array_records["arrays"]) for reply in replies]
        metrics = [scalars(reply.content.metric_records["metrics"]) for reply in replies]
        shares = self._shares(nodes, metrics)
        merged: Arrays = {}
        shared_weights: Floats | None = None
        out: dict[int, list[str]] = {}
        blocks = _blocks(self._reference)
        for block, names in blocks.items():
            reference = {name: self._reference[name] for name in names}
            rows = self._who_trained(block, names, nodes, models)
            if not rows and block != SHARED:
                merged |= reference
                continue
            trusted = block in self.block_options.trust
            pipeline = self._plain if trusted else self._allowed(len(rows))
            pipeline = pipeline.seeded(derive_seed(self._seed, "rules", server_round))
            try:
                outcome = pipeline.aggregate(reference, [models[row] for row in rows], _renormalised(shares, rows))
            except TooFewReplies as error:
                if block == SHARED:
                    self.skipped = str(error)
                    return None, None
                self.notes.append(f"block {block!r} left as it was: {error}")
                merged |= reference
                continue
            merged |= outcome.arrays
            for index, reason in outcome.left_out.items():
                out.setdefault(rows[index], []).append(f"block {block!r}: {reason}")
            if block == SHARED and outcome.weights is not None:
                shared_weights = np.zeros(len(replies))
                shared_weights[rows] = outcome.weights
                self.weights = dict(zip(nodes, shared_weights.tolist(), strict=True))
        self._note_left_out(nodes, out)
        return from_numpy(self._moved(merged, server_round)), mean_metrics(metrics, shared_weights)

    def state_dict(self) -> Arrays:
        """Return the model's velocity, and what Adam remembers."""
        state = {f"velocity/{name}": array for name, array in self._velocity.items()}
        state |= {f"square/{name}": array for name, array in self._square.items()}
        return {**state, "steps": np.array(self._steps)} if state else {}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state_dict` returned."""
        self._velocity = {key.removeprefix("velocity/"): a for key, a in state.items() if key.startswith("velocity/")}
        self._square = {key.removeprefix("square/"): a for key, a in state.items() if key.startswith("square/")}
        self._steps = int(state["steps"]) if "steps" in state else 0

    def _who_trained(
        self, block: str, names: Sequence[str], nodes: Sequence[int], models: Sequence[Mapping[str, NDArray[Any]]]
    ) -> list[int]:
        """Return whose replies count in a block: those who may train it and sent it changed."""
        allowed, rows = self._trainers.get(block), []
        for row, (node, model) in enumerate(zip(nodes, models, strict=True)):
            if block == SHARED:
                rows.append(row)
                continue
            if all(np.array_equal(model[name], self._reference[name]) for name in names):
                continue
            if allowed is not None and self._name(node) not in allowed:
                self.notes.append(
                    f"{self._name(node)} changed block {block!r}, which the plan doesn't give it: ignored"
                )
                continue
            rows.append(row)
        return rows

    def _note_left_out(self, nodes: Sequence[int], out: Mapping[int, Sequence[str]]) -> None:
        """Whom the rule left out of the shared block is left out; of single blocks the notes tell."""
        for row, reasons in out.items():
            if any(reason.startswith(f"block {SHARED!r}: ") for reason in reasons):
                self.left_out[nodes[row]] = reasons[0].partition(": ")[2]
            else:
                self.notes += [f"{self._name(nodes[row])}: {reason}" for reason in reasons]

    def _moved(self, merged: Arrays, server_round: int) -> Arrays:
        """Return the model in the order of the global one, moved on by the server's momentum or Adam."""
        options = self.block_options
        result = {name: merged[name] for name in self._reference}
        if not options.server_momentum and options.server_rate is None:
            return result
        self._steps += 1
        for name, old in self._reference.items():
            if old.dtype.kind == "f":
                step = np.subtract(result[name], old, dtype=np.float64)
                move = self._momentum_of(name, step) if options.server_rate is None else self._adam(name, step)
                result[name] = np.asarray((old + self._rate(server_round) * move).astype(old.dtype))
        return result

    def _rate(self, server_round: int) -> float:
        rate = self.block_options.server_rate
        return 1.0 if rate is None else rate * (self._decay**server_round)

    def _momentum_of(self, name: str, step: NDArray[np.float64]) -> NDArray[np.float64]:
        self._velocity[name] = np.asarray(self.block_options.server_momentum * self._velocity.get(name, 0.0) + step)
        return self._velocity[name]

    def _adam(self, name: str, step: NDArray[np.float64]) -> NDArray[np.float64]:
        first = self.block_options.server_momentum or 0.9
        self._velocity[name] = np.asarray(first * self._velocity.get(name, 0.0) + (1 - first) * step)
        self._square[name] = np.asarray(SECOND * self._square.get(name, 0.0) + (1 - SECOND) * step**2)
        mean = self._velocity[name] / (1 - first**self._steps)
        return np.asarray(mean / (np.sqrt(self._square[name] / (1 - SECOND**self._steps)) + TINY))


def _blocks(reference: Mapping[str, NDArray[Any]]) -> dict[str, list[str]]:
    """Return the names of each block's arrays, the shared block first."""
    found: dict[str, list[str]] = {SHARED: []}
    for name in reference:
        found.setdefault(block_of(name), []).append(name)
    return {block: names for block, names in found.items() if names}


def _renormalised(shares: Floats | None, rows: Sequence[int]) -> Floats | None:
    return None if shares is None else np.asarray(shares[list(rows)] / shares[list(rows)].sum())
