"""The life of a state machine without workers, over each store: start, stop, views, resets, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardengine import (
    BadEntryError,
    ConfigError,
    Delete,
    EngineStateError,
    EngineStoppedError,
    HardState,
    HardStateError,
    KeyValue,
    LogId,
    LogOrderError,
    Machine,
    MachineImportError,
    Put,
    ViewClosedError,
    WrongThreadError,
    encode,
)
from shardengine.engine.adaptors.base import InProcess
from shardengine.shards.types import Limits
from tests.adaptors import KINDS, made
from tests.directories import puts
from tests.machines import Unhappy
from tests.model import log_of

Make = Callable[..., InProcess]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes state machines of one kind, each in a directory of its own, and stops them in the end."""
    all_made = list[InProcess]()

    def make(machine: type[Machine] = KeyValue, **options: Any) -> InProcess:
        all_made.append(made(request.param, tmp_path / str(len(all_made)), machine, **options))
        return all_made[-1]

    yield make
    for each in all_made:
        each.stop()


READS: list[Callable[[InProcess], Any]] = [
    lambda memory: memory.get(b"k1"),
    lambda memory: memory.get_multi([b"k1"]),
    lambda memory: memory.scan_prefix(b""),
    lambda memory: memory.view(),
    len,
    lambda memory: memory.is_empty(),
    lambda memory: memory.last_applied(),
    lambda memory: memory.entry_term(1),
    lambda memory: memory.check(b""),
    lambda memory: memory.flush(),
    lambda memory: memory.update_last_applied(LogId(3, 1)),
    lambda memory: memory.persist_last_applied(LogId(3, 1)),
]


@pytest.mark.parametrize("read", READS, ids=range(len(READS)))
async def test_nothing_is_read_before_the_start_or_after_the_stop(read: Callable[[InProcess], Any], make: Make) -> None:
    memory = make()
    with pytest.raises(EngineStateError, match="does not run: its storage is not open") as caught:
        read(memory)
    assert not isinstance(caught.value, EngineStoppedError)
    memory.start()
    await memory.apply_chunk(puts(1, 3))
    read(memory)
    memory.stop()
    with pytest.raises(EngineStoppedError, match="it was stopped"):
        read(memory)


async def test_awaited_methods_are_refused_after_the_stop(tmp_path: Path, make: Make) -> None:
    memory = make()
    memory.start()
    memory.stop()
    calls = [memory.apply_chunk([]), memory.apply_chunk(puts(1, 1)), memory.flush_async(), memory.reset()]
    for call in [*calls, memory.digest(), memory.generate_snapshot_data(tmp_path / "none")]:
        with pytest.raises(EngineStoppedError):
            await call
    assert not (tmp_path / "none").exists()


async def test_a_start_goes_on_with_what_the_stop_left(make: Make) -> None:
    memory = make()
    assert (memory.start().outcome, memory.is_running(), bool(memory)) == ("created", True, True)
    with pytest.raises(EngineStateError, match="runs already"):
        memory.start()
    await memory.apply_chunk(puts(1, 3, term=2))
    view = memory.view()
    memory.stop()
    memory.stop()
    assert not memory.is_running()
    with pytest.raises(ViewClosedError, match="revision 3 cannot be read: its engine was stopped"):
        view.get(b"k1")
    report = memory.start()
    assert (report.outcome, report.last_applied, memory.get(b"k3")) == ("opened", LogId(3, 2), b"v3")
    assert [result.already_applied for result in await memory.apply_chunk(puts(3, 2, term=2))] == [True, False]


async def test_a_view_stays_as_it_was_until_it_is_closed(make: Make) -> None:
    async with make() as memory:
        await memory.apply_chunk(puts(1, 3))
        with memory.view() as view:
            await memory.apply_chunk(log_of([encode(Delete(b"k1")), encode(Put(b"k2", b"new"))], first=4))
            assert (view.revision, view.get_multi([b"k1", b"k2"]), len(view)) == (3, [b"v1", b"v2"], 3)
            assert [key for key, _ in view.scan_prefix(b"k", limit=2).entries] == [b"k1", b"k2"]
            assert memory.get_multi([b"k1", b"k2"]) == [None, b"new"]
        assert view.closed
        with pytest.raises(ViewClosedError, match="it was closed"):
            len(view)
        other = memory.view()
        await memory.reset()
        with pytest.raises(ViewClosedError, match="state was replaced"):
            other.get(b"k2")


async def test_a_log_begins_where_it_is_told_and_a_reset_goes_back_to_its_head(make: Make) -> None:
    async with make() as memory:
        memory.update_last_applied(LogId(0, 0))
        memory.persist_last_applied(LogId(50, 4))
        memory.update_last_applied(LogId(49, 9))
        assert (memory.last_applied(), memory.entry_term(50), memory.entry_term(49)) == (LogId(50, 4), 4, None)
        with pytest.raises(LogOrderError, match="term"):
            memory.update_last_applied(LogId(60, 3))
        with pytest.raises(LogOrderError, match="no LogId"):
            memory.update_last_applied((60, 4))  # type: ignore[arg-type]
        await memory.apply_chunk(puts(51, 2, term=4))
        memory.update_last_applied(LogId(60, 5))
        assert (memory.last_applied(), memory.entry_term(60)) == (LogId(60, 5), 5)
        await memory.reset()
        assert (memory.last_applied(), len(memory), memory.entry_term(50)) == (LogId(0, 0), 0, None)
        await memory.apply_chunk(puts(1, 1))


async def test_a_vote_is_cast_once_a_term_and_terms_do_not_fall(make: Make) -> None:
    async with make() as memory:
        memory.save_hard_state()
        assert memory.hard_state() is None
        memory.save_hard_state(HardState(3, None))
        memory.save_hard_state(HardState(3, "a"))
        for wrong in (HardState(2, None), HardState(3, "b"), HardState(3, None), HardState(-1, "a")):
            with pytest.raises(HardStateError):
                memory.save_hard_state(wrong)
        await memory.reset()
        assert memory.hard_state() == HardState(3, "a")
        assert await memory.lease_background_cleanup() == []


async def test_who_waits_for_an_index_goes_on_when_it_is_applied_passed_over_or_out_of_reach(make: Make) -> None:
    async with make() as memory:
        await memory.wait_applied(0)
        waits = [asyncio.create_task(memory.wait_applied(index)) for index in (3, 2, 9, 20)]
        await asyncio.sleep(0)
        await memory.apply_chunk(puts(1, 2))
        await waits[1]
        assert not waits[0].done()
        await memory.apply_chunk(puts(3, 1))
        await waits[0]
        assert not waits[2].done()
        memory.update_last_applied(LogId(9, 1))
        await waits[2]
        await memory.wait_applied(9, timeout=0)
        with pytest.raises(TimeoutError):
            await memory.wait_applied(10, timeout=0)
        memory.stop()
        with pytest.raises(EngineStoppedError, match="the engine stopped"):
            await waits[3]
        with pytest.raises(EngineStoppedError):
            await memory.wait_applied(1)


async def test_what_an_engine_does_to_its_disk_answers_as_it_does(make: Make) -> None:
    memory = make()
    memory.close_storage()
    for call in (memory.compact(), memory.restore("nowhere")):
        with pytest.raises(EngineStateError):
            await call
    with pytest.raises(EngineStateError):
        memory.durable()
    async with memory:
        await memory.apply_chunk(puts(1, 3))
        assert memory.durable() == LogId(0, 0)
        with pytest.raises(EngineStateError, match="the engine runs"):
            memory.close_storage()
        view = memory.view()
        await memory.compact()
        assert (view.closed, len(memory), memory.last_applied()) == (True, 3, LogId(3, 1))
    memory.close_storage()


async def test_it_belongs_to_its_thread(make: Make) -> None:
    caught: list[BaseException] = []

    def use(memory: InProcess) -> None:
        try:
            memory.get(b"k1")
        except WrongThreadError as error:
            caught.append(error)

    async with make() as memory:
        thread = threading.Thread(target=use, args=(memory,))
        thread.start()
        thread.join()
    assert len(caught) == 1


def test_what_is_no_machine_is_refused(make: Make) -> None:
    with pytest.raises(MachineImportError, match="no class that implements Machine"):
        make(Put)
    with pytest.raises(ConfigError, match="key_bytes_max"):
        make(limits=Limits(key_bytes_max=481))

    class Unmade(KeyValue):
        def __init__(self) -> None:
            raise RuntimeError("not today")

    memory = make(Unmade)
    with pytest.raises(MachineImportError, match="not today"):
        memory.start()
    assert not memory.is_running()


async def test_a_machine_whose_keys_fail_is_told_as_by_an_engine(make: Make) -> None:
    async with make(Unhappy) as memory:
        with pytest.raises(BadEntryError, match=r"entry 1: the machine's keys\(\).* failed: RuntimeError: keys are"):
            await memory.apply_chunk(puts(1, 1))
