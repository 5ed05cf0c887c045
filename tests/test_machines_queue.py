"""The queue, beside lists of messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import Limits, Tx
from shardengine.machines.queue import Ack, Lease, Move, Push, Queue
from tests.inprocess import REJECTED, Bench, Step

CLOCK_MAX = (1 << 64) - 1
QUEUES = st.sampled_from([b"q", b"q", b"q", b"q", b"qh", b"\x01q", bytes(200)])
CONSUMERS = st.sampled_from([b"x", b"y", bytes(200)])
TTLS = st.sampled_from([0, 1, 1, 2, 2, 3, 10, (1 << 63) - 1])
COUNTS = st.integers(1, 3) | st.just(100)
COMMANDS = (
    st.builds(Push, QUEUES, st.binary(max_size=2))
    | st.builds(Lease, QUEUES, CONSUMERS, TTLS, COUNTS)
    | st.builds(Ack, QUEUES, st.integers(0, 6), CONSUMERS)
    | st.builds(Move, QUEUES, QUEUES, COUNTS)
)
FIRST = st.lists(st.builds(Push, st.just(b"q"), st.binary(max_size=2)).map(Step), max_size=5)
LATER = st.lists(st.builds(Step, COMMANDS, st.sampled_from([0, 0, 0, 1, 2, 5]), st.booleans()), max_size=50)
STEPS = st.builds(list.__add__, FIRST, LATER)


@dataclass
class Message:
    id: int
    body: bytes
    holder: bytes | None = None
    deadline: int = 0


class Model:
    """Of each queue, its messages as they were pushed, and how many those ever were."""

    def __init__(self) -> None:
        self.queues: dict[bytes, list[Message]] = {}
        self.pushed: dict[bytes, int] = {}

    def __call__(self, command: Any, now: int) -> Any:
        if isinstance(command, Push):
            return self._push(command.queue, command.body)
        if isinstance(command, Ack):
            return self._ack(command)
        source = command.source if isinstance(command, Move) else command.queue
        taken = self._ready(source, now)[: command.n]
        if isinstance(command, Lease):
            for message in taken:
                message.holder, message.deadline = command.consumer, min(now + command.ttl_ms, CLOCK_MAX)
            return [[message.id, message.body] for message in taken]
        for message in taken:
            self.queues[source].remove(message)
        for message in taken:
            self._push(command.target, message.body)
        return len(taken)

    def _push(self, queue: bytes, body: bytes) -> int:
        id = self.pushed.get(queue, 0)
        self.pushed[queue] = id + 1
        self.queues.setdefault(queue, []).append(Message(id, body))
        return id

    def _ack(self, command: Ack) -> Any:
        for message in self.queues.get(command.queue, []):
            if message.id == command.id and message.holder == command.consumer:
                self.queues[command.queue].remove(message)
                return None
        return REJECTED

    def _ready(self, queue: bytes, now: int) -> list[Message]:
        there = self.queues.get(queue, [])
        ended = [message for message in there if message.holder is not None and message.deadline <= now]
        ended.sort(key=lambda message: (message.deadline, message.id))
        return ended + [message for message in there if message.holder is None]


@given(steps=STEPS)
def test_the_queue_is_the_model_of_lists(steps: list[Step]) -> None:
    bench, model = Bench(Queue), Model()
    bench.agrees(model, steps)
    kept = sum(1 if message.holder is None else 3 for there in model.queues.values() for message in there)
    assert len(bench.records) == kept + len(model.pushed)  # a header for each queue that ever had a message


def test_a_lease_that_ended_is_given_to_the_next_who_asks() -> None:
    bench = Bench(Queue)
    assert [bench.value(Push(b"q", body)) for body in (b"one", b"two", b"three")] == [0, 1, 2]
    assert bench.value(Lease(b"q", b"x", 10)) == [[0, b"one"]]
    assert bench.value(Lease(b"q", b"y", 5)) == [[1, b"two"]]
    assert bench.value(Lease(b"q", b"z", 5, 9), later_ms=9) == [[1, b"two"], [2, b"three"]]
    assert bench.value(Lease(b"q", b"z", 5, 9)) == []
    assert bench.run(Ack(b"q", 1, b"y")).reason == "message 1 is not leased to b'y'"
    assert bench.value(Lease(b"q", b"z", 5), later_ms=1) == [[0, b"one"]]
    assert [bench.value(Ack(b"q", number, b"z")) for number in (0, 1, 2, 0)] == [None, None, None, REJECTED]
    bench.end_group()
    assert len(bench.records) == 1


def test_leases_that_ended_are_given_one_by_one_though_others_are_pushed_and_leased_meanwhile() -> None:
    bench = Bench(Queue)
    for body in (b"one", b"two", b"three"):
        bench.run(Push(b"q", body))
    assert bench.value(Lease(b"q", b"x", 10, 3)) == [[0, b"one"], [1, b"two"], [2, b"three"]]
    bench.run(Push(b"q", b"four"))
    assert bench.value(Lease(b"q", b"y", 99)) == [[3, b"four"]]
    later = [bench.value(Lease(b"q", b"y", 99), later_ms=step) for step in (9, 1, 0, 0, 0)]
    assert later == [[], [[0, b"one"]], [[1, b"two"]], [[2, b"three"]], []]


def test_a_late_acknowledgement_counts_while_nobody_else_took_the_message() -> None:
    bench = Bench(Queue)
    bench.run(Push(b"q", b"one"))
    bench.run(Lease(b"q", b"x", 1))
    assert bench.value(Ack(b"q", 0, b"x"), later_ms=1000) is None
    assert bench.value(Lease(b"q", b"y", 1)) == []


def test_a_message_that_moved_is_acknowledged_where_it_is() -> None:
    bench = Bench(Queue)
    for body in (b"one", b"two"):
        bench.run(Push(b"in", body))
    bench.run(Lease(b"in", b"x", 5))
    assert bench.value(Move(b"in", b"out", 9), later_ms=4) == 1
    assert bench.value(Move(b"in", b"in", 9), later_ms=1) == 1
    assert bench.value(Ack(b"in", 0, b"x")) == REJECTED
    assert bench.value(Lease(b"in", b"x", 5, 9)) == [[2, b"one"]]
    assert bench.value(Lease(b"out", b"x", 5, 9)) == [[0, b"two"]]


def test_a_deadline_stays_within_the_clock() -> None:
    bench = Bench(Queue)
    bench.run(Push(b"q", b"one"))
    longest = (1 << 63) - 1
    assert bench.value(Lease(b"q", b"x", longest), later_ms=CLOCK_MAX - 5) == [[0, b"one"]]
    assert bench.value(Lease(b"q", b"y", longest), later_ms=4) == []
    assert bench.value(Lease(b"q", b"y", longest), later_ms=1) == [[0, b"one"]]


def test_leases_are_scanned_only_when_one_may_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan would walk over all leases that its group saw the end of."""
    bench, scans = Bench(Queue), list[bytes]()

    def scan(tx: Tx, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        scans.append(prefix)
        return []

    monkeypatch.setattr(Tx, "scan", scan)
    for number in range(50):
        bench.run(Push(b"q", b"body"))
        assert bench.value(Lease(b"q", b"x", 1000), later_ms=1) == [[number, b"body"]]
        assert bench.value(Ack(b"q", number, b"x")) is None
    assert scans == []
    assert [bench.value(Lease(b"q", b"x", 1000), later_ms=step) for step in (1000, 1, 1)] == [[], [], []]
    assert len(scans) == 1


@pytest.mark.parametrize(
    "command",
    [
        Push(b"", b""),
        Push(bytes(201), b""),
        Lease(b"q", b"", 1),
        Lease(b"q", b"x", -1),
        Lease(b"q", b"x", 1 << 63),
        Lease(b"q", b"x", 1, 0),
        Lease(b"q", b"x", 1, 101),
        Ack(b"q", -1, b"x"),
        Ack(b"q", 1 << 63, b"x"),
        Move(b"q", bytes(201), 1),
    ],
)
def test_what_is_beyond_the_bounds_is_no_command(command: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        Bench(Queue).run(command)


def test_a_body_may_be_as_long_as_a_value() -> None:
    limits = Limits(value_bytes_max=10)
    assert Queue().check(Push(b"q", bytes(10)), limits) is None
    assert Queue().check(Push(b"q", bytes(11)), limits) == "a body over value_bytes_max=10"
    assert Queue().check(Lease(b"q", b"x", 1), limits) is None
