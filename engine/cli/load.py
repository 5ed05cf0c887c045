"""The command `load`: every line of a file becomes a committed entry; run again after a kill, it goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from shardengine import ApplyResult, Engine, EngineConfig, LogId, run
from shardengine.engine.cli.common import (
    DONE,
    DataSaysNoError,
    Stop,
    config_option,
    data_option,
    fixed_in,
    json_option,
    machine_option,
    owned,
    quiet_option,
    remark,
    settings,
    shards_option,
    stopping_on_signals,
)
from shardengine.engine.cli.feed import Applied, Chunk, RefusedError, feed
from shardengine.engine.cli.loads import Loads, Recognition, Stretch
from shardengine.engine.cli.progress import Progress
from shardengine.engine.cli.records import PARSERS, BadRecordError, Clock, Parser, Read, Records, parser_of
from shardengine.engine.cli.results import Results, results_to
from shardengine.engine.cli.source import Lines, Source
from shardengine.engine.cli.streams import print_facts
from shardengine.engine.errors import BadEntryError, StoreError, disk_error
from shardengine.engine.node.place import NAME as NODE_FILE
from shardengine.ipc.errors import hint_for
from shardengine.shards.machine import Machine
from shardengine.shards.types import U64_MAX


@dataclass(frozen=True)
class Wanted:
    """What the options say about how to read."""

    parse: Parser
    clock: Clock
    chunk_entries: int
    append: bool
    last_line: bool
    quiet: bool


class TimeType(click.ParamType):  # type: ignore[type-arg]  # not generic in every release
    """`none`, `now`, or milliseconds: the clock that gives every entry its time."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Clock:
        if callable(value):
            return value  # type: ignore[no-any-return]  # a clock, as from here
        if value == "now":
            return lambda: time.time_ns() // 1_000_000
        number = 0 if value == "none" else int(value) if value.isascii() and value.isdigit() else -1
        if not 0 <= number <= U64_MAX:
            self.fail(f"{value!r} is neither now, none, nor a number of 64 bits", param, ctx)
        return lambda: number


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@data_option(text="The engine's directory; created when missing.")
@shards_option
@click.option(
    "--format", "form", type=click.Choice(list(PARSERS)), help="Of FILE.  [default: tsv; jsonl if --machine has no Put]"
)
@click.option("--chunk", type=click.IntRange(1, 1_000_000), default=5000, show_default=True, help="Entries a chunk.")
@click.option("--append", is_flag=True, help="Load all of FILE behind the log, also what was loaded before.")
@click.option("--last-line", is_flag=True, help="Take the last line of a file although no newline ends it.")
@click.option(
    "--results",
    "results_file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write what every entry answers to the end of FILE, or to standard output for -.",
)
@click.option(
    "--time-ms",
    "clock",
    type=TimeType(),
    default="none",
    show_default=True,
    metavar="now|none|N",
    help="The time of every entry: the system clock's when its line is read, none, or N milliseconds since 1970.",
)
@machine_option
@quiet_option
@config_option
@json_option
def load(
    file: Path,
    data: Path,
    shards: int | None,
    form: str,
    chunk: int,
    append: bool,
    last_line: bool,
    results_file: Path | None,
    clock: Clock,
    machine: type[Machine],
    quiet: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Load FILE, or standard input for "-", into an engine.

    Every line becomes a committed entry, in order, behind what the directory holds. An empty line is an entry without
    a command. The directory remembers what it was loaded from, by the lines themselves: FILE again, under whatever
    name, after a kill, a full disk, Ctrl-C or when it has grown, goes on where it ended and loads nothing twice;
    another FILE is put behind.

    gzip, bzip2 and xz are unpacked; a byte order mark is left out, and UTF-16 and UTF-32 that begin with one are
    understood. A last line of a file that no newline ends may still be written: it is not loaded, and the exit code
    is 1. At the end of a pipe it is.

    tsv: KEY, a tab, VALUE; backslash-t, -n, -r and two backslashes stand for tab, newline, carriage return, backslash.
    jsonl: {"key": ..., "value": ...} or {"op": "delete", "key": ...}; key_hex and value_hex hold other bytes. With
    --machine, {"op": COMMAND, FIELD: ...}: a command of that machine, its name in lower case; FIELD_hex as above. One
    with a field of its own that is called op is [COMMAND, {FIELD: ...}].

    --results writes an object a line for every entry, in order: {"index": ..., "value": ...}, where value_hex has all
    text in hexadecimal since some is no UTF-8, or {"index": ..., "rejected": REASON}. They come as entries are applied,
    and end with the last that was, also after Ctrl-C. With - the summary goes to standard error. What is typed at a
    terminal is always put behind; a query that comes through a pipe, and was asked before, needs --append.

    --time-ms moves the log clock, which ends leases and refills buckets. It never goes back.

    \b
    Examples:
      shardengine load words.tsv --data /var/lib/words --shards 4
      zstdcat dump.jsonl.zst | shardengine load - --format jsonl --data dump
      shardengine load opened.jsonl --data bank --machine shardengine.machines.bank:Bank --results answers.jsonl
      shardengine load - --data jobs --machine shardengine.machines.queue:Queue --time-ms now --results -
    """
    config = settings(config_file, {"shards": shards})
    if (data / NODE_FILE).exists():
        raise click.UsageError(f"{data} is a node's: what is applied there comes from its log; see `shardengine put`")
    try:
        wanted = Wanted(parser_of(form, machine), clock, chunk, append, last_line, quiet)
    except ValueError as error:
        raise click.UsageError(f"--format {error}") from None
    with _source(file) as source, results_to(results_file, source.found) as results:
        job = Load(source, wanted, results)
        stop: Stop = run(lambda: job.run(Engine(owned(data), config=config, machine=machine), data, config))
    _summarise(data, job.facts, as_json, aside=str(results_file) == "-")
    job.check_end(stop)
    return DONE


def _summarise(data: Path, facts: dict[str, Any], as_json: bool, *, aside: bool) -> None:
    """`aside`: on standard error, where it is a remark."""
    if not aside:
        print_facts(f"loaded into {data}", facts, as_json)
    else:
        remark(json.dumps(facts) if as_json else ", ".join(f"{name} {value}" for name, value in facts.items()))


@contextmanager
def _source(file: Path) -> Iterator[Source]:
    """The input, read unbuffered, so that no thread holds a lock that the end of the process waits for."""
    fd = os.dup(sys.stdin.fileno()) if str(file) == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        source = Source(fd, str(file))
        try:
            yield source
        finally:
            source.close()
    finally:
        os.close(fd)


class Load:
    """One run of the command: what it reads, how it reads it, and what became of it (`facts`, and `line`)."""

    def __init__(self, source: Source, wanted: Wanted, results: Results | None) -> None:
        self._source = source
        self._wanted = wanted
        self._results = results
        self._left_out = False
        self._rejected = 0
        self.line = 0
        """Lines of the input that are loaded."""
        self.facts: dict[str, Any] = {}

    async def run(self, engine: Engine, data: Path, config: EngineConfig) -> Stop:
        with stopping_on_signals(self._source.interrupt) as stop:
            async with engine as db:
                fixed = fixed_in(data)
                # Six bytes are the longest way to write one: \u0000 in JSON.
                lines = Lines(self._source, 6 * fixed.limits.value_bytes_max + 65_536)
                loads = Loads(data, fixed.lineage, db.last_applied().index, durable=config.durability == "power")
                await self._feed(db, lines, loads, config.part_bytes_max // 2, stop)
        return stop

    async def _feed(self, db: Engine, lines: Lines, loads: Loads, chunk_bytes: int, stop: Stop) -> None:
        last = db.last_applied()
        before = last.index
        shown = self._results is not None and self._results.is_terminal
        with Progress("load", self._source.bytes_total, quiet=self._wanted.quiet or shown) as progress:
            behind = self._wanted.append or self._source.is_terminal
            known = await asyncio.to_thread(_recognise, lines, [] if behind else loads.stretches)
            loads.begin(known.head)
            progress.begin(self._source.bytes_read)
            records = self._records(lines, known, last, chunk_bytes)

            async def applied(chunk: Chunk, results: Sequence[ApplyResult]) -> None:
                self._rejected += sum(not result.succeeded for result in results)
                progress.update(len(results), chunk.position)
                if self._results is not None and not await self._results.write(results):
                    stop.end(signal.SIGPIPE if isinstance(self._results.error, BrokenPipeError) else None)

            try:
                await _send(db, records, loads, applied, stop)
            except (OSError, StoreError) as error:
                raise _stopped_at(db.last_applied().index - records.entries_behind, error) from error
            finally:
                with suppress(OSError):  # the next run settles what this one could not
                    loads.settle(db.last_applied().index)
        index = db.last_applied().index
        self.line = index - records.entries_behind
        self.facts = {
            "records": index - before,
            "skipped": known.prefix.line,
            "rejected": self._rejected,
            "index": index,
            "entries": len(db),
            "seconds": round(progress.seconds, 3),
            "records_per_second": round(progress.rate),
        }
        if not stop.asked:
            self._left_out = records.left_out
            self._remark(known.prefix.line, before, index)

    def _records(self, lines: Lines, known: Recognition, last: LogId, chunk_bytes: int) -> Records:
        wanted, source = self._wanted, self._source
        records = Records(
            lines,
            wanted.parse,
            before=known.prefix,
            last=last,
            chunk_entries=wanted.chunk_entries,
            chunk_bytes=chunk_bytes,
            clock=wanted.clock,
        )
        records.open_end_taken = wanted.last_line or not source.is_file or bool(source.packing)
        return records

    def _remark(self, skipped: int, before: int, index: int) -> None:
        if skipped and index == before:
            remark(f"its {skipped:,} lines were loaded before; nothing to do (--append loads them once more)")
        elif skipped:
            remark(f"its first {skipped:,} lines were loaded before; went on behind them")
        elif before and index > before:
            remark(f"put behind the log, which ended at index {before:,}")

    def check_end(self, stop: Stop) -> None:
        """Raise what ended the load early: StoppedError for a signal, StoreError for results that could not be written.
        Raise DataSaysNoError if a last line was left out."""
        reached = f"all lines up to {self.line} are loaded; the same command goes on from there"
        lost = self._results is not None and self._results.error
        if self._results is not None and lost:
            if not isinstance(lost, BrokenPipeError):
                raise StoreError(self._results.told(), hint=f"{hint_for(lost)}; {reached}")
            reached = f"{self._results.told()}; {reached}"
        stop.check(reached)
        if self._left_out:
            raise DataSaysNoError(
                f"line {self.line + 1} has no newline at its end: it may still be written, and is not loaded",
                hint="run the same command when it is whole, or take it as it is with --last-line",
            )


def _recognise(lines: Lines, stretches: list[Stretch]) -> Recognition:
    try:
        return Recognition(lines, stretches)
    except ValueError as error:
        raise DataSaysNoError(
            f"the input cannot be read: {error}",
            hint="nothing was loaded of it now: get it whole, and run the same command again",
        ) from None


async def _send(db: Engine, records: Records, loads: Loads, applied: Applied, stop: Stop) -> None:
    try:
        await feed(db, _noted(records, loads), applied, stop)
    except RefusedError as refused:
        await _keep_what_was_right(db, refused, records, loads, applied)


def _stopped_at(line: int, error: OSError | StoreError) -> StoreError:
    """What the disk said, and how far the load came."""
    told = error if isinstance(error, StoreError) else disk_error("the load ends", error)
    hint = f"{told.hint}; the first {line} lines are loaded, and the same command goes on from there"
    return type(told)(told.message, hint=hint, **told.facts)


def _noted(records: Records, loads: Loads) -> Iterator[Chunk]:
    """The chunks, each remembered before it is sent."""
    for chunk in records:
        loads.note(chunk.mark(len(chunk.lines)))
        yield chunk


async def _keep_what_was_right(
    db: Engine, refused: RefusedError, records: Records, loads: Loads, applied: Applied
) -> None:
    """A record that the engine refuses ends the load; the ones before it in its chunk are loaded."""
    error, chunk = refused.error, refused.chunk
    index = error.facts.get("index") if isinstance(error, BadEntryError) else None
    if not isinstance(error, BadEntryError) or index is None:
        raise error
    assert isinstance(chunk, Read)
    if right := [entry for entry in chunk.entries if entry.index < index]:
        loads.note(chunk.mark(len(right)))
        await applied(Chunk(right, chunk.position), await db.apply_chunk(right))
    raise BadRecordError(index - records.entries_behind, error.facts.get("reason", error.message)) from error
