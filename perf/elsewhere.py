"""Gets in a process of their own: by py-lmdb alone, and by a `Reader`.

Run with `python -m perf.elsewhere` it takes a line that says what to read, and says whether all is there; then it takes
the number of a batch, and says what a get took, until its input ends. All lines are JSON.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import lmdb
import msgspec

from perf.gets import Gets, Timer, check, each, in_a_thread
from perf.peers import FLAGS, MAP_BYTES
from perf.report import CheckError
from shardengine import Reader
from shardengine.engine.storage.generations import Directory
from shardengine.shards.placement import shard_of, slot_of

By = Literal["txn.get", "Reader.get"]


class _Task(msgspec.Struct, frozen=True):
    by: By
    path: str
    gets: Gets


@contextmanager
def elsewhere(by: By, path: Path, gets: Gets) -> Iterator[Timer]:
    """The timer of another process. Raises CheckError if that finds something else than was put."""
    with subprocess.Popen(
        [sys.executable, "-m", "perf.elsewhere"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, told = process.stdin, process.stdout

        def answer(line: object) -> Any:
            asked.write(msgspec.json.encode(line) + b"\n")
            asked.flush()
            return msgspec.json.decode(told.readline())

        if (wrong := answer(_Task(by, str(path.resolve()), gets))) is not None:
            raise CheckError(wrong)
        yield answer


def main() -> None:
    """The other process."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Task)
    try:
        with _OPENERS[task.by](Path(task.path), task.gets) as timer:
            _say(None)
            for line in sys.stdin.buffer:
                _say(timer(int(line)))
    except CheckError as error:
        _say(str(error))


def _say(line: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


# ---- who reads -------------------------------------------------------------------------------------------------------


@contextmanager
def _by_lmdb(path: Path, gets: Gets) -> Iterator[Timer]:
    """A transaction a shard; which keys are whose is found out beforehand."""
    generation = Directory(path).current()
    assert generation is not None
    shards = generation.shards
    with ExitStack() as stack:
        found = [stack.enter_context(_transaction(generation.shard(shard))).get for shard in range(shards)]
        check("txn.get", lambda key: found[shard_of(slot_of(key), shards)](key), gets)
        batches = [_by_shard(keys, shards) for keys in gets.batches()]

        def timer(number: int) -> float:
            began = time.perf_counter_ns()
            for get, keys in zip(found, batches[number], strict=True):
                for key in keys:
                    get(key)
            return (time.perf_counter_ns() - began) / gets.size

        yield timer


@contextmanager
def _transaction(path: Path) -> Iterator[Any]:
    flags = {**FLAGS, "writemap": False, "readahead": False}
    with (
        lmdb.open(str(path), map_size=MAP_BYTES, readonly=True, max_dbs=3, **flags) as env,
        env.begin(db=env.open_db(b"data", create=False)) as txn,
    ):
        yield txn


def _by_shard(keys: Sequence[bytes], shards: int) -> list[list[bytes]]:
    parts: list[list[bytes]] = [[] for _ in range(shards)]
    for key in keys:
        parts[shard_of(slot_of(key), shards)].append(key)
    return parts


@contextmanager
def _by_a_reader(path: Path, gets: Gets) -> Iterator[Timer]:
    with Reader(path) as reader:
        check("Reader.get", reader.get, gets)
        yield in_a_thread(each(reader.get), gets)


_OPENERS: dict[By, Callable[[Path, Gets], AbstractContextManager[Timer]]] = {
    "txn.get": _by_lmdb,
    "Reader.get": _by_a_reader,
}


if __name__ == "__main__":
    main()
