"""The one ClientApp: what a participant answers to enrol, statistics, train and evaluate messages, on every engine.

The app is built around a function that says which site this node is. At an institution that is the site's own
configuration; a simulation gives one of the plan's participants. Replies are Flower's usual records: `arrays`, and
`metrics` with `num-examples`; a mistake becomes an error reply that names it and carries no data.
"""

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from astrofed.client.site import Site
from astrofed.client.task import Task, TrainInstruction
from astrofed.shared import records, registry
from astrofed.shared.arrays import from_model, load_into
from astrofed.shared.errors import AstrofedError, UserMistake
from astrofed.shared.models.base import Model, build_model
from astrofed.shared.plan import Plan, PlanError, check_options, plan_from_json
from astrofed.shared.seeds import derive_seed

ERROR_CODE = 2  # Flower's code for "the client app raised an exception"
OpenSite = Callable[[Context, Plan], Site]
Handler = Callable[[Message, Context], RecordDict]
RecordT = TypeVar("RecordT", ArrayRecord, ConfigRecord)


class NonFiniteMetric(AstrofedError):
    """A task returned a metric that is not a finite number."""


class CannotEnrol(UserMistake):
    """A site's data or its task are not fit for the plan."""


class _Desk:
    """The tasks and models that this process has at hand, so that data are read once and not every round.

    Models are kept per thread: two clients that train at once never share one.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._tasks: OrderedDict[tuple[str, Site], Task] = OrderedDict()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._local = threading.local()

    def task(self, plan: Plan, key: str, site: Site) -> Task:
        with self._lock:
            task = self._tasks.get((key, site))
            if task is None:
                task = self._tasks[key, site] = open_task(plan, site)
                if len(self._tasks) > max(self._capacity, len(plan.participants)):
                    self._tasks.popitem(last=False)
            return task

    def model(self, plan: Plan, key: str) -> Model:
        if getattr(self._local, "key", None) != key:
            self._local.key, self._local.model = key, build_model(plan)
        model: Model = self._local.model
        return model


def open_task(plan: Plan, site: Site) -> Task:
    """Build the plan's task for a site.

    Raises:
        UserMistake: the task or one of its options is unknown.
    """
    cls: type[Task] = registry.get("tasks", plan.task.name)
    if plan.privacy is not None and not cls.supports_privacy:
        raise PlanError(f"task {plan.task.name!r} can't train with differential privacy; this site refuses the plan")
    return cls(plan, check_options(cls.Options, plan.task, "task"), site)


def build_client_app(open_site: OpenSite) -> ClientApp:
    """Return the client app for the sites that `open_site` knows."""
    app = ClientApp()
    desk = _Desk()

    def prepare(message: Message, context: Context) -> tuple[Plan, str, Task]:
        text = str(_record(message, "config", ConfigRecord)["plan"])
        plan = plan_from_json(text)
        threads = plan.engine.threads
        if threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return plan, text, desk.task(plan, text, open_site(context, plan))

    def enrol(message: Message, context: Context) -> RecordDict:
        name = open_site(context, plan_from_json(str(_record(message, "config", ConfigRecord)["plan"]))).name
        try:
            _, _, task = prepare(message, context)
            return RecordDict({"site": ConfigRecord(asdict(task.summary()))})
        except UserMistake as error:  # the coordinator doesn't know yet who this is
            raise CannotEnrol(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error

    def statistics(message: Message, context: Context) -> RecordDict:
        _, _, task = prepare(message, context)
        return RecordDict({"arrays": _to_record(task.statistics())})

    def train(message: Message, context: Context) -> RecordDict:
        plan, key, task = prepare(message, context)
        settings = dict(_record(message, "config", ConfigRecord).items())
        round_number = int(str(settings["server-round"]))
        model = desk.model(plan, key)
        load_into(model, _record(message, "arrays", ArrayRecord))
        instruction = TrainInstruction(
            round=round_number,
            seed=derive_seed(plan.seed, "train", round_number, task.site.name),
            proximal_mu=float(str(settings.get("proximal-mu", 0.0))),
        )
        outcome = task.train(model, _pooled(settings), instruction)
        metrics = {**outcome.metrics, "num-examples": outcome.num_examples}
        return records.content({"arrays": from_model(model), "metrics": _metrics(metrics)})

    def evaluate(message: Message, context: Context) -> RecordDict:
        plan, key, task = prepare(message, context)
        settings = dict(_record(message, "config", ConfigRecord).items())
        model = desk.model(plan, key)
        load_into(model, _record(message, "arrays", ArrayRecord))
        metrics = task.evaluate(model, _pooled(settings), with_baselines=bool(settings.get("with-baselines", False)))
        return records.content({"metrics": _metrics({**metrics, "num-examples": task.summary().num_eval_examples})})

    app.query("enrol")(_guarded(enrol))
    app.query("statistics")(_guarded(statistics))
    app.train()(_guarded(train))
    app.evaluate()(_guarded(evaluate))
    return app


def _guarded(handler: Handler) -> Callable[[Message, Context], Message]:
    """Turn a mistake into an error reply: its text names files, keys and counts, never values of the data."""

    def handle(message: Message, context: Context) -> Message:
        try:
            return records.reply(message, handler(message, context))
        except UserMistake as error:
            return Message(Error(code=ERROR_CODE, reason=str(error)), reply_to=message)

    return handle


def _record(message: Message, name: str, kind: type[RecordT]) -> RecordT:
    record = message.content[name]  # Flower's `array_records` and its like build a dictionary anew at each access
    if not isinstance(record, kind):
        raise KeyError(name)
    return record


def _metrics(values: Mapping[str, float]) -> MetricRecord:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteMetric(
                f"metric {name!r} is {value}; the model or the task's data have left the finite range"
            )
    return records.metrics({k: int(v) if isinstance(v, int) else float(v) for k, v in values.items()})


def _to_record(arrays: Mapping[str, NDArray[np.float64]]) -> ArrayRecord:
    return ArrayRecord({key: Array(np.asarray(value, dtype=np.float64)) for key, value in arrays.items()})


_pool_cache = threading.local()


def _pooled(settings: Mapping[str, object]) -> dict[str, NDArray[np.float64]]:
    text = str(settings.get("statistics", "{}"))
    if getattr(_pool_cache, "text", None) != text:
        _pool_cache.text = text
        _pool_cache.arrays = {key: np.asarray(value, dtype=np.float64) for key, value in json.loads(text).items()}
    arrays: dict[str, NDArray[np.float64]] = _pool_cache.arrays
    return arrays
