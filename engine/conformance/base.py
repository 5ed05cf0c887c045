"""What the suite is told about a machine, what a failure says, and how a check is run."""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

from shardengine import (
    ApplyResult,
    CompareAndSwap,
    Delete,
    Entry,
    Put,
    ScanResult,
    StateMachine,
    encode,
)
from shardengine.engine.conformance.log import Log, Move, Operation, mixed

try:
    import pytest
except ModuleNotFoundError as error:
    if error.name != "pytest":
        raise
    raise ModuleNotFoundError(
        "shardengine.conformance needs pytest: pip install 'shardengine[conformance]'", name="pytest"
    ) from error

GROUPS = frozenset(
    (
        "delete",
        "swap",
        "spanning",
        "failing",
        "get_multi",
        "scan",
        "standing",
        "snapshots",
        "reset",
        "hard_state",
        "reopen",
        "kills",
    )
)
KEYS = 24
_SHOWN = 4


class Reads(Protocol):
    """What the groups "get_multi" and "scan" need beyond the contract."""

    def get_multi(self, keys: Iterable[bytes]) -> list[bytes | None]: ...
    def scan_prefix(
        self, prefix: bytes, limit: int | None = None, start_after: bytes | None = None, reverse: bool = False
    ) -> ScanResult: ...


class MachineUnderTest(StateMachine, Reads, Protocol):
    """What `build` returns. A machine whose suite leaves out "get_multi" or "scan" need not have those."""


class Hooks:
    """See `StateMachineSuite`."""

    supports: ClassVar[frozenset[str]] = GROUPS - {"spanning"}
    kills: ClassVar[int] = 12
    watchdog_s: ClassVar[float] = 60.0

    def build(self, directory: Path) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no build(self, directory)")

    def key(self, number: int) -> bytes:
        """Some are prefixes of others, and those go on with the lowest and the highest byte, which some begin with."""
        return (b"key/%d", b"key/%d\0", b"key/%d\xff", b"\xffkey/%d")[number % 4] % (number // 4)

    def value(self, number: int) -> bytes:
        return b"value %d, " % number * 4 if number else b""

    def put(self, key: bytes, value: bytes) -> bytes:
        return encode(Put(key, value))

    def delete(self, key: bytes) -> bytes:
        return encode(Delete(key))

    def swap(self, key: bytes, expected: bytes | None, value: bytes) -> bytes:
        return encode(CompareAndSwap(key, expected, value))

    def move(self, source: bytes, target: bytes) -> bytes:
        raise NotImplementedError(f"{type(self).__name__} supports 'spanning', and has no move(self, source, target)")

    def failing(self) -> bytes:
        return b"\xc1"  # no msgpack, hence no command

    # ---- of the suite --------------------------------------------------------------------------------------------

    def keys(self, number: int = KEYS) -> list[bytes]:
        return [self.key(n) for n in range(number)]

    def values(self) -> Iterator[bytes]:
        return map(self.value, count())

    def log(self, seed: int = 1) -> Log:
        """One with all that the machine supports in it."""
        kinds = {"delete": Delete, "swap": CompareAndSwap, "spanning": Move}
        more = [kind for need, kind in kinds.items() if need in self.supports]
        return Log(mixed(self.keys(), self.values(), [Put, Put, Put, type(None), *more, *more], seed))

    def encoded(self, operation: Operation) -> bytes:
        match operation:
            case Put(key, value):
                return self.put(key, value)
            case Delete(key):
                return self.delete(key)
            case CompareAndSwap(key, expected, value):
                return self.swap(key, expected, value)
            case Move(source, target):
                return self.move(source, target)
            case None:
                return b""

    def entries(self, log: Log, first: int, last: int) -> list[Entry]:
        datas = map(self.encoded, log.operations(first, last))
        return [Entry(index, log.term(index), data) for index, data in enumerate(datas, first)]

    async def feed(self, machine: MachineUnderTest, log: Log, first: int, last: int, width: int = 7) -> None:
        """Apply those entries, `width` in a chunk, and check their results."""
        for at in range(first, last + 1, width):
            end = min(at + width - 1, last)
            entries = self.entries(log, at, end)
            expect_results(await machine.apply_chunk(entries), log, at, end)
            demand(entries == self.entries(log, at, end), "apply_chunk leaves the entries that it is given as they are")

    @contextmanager
    def running(self, directory: Path) -> Iterator[MachineUnderTest]:
        """A machine over that directory, started; it is stopped at the end, whatever happens."""
        directory.mkdir(parents=True, exist_ok=True)
        machine: MachineUnderTest = self.build(directory)
        try:
            machine.start()
            yield machine
        finally:
            if machine.is_running():
                machine.stop()
            else:
                with suppress(Exception):  # it may have failed, and have something to end all the same
                    machine.stop()

    def expect_state(self, machine: MachineUnderTest, log: Log, index: int, when: str) -> None:
        """Fail unless the machine stands at that entry, with exactly the records behind it."""
        expect(
            machine.last_applied(), log.name(index), f"{when}, last_applied() names the newest entry that was applied"
        )
        expect_records(self.found(machine), log.contents(index), f"{when}, reads see the state at entry {index}")
        records = len(log.contents(index))
        expect((len(machine), machine.is_empty()), (records, not records), f"{when}, len() and is_empty() at {index}")
        for at in range(index, 0, -1 - index // 100):
            term = machine.entry_term(at)
            if at == index or term is not None:
                expect(term, log.term(at), f"{when}, entry_term({at}) is that entry's term")
        expect(machine.entry_term(index + 1), None, f"{when}, entry_term({index + 1}), of an entry not applied yet")
        if "scan" in self.supports:
            expect_records(dict(machine.scan_prefix(b"").entries), log.contents(index), f"{when}, so does a scan")

    def found(self, machine: MachineUnderTest) -> dict[bytes, bytes]:
        """What the keys of the suite have now."""
        return {key: value for key in self.keys() if (value := machine.get(key)) is not None}


# ---- what a failure says ---------------------------------------------------------------------------------------------


def broken(sentence: str) -> NoReturn:
    """Fail with what the contract demands."""
    __tracebackhide__ = True
    pytest.fail(f"The contract demands: {sentence}.")


def demand(held: bool, sentence: str) -> None:
    """Fail unless it is so."""
    __tracebackhide__ = True
    if not held:
        broken(sentence)


def expect(found: object, expected: object, sentence: str) -> None:
    __tracebackhide__ = True
    demand(found == expected, f"{sentence}: {reprlib.repr(expected)}; it is {reprlib.repr(found)}")


def expect_records(found: Mapping[bytes, bytes], expected: Mapping[bytes, bytes], sentence: str) -> None:
    __tracebackhide__ = True
    wrong = [key for key in sorted(found.keys() | expected.keys()) if found.get(key) != expected.get(key)]
    said = [f"{key!r} is {found.get(key)!r}, to be {expected.get(key)!r}" for key in wrong[:_SHOWN]]
    demand(not wrong, f"{sentence}; wrong keys, {len(wrong)} of them: {'; '.join(said)}")


def expect_results(results: Sequence[ApplyResult], log: Log, first: int, last: int, known: int = 0) -> None:
    """Fail unless there is one result for each entry, in order, that says what became of it; the first `known` of them
    were applied before."""
    __tracebackhide__ = True
    expect(len(results), last - first + 1, f"apply_chunk gives one result for each entry of {first} to {last}")
    for index, result in enumerate(results, first):
        expect(
            result.index, index, f"the result in place {index - first} of a chunk from {first} on is of entry {index}"
        )
        applied = index < first + known
        expect(result.already_applied, applied, f"already_applied of entry {index} tells whether it was applied before")
        if not applied:
            expect(
                result.succeeded, log.succeeds(index), f"succeeded of entry {index} tells whether it was not refused"
            )


@contextmanager
def refusal(sentence: str) -> Iterator[None]:
    """Fail unless the block raises."""
    __tracebackhide__ = True
    try:
        yield
    except Exception:
        return
    broken(f"{sentence}; nothing was raised")


# ---- how a check is run ----------------------------------------------------------------------------------------------

Result = TypeVar("Result")
Body = Callable[[Any, Path], Coroutine[Any, Any, None]]


def check(*needs: str, bounded: bool = True) -> Callable[[Body], Callable[[Any, Path], None]]:
    """Make a test of a coroutine function: run it in a loop of its own, within the suite's time unless it has bounds of
    its own; skip it, and say why, when the machine does not support what it needs."""

    def made(body: Body) -> Callable[[Any, Path], None]:
        @wraps(body)
        def test(self: Hooks, tmp_path: Path) -> None:
            need(self, *needs)
            asyncio.run(_within(body(self, tmp_path), self.watchdog_s if bounded else None))

        return test

    return made


def need(suite: Hooks, *needs: str) -> None:
    unknown = sorted(suite.supports - GROUPS)
    if unknown:
        pytest.fail(f"supports names {unknown}, which is none of {sorted(GROUPS)}")
    lacking = [name for name in needs if name not in suite.supports]
    if lacking:
        pytest.skip(f"{type(suite).__name__} leaves out {', '.join(lacking)}: its `supports` does not name it")


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, Result]) -> AsyncIterator[asyncio.Task[Result]]:
    """Do work while the block runs, and wait for it at its end. Where either fails, the other ends, too."""
    task = asyncio.create_task(work)
    try:
        yield task
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # it was told already, or is not what is wrong


async def _within(work: Awaitable[None], seconds: float | None) -> None:
    async with asyncio.timeout(seconds):
        await work
