"""The commands that print what a directory holds: `get`, `scan`, `digest`, `stats`, `verify`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from engine import Engine, run
from engine.cli.common import (
    DATA_SAYS_NO,
    DONE,
    DataSaysNoError,
    config_option,
    data_option,
    existing,
    field,
    hex_option,
    json_option,
    opened,
    print_bytes,
    print_json,
    print_table,
    readable,
    say,
    to_bytes,
)
from engine.cli.keep import verify_offline
from engine.cli.records import format_tsv

PAGE_ENTRIES = 1000
"""How many records a scan holds in memory at once."""


@click.command()
@click.argument("key")
@data_option()
@hex_option
@config_option
@json_option
def get(key: str, data: Path, as_hex: bool, config_file: Path | None, as_json: bool) -> int:
    """Print the value of KEY; exit code 1 when there is none.

    \b
    Examples:
      shardengine get apple --data words
      shardengine get 00ff --hex --data words --json
    """
    wanted = to_bytes(key, as_hex, "KEY")
    with opened(data, config_file) as db:
        value = db.get(wanted)
        index = db.last_applied().index
    if as_json:
        found = {} if value is None else field("value", value, as_hex)
        print_json({**field("key", wanted, as_hex), "found": value is not None, **found, "index": index})
    elif value is not None:
        print_bytes(value.hex().encode() if as_hex else value)
    if value is None:
        raise DataSaysNoError(f"no key {key} at index {index}")
    return DONE


@click.command()
@click.argument("prefix", default="")
@data_option()
@click.option("--limit", type=click.IntRange(1), help="At most so many records.  [default: all]")
@click.option("--start-after", metavar="KEY", help="Begin behind this key.")
@click.option("--reverse", is_flag=True, help="Highest key first.")
@hex_option
@config_option
@json_option
def scan(
    prefix: str,
    data: Path,
    limit: int | None,
    start_after: str | None,
    reverse: bool,
    as_hex: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Print the records under PREFIX in key order.

    One a line: key, tab, value. Tabs, newlines, carriage returns and backslashes are escaped, so that `load` reads
    the output back; with --json, one object a line, which `load --format jsonl` reads back. When --limit left
    records out, standard error says so.

    \b
    Examples:
      shardengine scan user: --data dir --limit 20
      shardengine scan --data dir --json > all.jsonl
    """
    after = None if start_after is None else to_bytes(start_after, as_hex, "--start-after")
    with opened(data, config_file) as db:
        pages = _pages(db, to_bytes(prefix, as_hex, "PREFIX"), limit, after, reverse)
        for entries, more in pages:
            for key, value in entries:
                if as_json:
                    print_json({**field("key", key, as_hex), **field("value", value, as_hex)})
                elif as_hex:
                    print_bytes(f"{key.hex()}\t{value.hex()}".encode())
                else:
                    print_bytes(format_tsv(key, value))
            if more:
                last = entries[-1][0].hex() if as_hex else entries[-1][0].decode(errors="replace")
                say(f"more follows; to go on: --start-after {last}")
    return DONE


def _pages(
    db: Engine, prefix: bytes, limit: int | None, after: bytes | None, reverse: bool
) -> Iterator[tuple[list[tuple[bytes, bytes]], bool]]:
    """Pages of records, and with the last one whether `limit` left any out. Nobody applies meanwhile: one cut."""
    left = limit
    while True:
        size = PAGE_ENTRIES if left is None else min(PAGE_ENTRIES, left)
        page = db.scan_prefix(prefix, limit=size, start_after=after, reverse=reverse)
        left = None if left is None else left - len(page.entries)
        yield page.entries, page.more and left == 0
        if not page.more or left == 0:
            return
        after = page.entries[-1][0]


@click.command()
@data_option()
@config_option
@json_option
def digest(data: Path, config_file: Path | None, as_json: bool) -> int:
    """Print the digest of all records.

    It is equal for the same log, whatever the number of shards and the size of chunks.

    \b
    Examples:
      shardengine digest --data dir
      shardengine digest --data dir --json
    """

    async def work() -> dict[str, Any]:
        with opened(data, config_file) as db:
            found = await db.digest()
            at = db.last_applied()
            return {"digest": found.hex(), "index": at.index, "term": at.term, "entries": len(db)}

    facts = run(work)
    if as_json:
        print_json(facts)
    else:
        print_bytes(facts["digest"].encode())
    return DONE


@click.command()
@data_option()
@config_option
@json_option
def stats(data: Path, config_file: Path | None, as_json: bool) -> int:
    """Print shards, indices, sizes and workers.

    \b
    Examples:
      shardengine stats --data dir
      shardengine stats --data dir --json
    """
    with opened(data, config_file) as db:
        facts = db.stats()
    if as_json:
        print_json(facts)
    else:
        print_table(f"{data}", _flat(facts))
    return DONE


def _flat(facts: dict[str, Any]) -> dict[str, str]:
    """Nested facts in one line each."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat[name] = _words(value)
        elif isinstance(value, list):
            flat |= {f"{name} {number}": _words(item) for number, item in enumerate(value)}
        else:
            flat[name] = readable(value)
    return flat


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {readable(item)}" for name, item in value.items())
    return readable(value)


@click.command()
@data_option(required=False)
@click.option(
    "--snapshot", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A snapshot instead of an engine."
)
@json_option
def verify(data: Path | None, snapshot: Path | None, as_json: bool) -> int:
    """Check the files of a stopped engine, or of a snapshot.

    Reads all shards page by page, their own record of where they stand, and the decision record, each against the
    others; of a snapshot its manifest and parts. Changes nothing. Exit code 1 when something is damaged.

    \b
    Examples:
      shardengine verify --data dir
      shardengine verify --snapshot dir/snapshots/00000000000000010000-0000000001 --json
    """
    from engine.verify import verify_directory

    if (data is None) == (snapshot is None):
        raise click.UsageError("name one of --data and --snapshot")
    if snapshot is not None:
        return verify_offline(snapshot, as_json)
    assert data is not None
    findings = verify_directory(existing(data))
    if as_json:
        print_json({"ok": not findings, "findings": findings})
    elif not findings:
        print_bytes(b"no damage found")
    else:
        for finding in findings:
            where = "directory" if finding.shard is None else f"shard {finding.shard}"
            print_bytes(f"{where}: {finding.problem}".encode())
    return DATA_SAYS_NO if findings else DONE
