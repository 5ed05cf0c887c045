"""The state machine in memory against the engine, against the dict model, and by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from shardengine import (
    ApplyResult,
    BadEntryError,
    ChunkFailedError,
    CompareAndSwap,
    Context,
    Delete,
    Engine,
    EngineConfig,
    EngineError,
    Entry,
    KeyValue,
    LogId,
    Machine,
    Put,
    Tx,
    encode,
)
from shardengine.adaptors import MemoryStateMachine
from shardengine.engine.adaptors.records import Records
from shardengine.engine.adaptors.state import State
from shardengine.engine.intake.tail import Tail
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.shards.types import Limits
from tests.directories import puts
from tests.machines import Add, Bloat, Fail, Ledger, Move, Reject, Stamp, Trespass
from tests.model import Model, log_of
from tests.unruly import Transfer, Transfers

VALUE_BYTES = 64
Told = tuple[Any, ...]


async def told(call: Awaitable[Any]) -> Told:
    """What a call comes to: its result, or its error with all that it says, but for where it was raised."""
    try:
        return ("returned", await call)
    except EngineError as error:
        facts = {name: value for name, value in error.facts.items() if name != "traceback"}
        return (type(error), error.message, error.hint, facts)


def alike(engine: Told, memory: Told) -> bool:
    """Of several entries of a chunk that fail, an engine may name a later one: a shard says no before the coordinator
    comes to its own commands."""
    if engine == memory:
        return True
    failed = [0 if answer[0] == "returned" else answer[-1].get("index", 0) for answer in (memory, engine)]
    return 0 < failed[0] < failed[1]


class Step(NamedTuple):
    """One entry to be: its data, by how much the term rises (or falls) before it, and its proposer's clock."""

    data: bytes
    rise: int
    time_ms: int


class Chunk(NamedTuple):
    """A chunk to be: how far before (or behind) the next index it begins, and its entries."""

    back: int
    steps: list[Step]


KEYS = st.sampled_from([b"a", b"b", b"c/1", b"c/2", b"", bytes(481)]) | st.binary(min_size=1, max_size=4)
VALUES = st.sampled_from([b"", b"1", b"2"]) | st.binary(max_size=VALUE_BYTES + 1)
NUMBERS = st.sampled_from([b"a/1", b"a/2", b"b", b"c"])
AMOUNTS = st.integers(-5, 20)
KV = (
    st.builds(Put, KEYS, VALUES) | st.builds(Delete, KEYS) | st.builds(CompareAndSwap, KEYS, st.none() | VALUES, VALUES)
)
LEDGER = (
    st.builds(Add, NUMBERS, AMOUNTS)
    | st.builds(Move, NUMBERS, NUMBERS, AMOUNTS)
    | st.builds(Stamp, NUMBERS)
    | st.builds(Reject, NUMBERS, st.text(max_size=3))
    | st.builds(Bloat, NUMBERS, st.sampled_from([0, 3, VALUE_BYTES, VALUE_BYTES + 1]))
)
SUMS = st.sampled_from([b"a/1", b"a/2", b"b/1", b"c/1", b"d/1"])
TRANSFERS = st.builds(Transfer, SUMS, SUMS, AMOUNTS)
ODD = st.sampled_from(
    [
        encode(Fail(b"b")),
        encode(Trespass(b"b", b"c", "put")),
        encode(Trespass(b"a/1", b"", "get")),
        encode(Bloat(b"c", VALUE_BYTES + 1)),
        b"",
        b"\xc1",
        encode([7]),
        encode(Put(b"", b"")),
        encode(Put(b"big", bytes(VALUE_BYTES + 1))),
    ]
)


def chunks_with(commands: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Chunk]]:
    usual = commands.map(encode)
    datas = st.sampled_from([*[usual] * 9, ODD]).flatmap(lambda kind: kind)
    step = st.builds(Step, datas, st.sampled_from([0] * 12 + [1, 3, -1]), st.integers(0, 1 << 20))
    chunk = st.builds(Chunk, st.sampled_from([0] * 8 + [1, 3, 9, -1, -5]), st.lists(step, max_size=12))
    return st.lists(chunk, min_size=1, max_size=8)


class Pair:
    """An engine and a state machine in memory, which are told the same and must answer alike."""

    def __init__(self, path: Path, machine: type[Machine], shards: int, bad_entry: Literal["fail", "reject"]) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._engine = Engine(
            path,
            machine=machine,
            config=EngineConfig(shards=shards, bad_entry=bad_entry, value_bytes_max=VALUE_BYTES),
        )
        self._memory = MemoryStateMachine(machine, limits=Limits(value_bytes_max=VALUE_BYTES), bad_entry=bad_entry)
        self._engine.start()
        self._memory.start()

    def close(self) -> None:
        self._runner.run(self._engine.aclose())
        self._runner.close()

    def run(self, chunks: list[Chunk]) -> None:
        self._runner.run(self._run(chunks))

    async def _run(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            entries = self._entries(chunk)
            for entry in entries:
                assert await told(_checked(self._memory, entry.data)) == await told(_checked(self._engine, entry.data))
            answers = [await told(machine.apply_chunk(entries)) for machine in (self._engine, self._memory)]
            assert alike(*answers)
            assert self._memory.last_applied() == self._engine.last_applied()
        engine, memory = self._engine, self._memory
        assert memory.scan_prefix(b"") == engine.scan_prefix(b"")
        assert (len(memory), await memory.digest()) == (len(engine), await engine.digest())
        last = engine.last_applied().index
        for index in (0, 1, last // 2, last, last + 1):
            assert memory.entry_term(index) == engine.entry_term(index)

    def _entries(self, chunk: Chunk) -> list[Entry]:
        last = self._memory.last_applied()
        first = max(0, last.index + 1 - chunk.back)
        term = self._memory.entry_term(first) or last.term or 1
        entries = []
        for index, step in enumerate(chunk.steps, first):
            term = max(0, term + step.rise)
            entries.append(Entry(index, self._memory.entry_term(index) or term, step.data, step.time_ms))
        return entries


async def _checked(machine: Engine | MemoryStateMachine, data: bytes) -> None:
    machine.check(data)


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(tmp_path / "db", *request.param)
    yield made
    made.close()


@pytest.mark.parametrize("pair", [(KeyValue, 2, "fail"), (KeyValue, 3, "reject")], indirect=True, ids=str)
@given(chunks=chunks_with(KV))
@settings(max_examples=40)
def test_the_built_in_machine_answers_as_in_an_engine(pair: Pair, chunks: list[Chunk]) -> None:
    pair.run(chunks)


@pytest.mark.parametrize("pair", [(Ledger, 3, "fail"), (Ledger, 2, "reject")], indirect=True, ids=str)
@given(chunks=chunks_with(LEDGER))
@settings(max_examples=40)
def test_a_machine_of_ones_own_answers_as_in_an_engine(pair: Pair, chunks: list[Chunk]) -> None:
    pair.run(chunks)


@pytest.mark.parametrize("pair", [(Transfers, 3, "reject"), (Transfers, 2, "fail")], indirect=True, ids=str)
@given(chunks=chunks_with(TRANSFERS))
@settings(max_examples=40)
def test_commands_over_several_partitions_answer_as_in_an_engine(pair: Pair, chunks: list[Chunk]) -> None:
    pair.run(chunks)


# ---- by itself -------------------------------------------------------------------------------------------------------


@given(steps=st.lists(KV | st.none(), max_size=60), cuts=st.lists(st.integers(1, 20), min_size=1))
@settings(max_examples=100)
def test_results_contents_and_digest_are_those_of_a_dict(steps: list[Any], cuts: list[int]) -> None:
    datas = [b"" if step is None else encode(step) for step in steps]
    asyncio.run(_against_the_model([data for data in datas if _is_good(data)], cuts))


def _is_good(data: bytes) -> bool:
    memory = MemoryStateMachine()
    memory.start()
    try:
        memory.check(data)
    except BadEntryError:
        return False
    return True


async def _against_the_model(datas: list[bytes], cuts: list[int]) -> None:
    model, entries = Model(), log_of(datas)
    async with MemoryStateMachine() as memory:
        at = 0
        while at < len(entries):
            for cut in cuts:
                chunk = entries[at : at + cut]
                at += cut
                assert await memory.apply_chunk(chunk) == model.apply(chunk)
        assert memory.scan_prefix(b"").entries == model.scan(b"")
        assert (len(memory), memory.is_empty()) == (len(model.data), not model.data)
        assert await memory.digest() == model.digest()
        assert memory.last_applied().index == len(entries)
        assert memory.get_multi([b"a", b"b", b"none"]) == [model.data.get(key) for key in (b"a", b"b", b"none")]


Write = tuple[bytes, bytes | None]
FEW = st.lists(st.sampled_from([b"a", b"b", b"\xff"]), max_size=2).map(b"".join)


@given(
    steps=st.lists(st.lists(st.tuples(FEW, st.none() | FEW)) | st.just("scan"), max_size=12),
    prefix=FEW,
    start_after=st.none() | FEW,
    reverse=st.booleans(),
)
@settings(max_examples=300)
def test_records_are_scanned_in_order_whatever_was_written_between(
    steps: list[list[Write] | str], prefix: bytes, start_after: bytes | None, reverse: bool
) -> None:
    records, model = Records(), dict[bytes, bytes]()
    for step in [*steps, "scan"]:
        if isinstance(step, str):
            expected = sorted(model.items(), reverse=reverse)
            if start_after is not None:
                expected = [one for one in expected if (one[0] < start_after if reverse else one[0] > start_after)]
            expected = [one for one in expected if one[0].startswith(prefix)]
            assert list(records.under(prefix, start_after, reverse=reverse)) == expected
            continue
        records.write(dict(step))
        for key, value in dict(step).items():
            model.pop(key, None) if value is None else model.update({key: value})
    assert len(records) == len(model)
    assert list(records.copy().under(b"")) == sorted(model.items())


async def test_scans_know_limits_and_refuse_what_is_none() -> None:
    async with MemoryStateMachine() as memory:
        await memory.apply_chunk(puts(1, 5))
        found = memory.scan_prefix(b"k", limit=2, start_after=b"k4", reverse=True)
        assert (found.entries, found.revision, found.more) == ([(b"k3", b"v3"), (b"k2", b"v2")], 5, True)
        assert not memory.scan_prefix(b"k", limit=5).more
        with pytest.raises(ValueError, match="limit is -1"):
            memory.scan_prefix(b"k", limit=-1)
        with pytest.raises(TypeError):
            memory.get("k1")  # type: ignore[arg-type]
        assert memory.get(bytearray(b"k1")) == b"v1"  # type: ignore[arg-type]


async def test_values_are_given_back_as_they_travel() -> None:
    class Echo(KeyValue):
        def apply(self, tx: Tx, command: Any, context: Context) -> Any:
            return ((1, 2), {b"a": (context.index,)})

    async with MemoryStateMachine(Echo) as memory:
        (result,) = await memory.apply_chunk(puts(1, 1))
        assert result == ApplyResult(1, True, [[1, 2], {b"a": [1]}])


async def test_a_chunk_that_fails_leaves_nothing_and_its_error_has_what_apply_raised_as_its_cause() -> None:
    async with MemoryStateMachine(Ledger) as memory:
        await memory.apply_chunk(log_of([encode(Add(b"a", 1))]))
        digest = await memory.digest()
        with pytest.raises(ChunkFailedError, match="entry 3 failed its chunk: ValueError: told to fail") as caught:
            await memory.apply_chunk(log_of([encode(Add(b"a", 1)), encode(Fail(b"b"))], first=2))
        assert isinstance(caught.value.__cause__, ValueError)
        assert not getattr(caught.value, "__notes__", [])
        assert (await memory.digest(), memory.last_applied()) == (digest, LogId(1, 1))
        assert [one.value for one in await memory.apply_chunk(log_of([encode(Add(b"a", 1))], first=2))] == [2]


class Interrupted(KeyValue):
    name: ClassVar[str] = "test.interrupted"

    def apply(self, tx: Tx, command: Any, context: Context) -> None:
        tx.put(command.key, b"a trace")
        raise KeyboardInterrupt


class Interrupting(dict[bytes, bytes | None]):
    """Writes that are interrupted once, before the one that `left` counts down to."""

    left = 0

    def items(self) -> Any:
        for write in super().items():
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            yield write


def test_an_interrupt_between_two_writes_leaves_what_was_decided_to_be_carried_out() -> None:
    states = [[(b"a", b"1"), (b"b", b"1"), (b"d", b"1")], [(b"a", b"1"), (b"c", b"2"), (b"d", b"2")]]
    writes = Interrupting({b"b": None, b"c": b"2", b"d": b"2", b"x": None})
    ends, seen = (Tail(3, 1, 0, [LogId(1, 1)]), Tail(9, 2, 0, [LogId(1, 1), LogId(4, 2)])), set()
    for writes.left in range(1, 6):
        records = Records(dict(states[0]))
        records.write({b"new": b""})
        records.write({b"new": None})
        state = State(DirectoryConfig(1, "", "", 1, 1, Limits(), "fail"), records, ends[0])
        with suppress(KeyboardInterrupt):
            state.move(writes, ends[1])
            list(records.under(b""))
        state.settle()
        seen.add(state.last)
        assert list(records.under(b"")) == states[state.last.index > 3]
        assert len(records) == 3
    assert seen == {LogId(9, 2)}


async def test_an_interrupt_of_apply_is_let_through_and_leaves_nothing() -> None:
    async with MemoryStateMachine(Interrupted) as memory:
        with pytest.raises(KeyboardInterrupt):
            await memory.apply_chunk(puts(1, 1))
        assert (memory.is_empty(), memory.last_applied()) == (True, LogId(0, 0))
