"""The command `demo`: the standard library's sources through a sharded engine, with a worker killed on the way.

Every line becomes a committed entry; half way through, a worker gets SIGKILL and the stream goes on. A snapshot is
taken in mid-stream. Then records are read back, the engine is stopped and opened again, and index, count and digest
must be what a second, one-shard engine arrives at that is fed the same log; and so must those of a third, with one
shard more, that is given the snapshot and the rest of the log.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from shardengine import ApplyResult, Engine, EngineConfig, SnapshotAbortedError, SnapshotInfo, run, valid_snapshots
from shardengine.engine.cli.common import (
    DONE,
    DataSaysNoError,
    Stop,
    config_option,
    json_option,
    owned,
    quiet_option,
    settings,
    stopping_on_signals,
)
from shardengine.engine.cli.corpus import Corpus
from shardengine.engine.cli.feed import Chunk, RefusedError, feed
from shardengine.engine.cli.progress import Progress
from shardengine.engine.cli.streams import print_facts, say


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="An empty directory to work in and keep.  [default: a temporary one, removed]",
)
@click.option("--shards", type=click.IntRange(2, 256), help="Shards.  [default: by usable CPUs, at least 2]")
@click.option("--chunk", type=click.IntRange(1, 100_000), default=5000, show_default=True, help="Entries a chunk.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many lines.")
@quiet_option
@config_option
@json_option
def demo(
    data: Path | None,
    shards: int | None,
    chunk: int,
    limit: int | None,
    quiet: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """See the engine work on real input.

    Turns every line of the running Python's standard library into a committed entry (key: path:line), kills a worker
    and takes a snapshot in the middle, reads back, stops, reopens, and compares index, count and digest with a
    one-shard engine that is fed the same log, and with one of more shards that is given the snapshot and the rest of
    the log. Exit code 1 if they differ.

    \b
    Examples:
      shardengine demo
      shardengine demo --shards 4 --limit 100000 --json
    """
    if data is not None and data.is_dir() and any(data.iterdir()):
        raise click.UsageError(f"{data} is not empty; the demonstration wants a directory of its own")
    if data is not None:
        owned(data)
    config = settings(config_file, {"shards": shards})
    if config.shards == 1:
        raise click.UsageError("the demonstration wants at least two shards; leave `shards` out or raise it")
    show = Demo(Corpus(limit), chunk, quiet)
    facts = run(lambda: show.run(data, config))
    print_facts("shardengine demo", facts, as_json)
    return DONE


class Demo:
    """One demonstration of a log: what was read back and who was killed on the way."""

    def __init__(self, corpus: Corpus, chunk_entries: int, quiet: bool) -> None:
        self._corpus = corpus
        self._chunk_entries = chunk_entries
        self._quiet = quiet
        self._samples: dict[bytes, bytes] = {}
        self._killed: dict[str, Any] | None = None
        self._snapshot: asyncio.Future[SnapshotInfo] | None = None

    async def run(self, data: Path | None, config: EngineConfig) -> dict[str, Any]:
        """The facts of the final table.

        Raises:
            DataSaysNoError: something read back is not what went in, or the two engines differ.
            StoppedError: a signal came; engines are stopped, temporary directories removed.
        """
        corpus = self._corpus
        self._say(f"{corpus.entries:,} lines, {corpus.bytes:,} bytes, {len(corpus.files):,} files of {corpus.root}")
        with stopping_on_signals() as stop, _workplace(data) as (main, reference, copy):
            rate = await self._stream(main, config, stop)
            found = await self._reopened(main, config)
            stop.check()
            expected = await self._one_shard(reference, config, stop)
            self._compare(found, expected, "a one-shard engine fed the same log")
            restored = await self._restored(main, copy, config, found["shards"] + 1, stop)
            self._compare(restored, expected, f"{restored['shards']} shards that were given the snapshot and the rest")
        return {
            "entries": found["entries"],
            "bytes": corpus.bytes,
            "shards": found["shards"],
            "entries_per_second": rate,
            "bytes_on_disk": found["bytes_on_disk"],
            "restart_ms": found["restart_ms"],
            "snapshot_at": restored["snapshot_at"],
            "digest": found["digest"],
        }

    async def _stream(self, data: Path, config: EngineConfig, stop: Stop) -> int:
        """Feed the whole log, killing a worker half way; then read some back. Returns entries a second."""
        async with Engine(data, config=config) as db:

            def applied(chunk: Chunk) -> None:
                if self._snapshot is None and 3 * chunk.position >= self._corpus.entries:
                    self._snapshot = asyncio.ensure_future(self._take_snapshot(db))
                if self._killed is None and 3 * chunk.position >= 2 * self._corpus.entries:
                    self._kill_a_worker(db, chunk.position)

            rate = await self._feed(db, applied, stop)
            if self._snapshot is None:  # a signal ended the stream before its middle
                stop.check()
            else:
                info = await self._snapshot
                self._say(f"snapshot in mid-stream, at entry {info.last_included.index:,}: {info.bytes:,} bytes")
            self._read_back(db)
            worker = next(w for w in db.stats()["workers"] if self._killed and w["shard"] == self._killed["shard"])
            self._say(f"the killed worker came back as {worker['pid']}; restarts: {worker['restarts']}")
        return rate

    async def _reopened(self, data: Path, config: EngineConfig) -> dict[str, Any]:
        began = time.monotonic()
        async with Engine(data, config=config) as db:
            restart_ms = round(1000 * (time.monotonic() - began))
            self._say(f"stopped and opened again in {restart_ms:,} ms")
            self._read_back(db)
            return {**await _facts(db), "restart_ms": restart_ms}

    async def _one_shard(self, data: Path, config: EngineConfig, stop: Stop) -> dict[str, Any]:
        async with Engine(data, config=msgspec.structs.replace(config, shards=1)) as db:
            await self._feed(db, lambda _: None, stop)
            return await _facts(db)

    async def _restored(self, data: Path, copy: Path, config: EngineConfig, shards: int, stop: Stop) -> dict[str, Any]:
        """An engine with `shards` shards, from the newest snapshot in `data` and whatever of the log it lacks."""
        info = valid_snapshots(data / "snapshots")[-1]
        async with Engine(copy, config=msgspec.structs.replace(config, shards=shards)) as db:
            began = time.monotonic()
            await db.restore(info.path)
            restore_ms = 1000 * (time.monotonic() - began)
            self._say(
                f"restored {info.entries:,} records of {info.shards} shards into {shards} in {restore_ms:,.0f} ms"
            )
            await self._feed(db, lambda _: None, stop)
            return {**await _facts(db), "snapshot_at": info.last_included.index}

    async def _feed(self, db: Engine, applied: Callable[[Chunk], None], stop: Stop) -> int:
        shards = db.stats()["shards"]
        label = f"{shards} shards" if shards > 1 else "1 shard"
        with Progress(label, self._corpus.entries, quiet=self._quiet) as progress:

            async def note(chunk: Chunk, results: Sequence[ApplyResult]) -> None:
                progress.update(len(results), chunk.position)
                applied(chunk)

            try:
                await feed(db, self._corpus.chunks(self._chunk_entries, self._samples), note, stop)
            except RefusedError as refused:
                raise refused.error from None
        stop.check()
        self._say(f"{label}: {progress.entries:,} entries in {progress.seconds:.1f} s, {progress.rate:,.0f}/s")
        return round(progress.rate)

    async def _take_snapshot(self, db: Engine) -> SnapshotInfo:
        while True:
            try:
                return await db.create_snapshot()
            except SnapshotAbortedError as error:  # the worker that is killed may be writing its part
                self._say(f"{error.message}; taking another")

    def _kill_a_worker(self, db: Engine, position: int) -> None:
        self._killed = db.stats()["workers"][0]
        os.kill(self._killed["pid"], signal.SIGKILL)
        self._say(f"killed worker {self._killed['pid']} of shard {self._killed['shard']} after entry {position:,}")

    def _read_back(self, db: Engine) -> None:
        keys = list(self._samples)
        wrong = [key for key, value in zip(keys, db.get_multi(keys), strict=True) if value != self._samples[key]]
        if wrong:
            raise DataSaysNoError(f"{len(wrong)} of {len(keys)} records read back wrong, first {wrong[0]!r}")
        name = keys[-1].rpartition(b":")[0] + b":"
        lines = len(db.scan_prefix(name).entries)
        self._say(f"read back {len(keys):,} of {len(keys):,} sampled records; {os.fsdecode(name)} has {lines:,} lines")

    def _compare(self, found: dict[str, Any], expected: dict[str, Any], whose: str) -> None:
        for name in ("index", "entries", "digest"):
            if found[name] != expected[name]:
                shards = found["shards"]
                raise DataSaysNoError(f"{name}: {found[name]} with {shards} shards, {expected[name]} with one")
        self._say(f"index, count and digest agree with those of {whose}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            say(text)


async def _facts(db: Engine) -> dict[str, Any]:
    digest = await db.digest()
    stats = db.stats()
    return {
        "index": db.last_applied().index,
        "entries": len(db),
        "digest": digest.hex(),
        "shards": stats["shards"],
        "bytes_on_disk": stats["bytes_on_disk"],
    }


@contextmanager
def _workplace(data: Path | None) -> Iterator[tuple[Path, Path, Path]]:
    """Three directories: `data`, or a temporary one, for the engine, and temporary ones for the two beside it."""
    with tempfile.TemporaryDirectory(prefix="shardengine-demo-") as folder:
        yield data or Path(folder, "shards"), Path(folder, "reference"), Path(folder, "copy")
