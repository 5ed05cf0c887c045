"""What holds for all machines to start from: they are short, stand on the front door alone, and give in an engine, over
any number of shards, what they give by themselves."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import ApplyResult, Engine, Machine, encode
from shardengine.machines import bank, leaderboard, limiter, queue
from tests.inprocess import Bench, Step, entries_of
from tests.model import chunks_of, digest_of

MACHINES = Path(__file__).resolve().parent.parent / "engine" / "machines"
Draw = Callable[[Random], Any]


class Kind(NamedTuple):
    """A machine, and where its commands come from."""

    machine: type[Machine]
    commands: tuple[Draw, ...]


def name(draw: Random) -> bytes:
    return b"%d" % draw.randrange(9)


def few(draw: Random) -> int:
    return draw.randrange(1, 9)


KINDS = {
    "bank": Kind(
        bank.Bank,
        (
            lambda draw: bank.Open(name(draw), few(draw)),
            lambda draw: bank.Balance(name(draw)),
            lambda draw: bank.Audit([name(draw)]),
            lambda draw: bank.Transfer(own := name(draw), own, few(draw)),
            lambda draw: bank.Transfer(name(draw), name(draw), few(draw)),
            lambda draw: bank.Audit([name(draw) for _ in range(few(draw))]),
        ),
    ),
    "leaderboard": Kind(
        leaderboard.Leaderboard,
        (
            lambda draw: leaderboard.Submit(name(draw), name(draw), few(draw)),
            lambda draw: leaderboard.Remove(name(draw), name(draw)),
            lambda draw: leaderboard.Top(name(draw), few(draw)),
            lambda draw: leaderboard.Around(name(draw), name(draw), few(draw)),
        ),
    ),
    "limiter": Kind(
        limiter.Limiter,
        (
            lambda draw: limiter.Configure(name(draw), few(draw), few(draw)),
            lambda draw: limiter.Take(name(draw), few(draw)),
        ),
    ),
    "queue": Kind(
        queue.Queue,
        (
            lambda draw: queue.Push(name(draw), name(draw)),
            lambda draw: queue.Lease(name(draw), name(draw), few(draw), few(draw)),
            lambda draw: queue.Ack(name(draw), few(draw), name(draw)),
            lambda draw: queue.Move(own := name(draw), own, few(draw)),
            lambda draw: queue.Move(name(draw), name(draw), few(draw)),
        ),
    ),
}


def steps_of(kind: Kind, seed: int, length: int) -> list[Step]:
    draw = Random(seed)
    return [Step(draw.choice(kind.commands)(draw), draw.choice([0, 0, 1, 5])) for _ in range(length)]


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_an_engine_of_any_shard_count_gives_what_the_machine_gives_by_itself(
    tmp_path: Path, kind: Kind, shards: int
) -> None:
    steps = steps_of(kind, seed=shards, length=600)
    bench = Bench(kind.machine)
    expected = [bench.run(step.command, step.later_ms) for step in steps]
    bench.end_group()
    assert sum(result.succeeded for result in expected) > 50 and len(bench.records) > 5
    entries, answered = entries_of(steps), list[ApplyResult]()
    async with Engine(tmp_path / "db", shards=shards, machine=kind.machine) as db:
        for chunk in (*chunks_of(entries[:20], 1), *chunks_of(entries[20:], 150)):
            answered += await db.apply_chunk(chunk)
        assert answered == expected
        assert await db.digest() == digest_of(bench.records.items())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(seed=st.integers(0, 1 << 32))
def test_a_command_comes_back_from_its_bytes_and_from_json(kind: Kind, seed: int) -> None:
    for step in steps_of(kind, seed, 5):
        for codec in (msgspec.msgpack, msgspec.json):
            assert codec.decode(codec.encode(step.command), type=kind.machine.command) == step.command


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_command_with_a_field_too_many_is_none(kind: Kind) -> None:
    for draw in kind.commands:
        data = encode([*msgspec.msgpack.decode(encode(draw(Random(1)))), 1])
        with pytest.raises(msgspec.ValidationError, match="at most length"):
            msgspec.msgpack.decode(data, type=kind.machine.command)


@given(one=st.binary(min_size=1, max_size=200), other=st.binary(min_size=1, max_size=200))
def test_two_boards_or_queues_are_two_partitions_and_each_is_one(one: bytes, other: bytes) -> None:
    boards, queues = leaderboard.Leaderboard(), queue.Queue()
    for name in (one, other):
        (top,), (own,) = boards.keys(leaderboard.Top(name)), boards.keys(leaderboard.Remove(name, other))
        (header,) = queues.keys(queue.Push(name, b""))
        partitions = {boards.partition_key(top), boards.partition_key(own), queues.partition_key(header)}
        assert partitions == {bytes([len(name)]) + name}


@given(key=st.binary(max_size=480))
def test_every_key_has_a_partition_also_one_that_no_command_made(key: bytes) -> None:
    for kind in KINDS.values():
        partition = kind.machine().partition_key(key)
        assert key.startswith(partition) and kind.machine().partition_key(partition) == partition


@pytest.mark.parametrize("path", sorted(MACHINES.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_to_start_from_is_short_and_needs_nothing_that_others_cannot_import(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 100
    tree = ast.parse(text)
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    inside = {module for module in modules if module and module.startswith("shardengine")}
    assert inside <= {"shardengine", *(f"shardengine.engine.machines.{name}" for name in ("common", "backlog"))}


@pytest.mark.parametrize("name", KINDS)
def test_a_machine_and_each_of_its_commands_say_what_they_do(name: str) -> None:
    tree = ast.parse((MACHINES / f"{name}.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes if ast.get_docstring(node) is None] == []


@pytest.mark.parametrize("name", KINDS)
def test_the_public_module_holds_the_machine_and_all_its_commands(name: str) -> None:
    module = importlib.import_module(f"shardengine.machines.{name}")
    (machine,) = (each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Machine))
    commands = {command.__name__ for command in get_args(machine.command)}
    assert commands | {machine.__name__} == {each for each in module.__all__ if each[1].islower()}
    assert (machine.name, machine.version) == (f"shardengine.{name}", 1)
