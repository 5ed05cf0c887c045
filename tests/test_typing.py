"""Machines as people write them pass `mypy --strict`, and what is wrong with one is told at its line.

Needs mypy, which `make test` installs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.killing import environment
from tests.test_readme import blocks

WATCHDOG_S = 200
COMMANDS = """
import msgspec

from shardengine import Context, Limits, Machine, Rejected, Tx


class Set(msgspec.Struct, frozen=True, tag=True):
    key: bytes
    value: bytes


class Sum(msgspec.Struct, frozen=True, tag=True):
    keys: list[bytes]


Command = Set | Sum
"""
SOUND = f"""{COMMANDS}

class Sums(Machine):
    name = "sums"
    version = 2
    command = Command

    def keys(self, command: Command) -> list[bytes] | tuple[bytes]:
        return command.keys if isinstance(command, Sum) else (command.key,)

    def partition_key(self, key: bytes) -> bytes:
        return key[:1]

    def check(self, command: Command, limits: Limits) -> str | None:
        return "long" if isinstance(command, Set) and len(command.value) > limits.value_bytes_max else None

    def apply(self, tx: Tx, command: Command, context: Context) -> int | None:
        match command:
            case Set(key, value):
                tx.put(key, value)
                return None
            case Sum(keys):
                if not keys:
                    raise Rejected("none")
                found = [tx.get(key) or b"0" for key in keys]
                return sum(map(int, found)) + len(tx.scan(keys[0], limit=3, reverse=True)) + context.index


class More(Sums):
    name = "more"

    def apply(self, tx: Tx, command: Command, context: Context) -> int | None:
        return super().apply(tx, command, context)
"""
PROGRAM = """
from sound import More, Set, Sums

from collections.abc import Sequence

from shardengine import (
    ApplyResult, Engine, Entry, Limits, Rehearsal, RehearsalError, StateMachine, SyncEngine, encode, rehearse, run
)
from shardengine.adaptors import MemoryStateMachine


async def use(db: StateMachine) -> list[object]:
    results = await db.apply_chunk([Entry(1, 1, encode(Set(b"k", b"1")))])
    return [result.value if result.succeeded else result.reason for result in results]


async def main() -> None:
    async with Engine("data", shards=2, machine=Sums) as db:
        await use(db)
    async with MemoryStateMachine(More, limits=Limits(value_bytes_max=10), bad_entry="reject") as memory:
        await use(memory)


def blocking() -> tuple[Sequence[ApplyResult], bytes | None, bytes, int, str]:
    with SyncEngine("data", shards=2, machine=Sums) as db, db.view() as view:
        results = db.apply_chunk([Entry(1, 1, encode(Set(b"k", b"1")))])
        db.wait_applied(1, timeout=0.5)
        return results, view.get(b"k"), db.digest(), len(db.snapshots()), db.create_snapshot().path


def judged() -> Rehearsal | str:
    try:
        return rehearse(Sums, [Set(b"k", b"1")], limits=Limits(), hash_seeds=())
    except RehearsalError as error:
        return error.message


run(main)
"""
WRONG = f"""{COMMANDS.replace("Tx", "SyncEngine, Tx")}

class Wrong(Machine):
    name = 5  # assignment
    command = Command

    def keys(self, command: Command) -> list[str]:  # override
        return []

    def partition_key(self, key: bytes) -> str:  # override
        return ""

    def apply(self, tx: Tx, command: Command, context: Context) -> None:
        tx.put("k", b"")  # arg-type
        tx.put(b"k", None)  # arg-type
        tx.scan(b"k", limit="3")  # arg-type
        context.index = "1"  # assignment
        raise Rejected()  # call-arg


class OneKey(Wrong):
    def keys(self, command: Command) -> bytes:  # override
        return b"k"


class Untyped(Machine):
    name = "untyped"
    command = Command

    def keys(self, command):  # no-untyped-def
        return [command.key]

    def apply(self, tx, command, context):  # no-untyped-def
        return tx.get(command.key)


class Lacking(Machine):
    def keys(self, command: Command) -> list[bytes]:
        return []


Lacking()  # abstract
db = SyncEngine("data", shard=2)  # call-arg
db.get("k")  # arg-type
db.apply_chunk([b"k"])  # list-item
db.digest() + 1  # operator
db.aclose()  # attr-defined
"""


def promised(files: dict[str, str]) -> set[tuple[str, int, str]]:
    """What the comments of files say: file, line, and the kind of its error."""
    return {
        (name, at, found[1])
        for name, text in files.items()
        for at, line in enumerate(text.splitlines(), 1)
        if (found := re.search(r"  # ([a-z-]+)$", line)) is not None and name == "wrong.py"
    }


def test_machines_pass_a_strict_type_check_and_mistakes_are_told_at_their_lines(tmp_path: Path) -> None:
    (stock,) = [block for block in blocks() if block.startswith("# stock.py")]
    files = {"sound.py": SOUND, "program.py": PROGRAM, "stock.py": stock, "wrong.py": WRONG}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", *files],
        cwd=tmp_path,
        env=environment(MYPYPATH=environment()["PYTHONPATH"]),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert not done.stderr, done.stderr
    errors = re.findall(r"^(\S+\.py):(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.M)
    assert {(name, int(at), kind) for name, at, kind in errors} == promised(files), done.stdout
