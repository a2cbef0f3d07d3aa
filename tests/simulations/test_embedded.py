"""The embedded engine: replies in order, clients apart from each other, and failures that stay where they happen."""

import threading
from collections.abc import Callable

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from astrofed.simulations.embedded import CLIENT_APP_RAISED, EmbeddedGrid

Handler = Callable[[Message, Context], RecordDict]


def app_of(handler: Handler) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(handler(message, context), reply_to=message)

    return app


def partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def name_yourself(_message: Message, context: Context) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"me": partition(context)})})


def messages(grid: EmbeddedGrid, content: RecordDict | None = None) -> list[Message]:
    shared = content if content is not None else RecordDict({"config": ConfigRecord({"round": 1})})
    return [Message(shared, node, "train") for node in grid.get_node_ids()]


def told(replies: list[Message]) -> list[object]:
    return [reply.content.metric_records["metrics"]["me"] for reply in replies]


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_replies_come_in_the_order_of_the_messages(workers: int) -> None:
    grid = EmbeddedGrid(app_of(name_yourself), 7, workers=workers)
    sent = list(reversed(messages(grid)))
    replies = list(grid.send_and_receive(sent))
    assert told(replies) == [6, 5, 4, 3, 2, 1, 0]
    assert [reply.metadata.reply_to_message_id for reply in replies] == [m.metadata.message_id for m in sent]
    assert [reply.metadata.src_node_id for reply in replies] == [m.metadata.dst_node_id for m in sent]


def test_the_order_holds_when_a_later_client_ends_first() -> None:
    last_is_done = threading.Event()

    def handler(message: Message, context: Context) -> RecordDict:
        if partition(context) == 0:
            assert last_is_done.wait(20)
        else:
            last_is_done.set()
        return name_yourself(message, context)

    grid = EmbeddedGrid(app_of(handler), 2, workers=2)
    assert told(list(grid.send_and_receive(messages(grid)))) == [0, 1]


def test_nodes_are_numbered_as_in_flowers_simulation() -> None:
    seen = {}

    def handler(message: Message, context: Context) -> RecordDict:
        seen[context.node_id] = dict(context.node_config)
        return RecordDict()

    grid = EmbeddedGrid(app_of(handler), 3)
    list(grid.send_and_receive(messages(grid)))
    assert list(seen) == list(grid.get_node_ids())
    assert list(seen.values()) == [{"partition-id": i, "num-partitions": 3} for i in range(3)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_becomes_an_error_reply_and_the_others_go_on(workers: int) -> None:
    def handler(message: Message, context: Context) -> RecordDict:
        if partition(context) == 1:
            raise ValueError("no such month")
        return name_yourself(message, context)

    grid = EmbeddedGrid(app_of(handler), 3, workers=workers)
    good, bad, last = grid.send_and_receive(messages(grid))
    assert told([good, last]) == [0, 2]
    assert bad.has_error() and bad.error.code == CLIENT_APP_RAISED
    assert bad.error.reason == "ValueError: no such month"
    assert bad.metadata.src_node_id == messages(grid)[1].metadata.dst_node_id


def test_a_message_that_no_handler_takes_becomes_an_error_reply() -> None:
    grid = EmbeddedGrid(app_of(name_yourself), 1)
    (reply,) = grid.send_and_receive([Message(RecordDict(), next(iter(grid.get_node_ids())), "query.unheard_of")])
    assert reply.has_error() and "unheard_of" in str(reply.error.reason)


def test_an_unknown_node_is_an_error_reply() -> None:
    grid = EmbeddedGrid(app_of(name_yourself), 2)
    (reply,) = grid.send_and_receive([Message(RecordDict(), 99, "train")])
    assert reply.has_error() and reply.error.reason == "there is no node 99 in this run"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_is_not_a_clients_failure(workers: int) -> None:
    started = []

    def handler(message: Message, context: Context) -> RecordDict:
        started.append(partition(context))
        raise KeyboardInterrupt

    grid = EmbeddedGrid(app_of(handler), 50, workers=workers)
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive(messages(grid))
    assert len(started) < 50  # the others don't start any more


def test_a_context_keeps_its_state_between_rounds() -> None:
    def handler(message: Message, context: Context) -> RecordDict:
        before = context.state.metric_records.get("count", MetricRecord({"n": 0}))["n"]
        assert isinstance(before, int)
        context.state["count"] = MetricRecord({"n": before + 1 + 10 * partition(context)})
        return RecordDict({"metrics": MetricRecord({"me": before})})

    grid = EmbeddedGrid(app_of(handler), 2)
    rounds = [told(list(grid.send_and_receive(messages(grid)))) for _ in range(3)]
    assert rounds == [[0, 0], [1, 11], [2, 22]]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_client_does_to_its_message_reaches_no_other(workers: int) -> None:
    """All messages of a round share one record; a client app that replaces entries in it must not feed the next one."""
    grid: EmbeddedGrid

    def handler(message: Message, context: Context) -> RecordDict:
        assert list(message.content) == ["arrays", "config"]
        seen = message.content.config_records["config"]["word"]
        message.content["config"] = ConfigRecord({"word": "forged"})
        del message.content["arrays"]
        message.content["more"] = MetricRecord()
        return RecordDict({"metrics": MetricRecord({"me": int(seen == "true")})})

    arrays, config = ArrayRecord({"w": Array("uint8", (1,), "raw", b"x")}), ConfigRecord({"word": "true"})
    shared = RecordDict({"arrays": arrays, "config": config})
    grid = EmbeddedGrid(app_of(handler), 4, workers=workers)
    sent = messages(grid, shared)
    assert told(list(grid.send_and_receive(sent))) == [1] * 4
    assert dict(shared) == {"arrays": arrays, "config": ConfigRecord({"word": "true"})}
    assert all(message.content is shared for message in sent)
    assert next(iter(grid.send_and_receive(sent))).has_content()  # and a message can be sent again


def test_arrays_are_handed_over_without_a_copy() -> None:
    def handler(message: Message, context: Context) -> RecordDict:
        same = message.content.array_records["arrays"]["w"].data is data
        return RecordDict({"metrics": MetricRecord({"me": int(same)})})

    data = bytes(1000)
    shared = RecordDict({"arrays": ArrayRecord({"w": Array("uint8", (1000,), "raw", data)})})
    grid = EmbeddedGrid(app_of(handler), 2)
    assert told(list(grid.send_and_receive(messages(grid, shared)))) == [1, 1]


def test_message_ids_are_unique_over_rounds_and_grids() -> None:
    identifiers = []
    for grid in (EmbeddedGrid(app_of(name_yourself), 3), EmbeddedGrid(app_of(name_yourself), 3, workers=2)):
        for _ in range(2):
            sent = [*messages(grid), Message(RecordDict(), 99, "train")]
            replies = grid.send_and_receive(sent)
            identifiers += [message.metadata.message_id for message in (*sent, *replies)]
    assert len(set(identifiers)) == len(identifiers) == 2 * 2 * 8
    assert all(identifiers)


def test_several_threads_may_use_one_grid() -> None:
    grid = EmbeddedGrid(app_of(name_yourself), 5, workers=2)
    results: dict[int, list[object]] = {}

    def use(thread: int) -> None:
        results[thread] = told(list(grid.send_and_receive(messages(grid))))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {number: [0, 1, 2, 3, 4] for number in range(4)}


def test_the_pools_threads_outlive_a_round() -> None:
    """A client app keeps a model for each thread: new threads in each round would build new models in each round."""
    names = set()

    def handler(message: Message, context: Context) -> RecordDict:
        names.add(threading.current_thread().name)
        return RecordDict()

    grid = EmbeddedGrid(app_of(handler), 6, workers=2)
    for _ in range(5):
        list(grid.send_and_receive(messages(grid)))
    assert 1 <= len(names) <= 2


def test_push_and_pull() -> None:
    grid = EmbeddedGrid(app_of(name_yourself), 3)
    first, second, third = grid.push_messages(messages(grid))
    assert told(list(grid.pull_messages([third, "unknown", first]))) == [2, 0]
    assert list(grid.pull_messages([third, first])) == []  # once each
    assert told(list(grid.pull_messages([second]))) == [1]


def test_a_grid_belongs_to_a_run() -> None:
    grid = EmbeddedGrid(app_of(name_yourself), 1, run_id=77)
    assert grid.run.run_id == 77
    (reply,) = grid.send_and_receive(messages(grid))
    assert reply.metadata.run_id == 77
    message = grid.create_message(RecordDict(), "train", next(iter(grid.get_node_ids())), "group")
    assert message.metadata.group_id == "group" and message.metadata.run_id == 77
