"""The queue, beside lists of messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import Limits, Tx
from shardengine.machines.queue import LOT_BYTES, Ack, Lease, Move, Push, Queue
from tests.inprocess import REJECTED, Bench, Step

CLOCK_MAX = (1 << 64) - 1
QUEUES = st.sampled_from([b"q", b"q", b"q", b"q", b"qh", b"\x01q", bytes(200)])
CONSUMERS = st.sampled_from([b"x", b"y", bytes(200)])
TTLS = st.sampled_from([0, 1, 1, 2, 2, 3, 10, (1 << 63) - 1])
COUNTS = st.integers(1, 3) | st.just(100)
FEW_BYTES = 5
"""What is enough for one command where random ones are run."""
BODIES = st.binary(max_size=2) | st.sampled_from([bytes(FEW_BYTES - 1), bytes(FEW_BYTES)])
COMMANDS = (
    st.builds(Push, QUEUES, BODIES)
    | st.builds(Lease, QUEUES, CONSUMERS, TTLS, COUNTS)
    | st.builds(Ack, QUEUES, st.integers(0, 6), CONSUMERS)
    | st.builds(Move, QUEUES, QUEUES, COUNTS)
)
FIRST = st.lists(st.builds(Push, st.just(b"q"), BODIES).map(Step), max_size=5)
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
        taken = self._lot(self._ready(source, now)[: command.n])
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

    def _lot(self, ready: list[Message]) -> list[Message]:
        before = accumulate((len(message.body) for message in ready), initial=0)
        return [message for message, size in zip(ready, before, strict=False) if size < FEW_BYTES]

    def _ready(self, queue: bytes, now: int) -> list[Message]:
        there = self.queues.get(queue, [])
        ended = [message for message in there if message.holder is not None and message.deadline <= now]
        ended.sort(key=lambda message: (message.deadline, message.id))
        return ended + [message for message in there if message.holder is None]


@given(steps=STEPS)
def test_the_queue_is_the_model_of_lists(steps: list[Step]) -> None:
    bench, model = Bench(Queue), Model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardengine.engine.machines.queue.LOT_BYTES", FEW_BYTES)
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


def test_long_bodies_come_a_few_at_a_time_and_a_short_one_behind_them_waits() -> None:
    bench = Bench(Queue)
    for size in (LOT_BYTES - 1, 0, 1, 0, LOT_BYTES, LOT_BYTES):
        bench.run(Push(b"q", bytes(size)))
    lots = [[number for number, _ in bench.value(Lease(b"q", b"x", 5, 9))] for _ in range(4)]
    assert lots == [[0, 1, 2], [3, 4], [5], []]
    again = [
        [number for number, _ in bench.value(Lease(b"q", b"x", 5, n), later_ms=later)] for n, later in ((9, 5), (1, 0))
    ]
    assert again == [[0, 1, 2], [3]]
    assert [bench.value(Move(b"q", b"r", 9)) for _ in range(3)] == [1, 1, 0]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each scan, how many records it walks over that the overlay holds: by far the most of it are deletions."""
    found, scan, current = list[int](), Tx.scan, Tx.current

    def counted_scan(tx: Tx, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        found.append(0)
        return scan(tx, prefix, limit)

    def counted_current(tx: Tx, key: bytes) -> bytes | None:
        found[-1] += 1
        return current(tx, key)

    monkeypatch.setattr(Tx, "scan", counted_scan)
    monkeypatch.setattr(Tx, "current", counted_current)
    return found


def test_leases_are_scanned_only_when_one_may_have_ended(scans: list[int]) -> None:
    bench = Bench(Queue)
    for number in range(50):
        bench.run(Push(b"q", b"body"))
        assert bench.value(Lease(b"q", b"x", 1000), later_ms=1) == [[number, b"body"]]
        assert not number or bench.value(Ack(b"q", number - 1, b"x")) is None
    assert scans == []
    assert bench.value(Lease(b"q", b"x", 1000), later_ms=951) == []  # the first would have ended
    once = len(scans)
    assert once > 0
    assert [bench.value(Lease(b"q", b"x", 1000), later_ms=1) for _ in range(48)] == [[]] * 48
    assert len(scans) == once
    assert bench.value(Ack(b"q", 49, b"x"), later_ms=1) is None
    assert bench.value(Lease(b"q", b"x", 1000)) == []
    assert len(scans) == once


def pushed(count: int) -> list[Step]:
    return [Step(Push(b"q", b"body")) for _ in range(count)]


def ended_together(count: int) -> list[Step]:
    leases = [Step(Lease(b"q", b"x", 1000, 100)) for _ in range(count // 100)]
    return [*pushed(count), *leases, Step(Ack(b"q", 0, b"x"), 1000), *[Step(Lease(b"q", b"y", 5000))] * count]


def ended_one_behind_the_other(count: int) -> list[Step]:
    leases = [Step(Lease(b"q", b"x", 9_000_000), 3) for _ in range(count)]
    return [*pushed(count), *leases, Step(Ack(b"q", 0, b"x"), 9_000_000), *[Step(Move(b"q", b"r"))] * count]


def ended_again_and_again(count: int) -> list[Step]:
    """One message, beside one that is held for long."""
    lots = [Step(Lease(b"q", b"x", 1, n), 2) for _ in range(count // 2) for n in (1, 100)]
    return [*pushed(2), Step(Lease(b"q", b"x", 1 << 40)), Step(Lease(b"q", b"x", 1)), *lots]


def ended_while_others_are_acknowledged(count: int) -> list[Step]:
    found = [*pushed(2 * count), *[Step(Lease(b"q", b"x", count), 1)] * count]
    for number in range(count):
        found += [Step(Ack(b"q", number, b"x")), Step(Lease(b"q", b"x", 2 * count), 1)]
    return found


@pytest.mark.parametrize(
    "shape",
    [ended_together, ended_one_behind_the_other, ended_again_and_again, ended_while_others_are_acknowledged],
)
def test_what_a_lease_walks_over_does_not_grow_with_the_leases_that_its_group_saw_the_end_of(
    scans: list[int], shape: Callable[[int], list[Step]]
) -> None:
    bench, count = Bench(Queue), 1500
    for command, later_ms, _ in shape(count):
        bench.run(command, later_ms)
    assert count < len(scans)
    assert sum(scans) < 256 * count


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
