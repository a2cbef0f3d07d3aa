"""The one ClientApp: what a participant answers to enrol, statistics, train and evaluate messages, on every engine.

The app is built around a function that says which site this node is. At an institution that is the site's own
configuration; a simulation gives one of the plan's participants. Every kind of request is in one table and goes the
same way: the site's policy lets the plan in (`admission`), a handler answers, and what leaves was cleared (`egress`).
Replies are Flower's usual records: `arrays`, and `metrics` with `num-examples`; a mistake becomes an error reply that
names it and carries no data.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from pydantic import ValidationError

from astrofed.client.admission import admit, check_request
from astrofed.client.customer import CustomerTask
from astrofed.client.devices import placed
from astrofed.client.egress import Cleared, Gate
from astrofed.client.meta.task import MetaTask
from astrofed.client.refusing import UnknownRequest, Withheld, reason
from astrofed.client.site import Site
from astrofed.client.task import Task, TrainInstruction
from astrofed.client.update_checks import Form
from astrofed.shared import records, registry
from astrofed.shared.arrays import from_model, load_into
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.base import Model, build_model
from astrofed.shared.plan import Plan, PlanError, check_options, plan_from_json
from astrofed.shared.seeds import derive_seed

ERROR_CODE = 2  # Flower's code for "the client app raised an exception"
OpenSite = Callable[[Context, Plan], Site]
Answer = Callable[[Message, Context], Message]
RecordT = TypeVar("RecordT", ArrayRecord, ConfigRecord)


class _Desk:
    """The tasks and models that this process has at hand, so that data are read once and not every round.

    Models are kept per thread: two clients that train at once never share one.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._tasks: OrderedDict[tuple[str, Site], tuple[Task, Gate]] = OrderedDict()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._local = threading.local()

    def task(self, plan: Plan, key: str, site: Site) -> tuple[Task, Gate]:
        with self._lock:
            found = self._tasks.get((key, site))
            if found is None:
                task = open_task(plan, site)
                found = self._tasks[key, site] = task, Gate(plan, site, task)
                if len(self._tasks) > max(self._capacity, len(plan.participants)):
                    self._tasks.popitem(last=False)
            return found

    def model(self, plan: Plan, key: str) -> tuple[Model, Form]:
        if getattr(self._local, "key", None) != key:
            model = build_model(plan)
            self._local.key, self._local.found = key, (model, Form.of(from_model(model)))
        found: tuple[Model, Form] = self._local.found
        return found


def open_task(plan: Plan, site: Site) -> Task:
    """Build the plan's task for a site.

    Raises:
        UserMistake: the task or one of its options is unknown.
    """
    cls: type[Task] = registry.get("tasks", plan.task.name)
    if plan.privacy is not None and not cls.supports_privacy:
        raise PlanError(f"task {plan.task.name!r} can't train with differential privacy; this site refuses the plan")
    options = check_options(cls.Options, plan.task, "task")
    if plan.mode == "meta":
        return MetaTask(cls, plan, options, site)
    own = plan.customer_site is not None and plan.customer_site == site.name
    return CustomerTask(cls, plan, options, site) if own else cls(plan, options, site)


def build_client_app(open_site: OpenSite) -> ClientApp:
    """Return the client app for the sites that `open_site` knows."""
    desk = _Desk()
    return _App({kind: _guarded(handler, desk, open_site) for kind, handler in _HANDLERS.items()})


class _App(ClientApp):
    """Flower's app, which finds what answers a kind of request without taking its name apart each time."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        super().__init__()
        self._answers = answers
        for kind, answer in answers.items():
            category, _, action = kind.partition(".")
            register = {"query": self.query, "train": self.train, "evaluate": self.evaluate}[category]
            decorate = register(action) if action else register()
            decorate(answer)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; of other kinds than those known Flower says what is wrong."""
        answer = self._answers.get(records.kind(message))
        return answer(message, context) if answer is not None else super().__call__(message, context)


@dataclass(slots=True)
class Request:
    """A message to a site that has let its plan in."""

    message: Message
    settings: Mapping[str, Any]
    plan: Plan
    key: str  # the plan's text
    site: Site
    desk: "_Desk"

    @property
    def round(self) -> int:
        """The number of the round; 0 is before the first."""
        return int(str(self.settings["server-round"]))

    def task(self) -> tuple[Task, Gate]:
        """Return the site's task, with its data, and the gate that stands before it."""
        return self.desk.task(self.plan, self.key, self.site)

    def model(self) -> tuple[Model, Form, ArrayRecord]:
        """Return the global model that came: as a network, what it is made of, and as it came."""
        model, arrays = self.desk.model(self.plan, self.key)
        sent = _record(self.message, "arrays", ArrayRecord)
        load_into(model, sent)
        return model, arrays, sent


@dataclass(frozen=True)
class Handler:
    """How one kind of request is answered, and the settings that it understands beside those of every message."""

    answer: Callable[[Request], Cleared]
    settings: tuple[str, ...] = ()


def _enrol(request: Request) -> Cleared:
    task, gate = request.task()
    return gate.enrolment(task.summary())


def _statistics(request: Request) -> Cleared:
    task, gate = request.task()
    return gate.statistics(task.statistics())


def _train(request: Request) -> Cleared:
    (task, gate), (model, form, sent), number = request.task(), request.model(), request.round
    instruction = TrainInstruction(
        round=number,
        seed=derive_seed(request.plan.seed, "train", number, task.site.name),
        proximal_mu=float(str(request.settings.get("proximal-mu", 0.0))),
        noise_turn=str(request.settings.get("noise-turn", "")),
    )
    mark = gate.mark()
    with placed(model, request.site.device):
        outcome = task.train(model, _pooled(request.settings), instruction)
    return gate.update(model, form, sent, outcome, number, mark)


def _evaluate(request: Request) -> Cleared:
    (_, gate), (model, _, _), settings = request.task(), request.model(), request.settings
    asked = settings.get("metrics")
    with placed(model, request.site.device):
        return gate.scores(
            model,
            _pooled(settings),
            request.round,
            with_baselines=bool(settings.get("with-baselines", False)),
            asked=None if asked is None else [str(name) for name in asked],
        )


_HANDLERS: Mapping[str, Handler] = {  # every kind of request, by Flower's message type; what isn't here is not answered
    "query.enrol": Handler(_enrol),
    "query.statistics": Handler(_statistics),
    "train": Handler(_train, ("server-round", "statistics", "proximal-mu", "noise-turn")),
    "evaluate": Handler(_evaluate, ("server-round", "statistics", "with-baselines", "metrics", "proximal-mu")),
}


def _guarded(handler: Handler, desk: _Desk, open_site: OpenSite) -> Answer:
    """Let a request in, have it answered, and let out only what was cleared; a mistake becomes an error reply."""

    def handle(message: Message, context: Context) -> Message:
        try:
            settings, text, plan = _question(message)
            site = open_site(context, plan)
        except UserMistake as error:
            return _error(message, str(error))
        try:
            admit(text, site)
            check_request(settings, handler.settings, plan, site)
            _set_threads(plan)
            cleared = handler.answer(Request(message, settings, plan, text, site, desk))
            if not isinstance(cleared, Cleared):
                raise Withheld("the handler's answer was not cleared")
            return records.reply(message, cleared.content)
        except Exception as error:
            if site.policy is None and not isinstance(error, UserMistake):
                raise
            named = f"{site.name}: " if handler.answer is _enrol else ""  # the coordinator doesn't know yet who it is
            return _error(message, named + reason(error, site).removeprefix(named))

    return handle


def _error(message: Message, told: str) -> Message:
    return Message(Error(code=ERROR_CODE, reason=told), reply_to=message)


def _question(message: Message) -> tuple[dict[str, Any], str, Plan]:
    try:
        settings = records.items(_record(message, "config", ConfigRecord))
        text = str(settings["plan"])
        return settings, text, plan_from_json(text)
    except (KeyError, ValidationError) as error:
        raise UnknownRequest("the message carries no plan that this version of astrofed can read") from error


def _record(message: Message, name: str, kind: type[RecordT]) -> RecordT:
    record = records.held(message).get(name)
    if not isinstance(record, kind):
        raise KeyError(name)
    return record


def _set_threads(plan: Plan) -> None:
    threads = plan.engine.threads
    if threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


_pool_cache = threading.local()


def _pooled(settings: Mapping[str, object]) -> dict[str, NDArray[np.float64]]:
    text = str(settings.get("statistics", "{}"))
    if getattr(_pool_cache, "text", None) != text:
        _pool_cache.text = text
        _pool_cache.arrays = {key: np.asarray(value, dtype=np.float64) for key, value in json.loads(text).items()}
    arrays: dict[str, NDArray[np.float64]] = _pool_cache.arrays
    return arrays
