"""What a machine does wrong is told by name, with what to do, and harms nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardengine import (
    BadEntryError,
    ChunkFailedError,
    Context,
    Engine,
    Entry,
    LogId,
    Machine,
    MachineImportError,
    Tx,
    UndeclaredKeyError,
    encode,
)
from shardengine.adaptors import MemoryStateMachine
from shardengine.shards.placement import shard_of, slot_of
from tests.commands import cli
from tests.wrong import NAMES, RESULTS, TOUCHES, Do, Doer, Namer, Untagged, WithArguments

OWN, OTHER = (
    b"a/2",
    next(
        b"%c/1" % letter for letter in b"bcdefgh" if shard_of(slot_of(b"%c" % letter), 2) != shard_of(slot_of(b"a"), 2)
    ),
)
"""A second key that does not make a command span two shards, and one that does."""


def entry(what: str, b: bytes = OWN, index: int = 1) -> Entry:
    return Entry(index, 1, encode(Do(b"a/1", b, what)))


async def failure(db: Engine | MemoryStateMachine, what: str, b: bytes) -> ChunkFailedError:
    """What a chunk fails with whose second entry does `what`."""
    with pytest.raises(ChunkFailedError) as caught:
        await db.apply_chunk([entry("", b), entry(what, b, 2)])
    assert caught.value.index == 2
    assert (len(db), db.last_applied()) == (0, LogId(0, 0))
    return caught.value


# ---- apply -----------------------------------------------------------------------------------------------------------

ANSWERS = {
    "object": "apply returned an object that does not travel: Encoding objects of type object is unsupported",
    "deep": "apply returned a dict that does not travel",
    "huge": "apply returned an int that does not travel: can't serialize ints",
    "low": "apply returned an int that does not travel: can't serialize ints",
    "lambda": "apply returned a function that does not travel",
    "cycle": "apply returned a list that does not travel",
    "surrogate": "apply returned a str that does not travel",
    "exit": "SystemExit: 4",
    "interrupt": "KeyboardInterrupt",
    "recurse": "RecursionError",
}
TOUCHED = {
    "put str": "apply put a value of type str; allowed are bytes",
    "put None": "apply put a value of type NoneType; allowed are bytes",
    "put bytearray": "apply put a value of type bytearray; allowed are bytes",
    "put long": "apply put a value of 1048577 bytes; allowed are bytes, at most 1048576 bytes",
    "get str": "apply touched the key 'a/1', which is no key: those are bytes, 1 to key_bytes_max=480",
    "get None": "apply touched the key None, which is no key",
    "get long": "which is no key: those are bytes, 1 to key_bytes_max=480",
    "get empty": "apply touched the key b'', which is no key",
    "get other": "apply touched the key b'other/1', which lies in no partition of a key that keys",
    "put other": "apply touched the key b'other/1', which lies in no partition of a key that keys",
    "delete other": "apply touched the key b'other/1', which lies in no partition of a key that keys",
    "misplaced": "TypeError: partition_key() returned str, not bytes",
    "scan str": "TypeError: a prefix is bytes, not str",
    "scan -1": "ValueError: a limit is a number of records, or None, not -1",
    "scan True": "ValueError: a limit is a number of records, or None, not True",
}


def test_every_wrong_is_judged() -> None:
    assert (set(ANSWERS), set(TOUCHED)) == (set(RESULTS), set(TOUCHES))


@pytest.mark.parametrize("b", [OWN, OTHER])
async def test_what_apply_does_wrong_fails_its_chunk_by_name_wherever_it_runs(tmp_path: Path, b: bytes) -> None:
    async with Engine(tmp_path, shards=2, machine=Doer) as db:
        for what, said in ANSWERS.items():
            if what == "interrupt" and b == OTHER:
                continue  # in the engine's own process that is somebody's Ctrl-C
            error = await failure(db, f"answer: {what}", b)
            assert said in error.message, what
            assert "does not travel" not in said or "msgpack carries" in error.hint
        for how in ("touch", "pass over", "refuse"):
            for what, said in TOUCHED.items():
                error = await failure(db, f"{how}: {what}", b)
                assert said in error.message, (how, what)
                if "other" in what:
                    assert type(error) is UndeclaredKeyError
                    assert (error.key, error.partition, error.declared) == (b"other/1", b"other", sorted([b"a/1", b]))
        assert (await db.apply_chunk([entry("", b)]))[0].succeeded
        assert [worker["restarts"] for worker in db.stats()["workers"]] == [0, 0]


async def test_memory_tells_the_same() -> None:
    async with MemoryStateMachine(Doer) as db:
        for what in set(ANSWERS) - {"interrupt"}:
            assert ANSWERS[what] in (await failure(db, f"answer: {what}", OTHER)).message
        for what, said in TOUCHED.items():
            assert said in (await failure(db, f"pass over: {what}", OTHER)).message


@pytest.fixture
def children() -> Iterator[list[int]]:
    Doer.children.clear()
    yield Doer.children
    Doer.children.clear()


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("memory", [False, True])
async def test_a_fork_in_the_engines_own_process_fails_its_chunk_and_the_child_ends(
    tmp_path: Path, children: list[int], memory: bool
) -> None:
    made: Engine | MemoryStateMachine = MemoryStateMachine(Doer) if memory else Engine(tmp_path, shards=2, machine=Doer)
    async with made as db:
        error = await failure(db, "fork", OTHER)
        assert "apply forked the engine's own process" in error.message and error.hint
        assert [ended(child) for child in children] == [1]
        assert (await db.apply_chunk([entry("", OTHER)]))[0].succeeded


@pytest.mark.parametrize("key", ["a/1", 1, None])
async def test_a_read_of_what_is_no_key_is_told_so(tmp_path: Path, key: Any) -> None:
    async with Engine(tmp_path, shards=2, machine=Doer) as db, MemoryStateMachine(Doer) as memory:
        for read in (db.get, memory.get, lambda key: db.get_multi([key]), lambda key: memory.get_multi([key])):
            with pytest.raises(TypeError, match=f"a key is bytes, not {type(key).__name__}"):
                read(key)
        with db.view() as view, pytest.raises(TypeError, match="a key is bytes"):
            view.get(key)


# ---- keys ------------------------------------------------------------------------------------------------------------

BAD_NAMES = {
    "none": "keys() names no key",
    "None": "keys() returned NoneType, not a list of keys",
    "str": "keys() returned str, not a list of keys",
    "bytes": "keys() returned bytes, not a list of keys",
    "strs": "a key of str",
    "long": "a key of 481 bytes; allowed are 1 to key_bytes_max=480",
    "empty": "a key of 0 bytes",
    "raises": "ZeroDivisionError",
    "str partition": "partition_key() returned str, not bytes",
    "None partition": "partition_key() returned NoneType, not bytes",
    "partition raises": "ZeroDivisionError",
}


async def test_what_keys_does_wrong_makes_a_bad_entry_and_any_iterable_of_bytes_will_do(tmp_path: Path) -> None:
    async with Engine(tmp_path, shards=2, machine=Namer) as db:
        for what in NAMES.keys() - BAD_NAMES.keys():
            index = db.last_applied().index + 1
            assert (await db.apply_chunk([entry(what, index=index)]))[0].value == [b"a", b"b"], what
        last = db.last_applied()
        assert last.index == 2
        for what, said in BAD_NAMES.items():
            with pytest.raises(BadEntryError) as caught:
                await db.apply_chunk([entry("set", index=3), entry(what, index=4)])
            assert said in caught.value.message and caught.value.index == 4, what
            with pytest.raises(BadEntryError):
                db.check(entry(what).data)
        assert db.last_applied() == last


# ---- the class -------------------------------------------------------------------------------------------------------


class Plain:
    pass


class NoApply(Machine):
    name = "test"
    command = Do

    def keys(self, command: Do) -> list[bytes]:
        return []


class Later(Doer):
    async def apply(self, tx: Tx, command: Do, context: Context) -> Any:
        return None


class Steps(Doer):
    def apply(self, tx: Tx, command: Do, context: Context) -> Any:
        yield


def local() -> type[Machine]:
    class Local(Doer):
        pass

    return Local


def doer(**attributes: Any) -> type[Machine]:
    return type("Made", (Doer,), attributes)


CLASSES: dict[str, tuple[Any, str]] = {
    "untagged": (Untagged, "Untagged.command is no type of commands: .* must be tagged"),
    "plain": (doer(command=Plain), "msgspec does not decode Plain"),
    "one plain": (doer(command=Do | Plain), "no type of commands"),
    "text": (doer(command="Do"), "Made.command is no type of commands"),
    "value": (doer(command=Do(b"", b"", "")), "Made.command is no type of commands"),
    "none": (doer(command=None), "command=None"),
    "nameless": (doer(name=None), "name=None"),
    "abstract": (NoApply, "NoApply.* is no class that implements Machine .*define apply"),
    "object": (Plain, "Plain.* is no class that implements Machine .*derives from Machine"),
    "coroutine": (Later, "Later.apply is a coroutine .*plain function"),
    "generator": (Steps, "Steps.apply is a generator .*plain function"),
}
NOT_FOUND: dict[str, tuple[Any, str]] = {
    "main": (doer(__module__="__main__"), "workers cannot import .* top level of an importable module"),
    "local": (local(), "workers cannot import .* top level of an importable module"),
}


@pytest.mark.parametrize("name", [*CLASSES, *NOT_FOUND])
def test_a_class_that_is_no_machine_is_refused_when_the_engine_is_made(tmp_path: Path, name: str) -> None:
    machine, said = {**CLASSES, **NOT_FOUND}[name]
    with pytest.raises(MachineImportError, match=said):
        Engine(tmp_path / "data", machine=machine)
    assert not (tmp_path / "data").exists()
    if name in CLASSES:
        with pytest.raises(MachineImportError, match=said):
            MemoryStateMachine(machine)


def test_a_class_that_takes_arguments_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(MachineImportError, match=r"WithArguments cannot be made: TypeError.*takes no arguments"):
        Engine(tmp_path, shards=2, machine=WithArguments).start()


def test_the_command_line_refuses_a_class_that_is_no_machine_as_wrong_use(tmp_path: Path) -> None:
    done = cli("load", "-", "--data", str(tmp_path / "data"), "--format", "jsonl", "--machine", "tests.wrong:Untagged")
    assert done.code == 2 and "must be tagged" in " ".join(done.err.split())
    assert not (tmp_path / "data").exists()
