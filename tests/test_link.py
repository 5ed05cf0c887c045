"""The link: whole messages of any length, in order, both ways, and an end that comes after everything else."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.ipc.errors import LinkClosedError
from shardengine.ipc.link import PACKET_BYTES, Link, pair


@pytest.fixture(params=[0, 50_000], ids=["sleeps", "spins"])
def links(request: pytest.FixtureRequest) -> Iterator[tuple[Link, Link]]:
    """A coordinator's end, which never waits, and a worker's, which does, asleep or spinning."""
    ours, theirs = pair()
    made = Link(ours, blocking=False), Link(theirs, blocking=True, spin_us=request.param)
    yield made
    for link in made:
        with suppress(OSError):
            link.close()


SIZES = [0, 1, 7, PACKET_BYTES - 2, PACKET_BYTES - 1, PACKET_BYTES, PACKET_BYTES + 1, 3 * PACKET_BYTES, 1 << 20]


def messages(seed: int, count: int) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(draw.choice([*SIZES, draw.randrange(1 << 12)])) for _ in range(count)]


def wait_for(link: Link, event: int) -> None:
    poller = select.poll()
    poller.register(link.fileno(), event)
    poller.poll()


@pytest.mark.parametrize("size", SIZES)
def test_a_message_of_any_length_arrives_whole_both_ways(links: tuple[Link, Link], size: int) -> None:
    ours, theirs = links
    message = random.Random(size).randbytes(size)
    echo = threading.Thread(target=lambda: theirs.send(theirs.receive() or b""))
    echo.start()
    ours.send(message)
    answer = None
    while answer is None:
        wait_for(ours, select.POLLIN | (select.POLLOUT if ours.wants_write else 0))
        ours.flush()
        answer = ours.receive()
    echo.join()
    assert answer == message


def test_messages_arrive_in_order_both_ways_at_once(links: tuple[Link, Link]) -> None:
    ours, theirs = links
    there, back = messages(1, 120), messages(2, 120)
    received: list[bytes | None] = []

    def work() -> None:
        for message in back:
            received.append(theirs.receive())
            theirs.send(message)

    worker = threading.Thread(target=work)
    worker.start()
    for message in there:
        ours.send(message)
    answers: list[bytes] = []
    while len(answers) < len(back):
        wait_for(ours, select.POLLIN | (select.POLLOUT if ours.wants_write else 0))
        ours.flush()
        while (answer := ours.receive()) is not None:
            answers.append(answer)
    worker.join()
    assert received == there
    assert answers == back


class Waiting:
    """Stands in for a worker's socket and its clock. Looking at the clock takes 1 us and a yield 10; `events` happen
    one by one, each at the yield, or (0) at the sleep, it is due at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = pair()
        self.ours = Link(ours, blocking=False)
        self.theirs = Link(theirs, blocking=True, spin_us=100)
        self._socket = theirs
        self._now = 0
        self._yields = self._sleeps = 0
        self._due = 0
        self._event: Callable[[], object] = list
        monkeypatch.setattr(self.theirs, "_socket", self)
        monkeypatch.setattr("shardengine.ipc.link.time.perf_counter_ns", lambda: self._pass(1))
        monkeypatch.setattr("shardengine.ipc.spin.os.sched_yield", self._yield)

    def _pass(self, microseconds: int) -> int:
        self._now += 1_000 * microseconds
        return self._now

    def _yield(self) -> None:
        self._pass(10)
        self._yields += 1
        if self._yields == self._due:
            self._event()

    def recv_into(self, buffer: bytearray, size: int = 0, flags: int = 0) -> int:
        if not flags:
            self._sleeps += 1
            self._event()
        return self._socket.recv_into(buffer, size, flags)

    def receive(self, *, due: int, after_us: int = 0) -> tuple[int, int]:
        """Wait for a message that comes at yield `due`, or `after_us` after falling asleep. How often the link yielded
        and slept for it."""

        def event() -> None:
            self._pass(after_us)
            self.ours.send(b"message")

        self._yields, self._sleeps, self._due, self._event = 0, 0, due, event
        assert self.theirs.receive() == b"message"
        return self._yields, self._sleeps


def test_a_spinning_end_polls_for_as_long_as_it_was_told_where_that_would_lately_have_paid_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = Waiting(monkeypatch)
    assert waiting.receive(due=0) == (0, 1)
    assert waiting.receive(due=5) == (5, 0)
    assert waiting.receive(due=0) == (10, 1)
    assert waiting.receive(due=0, after_us=500) == (0, 1)
    assert waiting.receive(due=0, after_us=500) == (0, 1)
    assert waiting.receive(due=0) == (0, 1)
    assert waiting.receive(due=1) == (1, 0)
    waiting.ours.close()
    waiting._socket.close()


def test_what_a_full_socket_does_not_take_is_queued_and_sent_in_order(links: tuple[Link, Link]) -> None:
    ours, theirs = links
    sent: list[bytes] = []
    while not ours.wants_write:
        sent.append(b"%d" % len(sent) * 500)
        ours.send(sent[-1])
    received: list[bytes | None] = []
    for _ in range(50):  # there is room again, but not for those who came later
        received.append(theirs.receive())
        sent.append(b"%d" % len(sent) * 500)
        ours.send(sent[-1])
    assert ours.wants_write
    while len(received) < len(sent):
        received.append(theirs.receive())
        ours.flush()
    assert received == sent
    assert ours.flush() and not ours.wants_write


class Refusing(socket.socket):
    """Its next sends meet with `refusals` of the system."""

    refusals: tuple[int, ...] = ()

    def send(self, data: Any, flags: int = 0, /) -> int:
        if self.refusals:
            number, self.refusals = self.refusals[0], self.refusals[1:]
            raise OSError(number, os.strerror(number))
        return super().send(data, flags)


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM])
def test_a_message_that_the_system_has_no_memory_for_is_sent_later_and_in_order(number: int) -> None:
    ours, theirs = pair()
    short = Refusing(fileno=ours.detach())
    writer, reader = Link(short, blocking=False), Link(theirs, blocking=False)
    short.refusals = (number, number)
    writer.send(b"first")
    assert writer.wants_write
    writer.send(b"second")
    assert [reader.receive(), reader.receive()] == [b"first", b"second"]
    writer.close()
    reader.close()


@pytest.mark.parametrize(("blocking", "number"), [(True, errno.ENOBUFS), (False, errno.EIO)])
def test_a_message_that_cannot_be_sent_ends_the_link_for_both_sides(blocking: bool, number: int) -> None:
    ours, theirs = pair()
    short = Refusing(fileno=ours.detach())
    writer, reader = Link(short, blocking=blocking), Link(theirs, blocking=False)
    reader.send(b"sent before")
    writer.send(b"before")
    short.refusals = (number,)
    with pytest.raises(LinkClosedError):
        writer.send(b"lost")
    with pytest.raises(LinkClosedError):
        writer.send(b"behind it")
    assert [writer.receive(), reader.receive()] == [b"sent before", b"before"]
    for link in (writer, reader):
        with pytest.raises(LinkClosedError, match="end of file"):
            link.receive()
        link.close()


@given(batches=st.lists(st.lists(st.binary(max_size=300), max_size=5), max_size=10))
def test_nothing_to_read_is_a_value_and_not_an_error(batches: list[list[bytes]]) -> None:
    one, other = (Link(end, blocking=False) for end in pair())
    for batch in batches:
        assert other.receive() is None
        for message in batch:
            one.send(message)
        assert [other.receive() for _ in batch] == batch
    assert other.receive() is None
    one.close()
    other.close()


@pytest.mark.parametrize("blocking", [True, False])
def test_the_end_of_a_link_comes_after_everything_that_was_sent(blocking: bool) -> None:
    ours, theirs = pair()
    writer, reader = Link(ours, blocking=False), Link(theirs, blocking=blocking)
    sent = [b"first", b"", bytes(PACKET_BYTES * 2), b"last"]
    for message in sent:
        writer.send(message)
    assert not writer.wants_write
    writer.close()
    assert [reader.receive() for _ in sent] == sent
    for _ in range(2):
        with pytest.raises(LinkClosedError, match="end of file"):
            reader.receive()
    with pytest.raises(LinkClosedError, match="peer of a link is gone"):
        reader.send(b"anybody?")
    reader.close()


def test_a_message_cut_short_by_death_is_no_message(links: tuple[Link, Link]) -> None:
    ours, theirs = links
    ours.send(b"whole")
    ours.send(bytes(8 << 20))
    assert ours.wants_write, "more than the socket holds"
    ours.close()
    assert theirs.receive() == b"whole"
    with pytest.raises(LinkClosedError):
        theirs.receive()


def test_neither_end_is_inherited() -> None:
    for end in pair():
        assert not end.get_inheritable()
        end.close()
