"""The command `load`: every line of a file becomes a committed entry; run again after a kill, it goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from engine import ApplyResult, Engine, EngineConfig, run
from engine.cli.common import (
    DONE,
    DataSaysNoError,
    Stop,
    config_option,
    data_option,
    json_option,
    print_json,
    print_table,
    settings,
    stopping_on_signals,
)
from engine.cli.feed import Chunk, RefusedError, feed
from engine.cli.progress import Progress
from engine.cli.records import PARSERS, BadRecordError, Records, Source
from engine.config import VALUE_BYTES_MAX_DEFAULT
from engine.errors import BadEntryError


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@data_option(text="The engine's directory; created when missing.")
@click.option("--shards", type=click.IntRange(1, 256), help="Shards of a new directory.  [default: by usable CPUs]")
@click.option("--format", "form", type=click.Choice(list(PARSERS)), default="tsv", show_default=True, help="Of FILE.")
@click.option("--chunk", type=click.IntRange(1, 1_000_000), default=5000, show_default=True, help="Entries a chunk.")
@click.option("--quiet", is_flag=True, help="No progress.")
@config_option
@json_option
def load(
    file: Path,
    data: Path,
    shards: int | None,
    form: str,
    chunk: int,
    quiet: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Load FILE, or standard input for "-", into an engine.

    Line N becomes the committed entry with index N; what the engine has already is read over, so the same command
    after a kill, a full disk or Ctrl-C goes on where it ended and loads nothing twice. An empty line is an entry
    without a command.

    tsv: KEY, a tab, VALUE; backslash-t, -n, -r and two backslashes stand for tab, newline, carriage return, backslash.
    jsonl: {"key": ..., "value": ...} or {"op": "delete", "key": ...}; key_hex and value_hex hold other bytes.

    \b
    Examples:
      shardengine load words.tsv --data /var/lib/words --shards 4
      zcat dump.jsonl.gz | shardengine load - --format jsonl --data dump
    """
    config = settings(config_file, {"shards": shards})
    with _source(file, config) as source:
        job = Load(source, form, chunk, quiet)
        stop: Stop = run(lambda: job.run(data, config))
    if as_json:
        print_json(job.facts)
    else:
        print_table(f"loaded into {data}", job.facts)
    stop.check(f"all lines up to {job.facts['index']} are loaded; the same command goes on from there")
    return DONE


@contextmanager
def _source(file: Path, config: EngineConfig) -> Iterator[Source]:
    """The input, read unbuffered, so that no thread holds a lock that the end of the process waits for."""
    fd = os.dup(sys.stdin.fileno()) if str(file) == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Six bytes are the longest way to write one: \u0000 in JSON.
        source = Source(fd, 6 * (config.value_bytes_max or VALUE_BYTES_MAX_DEFAULT) + 65_536)
        try:
            yield source
        finally:
            source.close()
    finally:
        os.close(fd)


class Load:
    """One run of the command: what it reads, how it reads it, and what became of it (`facts`)."""

    def __init__(self, source: Source, form: str, chunk_entries: int, quiet: bool) -> None:
        self._source = source
        self._parse = PARSERS[form]
        self._chunk_entries = chunk_entries
        self._quiet = quiet
        self._rejected = 0
        self.facts: dict[str, Any] = {}

    async def run(self, data: Path, config: EngineConfig) -> Stop:
        with stopping_on_signals(self._source.interrupt) as stop:
            async with Engine(data, config=config) as db:
                records = Records(
                    self._source,
                    self._parse,
                    skip=db.last_applied().index,
                    chunk_entries=self._chunk_entries,
                    chunk_bytes=config.part_bytes_max // 2,
                )
                await self._feed(db, records, stop)
        return stop

    async def _feed(self, db: Engine, records: Records, stop: Stop) -> None:
        before = db.last_applied().index
        with Progress("load", self._source.bytes_total, quiet=self._quiet) as progress:

            def applied(chunk: Chunk, results: Sequence[ApplyResult]) -> None:
                if not progress.entries:
                    progress.begin(records.skipped_bytes)
                self._rejected += sum(not result.succeeded for result in results)
                progress.update(len(results), chunk.position)

            try:
                await feed(db, iter(records), applied, stop)
            except RefusedError as refused:
                await _keep_what_was_right(db, refused)
        if records.line < before and not stop.asked:
            raise DataSaysNoError(
                f"the input ends at line {records.line}, but the directory stands at index {before}",
                hint="it was loaded from another file: name that one, or another directory",
            )
        self.facts = {
            "records": db.last_applied().index - before,
            "skipped": before,
            "rejected": self._rejected,
            "index": db.last_applied().index,
            "entries": len(db),
            "seconds": round(progress.seconds, 3),
            "records_per_second": round(progress.rate),
        }


async def _keep_what_was_right(db: Engine, refused: RefusedError) -> None:
    """A record that the engine refuses ends the load; the ones before it in its chunk are loaded."""
    error = refused.error
    line = error.facts.get("index") if isinstance(error, BadEntryError) else None
    if not isinstance(error, BadEntryError) or line is None:
        raise error
    if right := [entry for entry in refused.chunk.entries if entry.index < line]:
        await db.apply_chunk(right)
    raise BadRecordError(line, error.facts.get("reason", error.message)) from error
