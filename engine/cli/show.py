"""The commands that print what a directory holds, beside its engine or without: `get`, `scan`, `digest`, `stats`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from shardengine import View
from shardengine.engine.cli.common import (
    DONE,
    DataSaysNoError,
    config_option,
    data_option,
    field,
    hex_option,
    json_option,
    machine_option,
    quiet_option,
    reading,
    remark,
    to_bytes,
)
from shardengine.engine.cli.records import format_tsv
from shardengine.engine.cli.source import text_mark
from shardengine.engine.cli.streams import print_bytes, print_json, print_table, readable
from shardengine.shards.machine import Machine

PAGE_ENTRIES = 1000
"""How many records a scan holds in memory at once."""


@click.command()
@click.argument("key")
@data_option()
@hex_option
@machine_option
@quiet_option
@config_option
@json_option
def get(
    key: str,
    data: Path,
    as_hex: bool,
    machine: type[Machine],
    quiet: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Print the value of KEY; exit code 1 when there is none.

    \b
    Examples:
      shardengine get apple --data words
      shardengine get 00ff --hex --data words --json
    """
    wanted = to_bytes(key, as_hex, "KEY")
    with reading(data, machine, config_file) as reader, reader.view() as view:
        value = view.get(wanted)
        index = view.revision
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
@machine_option
@quiet_option
@config_option
@json_option
def scan(
    prefix: str,
    data: Path,
    limit: int | None,
    start_after: str | None,
    reverse: bool,
    as_hex: bool,
    machine: type[Machine],
    quiet: bool,
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
    start = to_bytes(prefix, as_hex, "PREFIX")
    is_first = True
    with reading(data, machine, config_file) as reader, reader.view() as view:
        for entries, more in _pages(view, start, limit, after, reverse):
            for key, value in entries:
                _print_record(key, value, as_hex, as_json, is_first)
                is_first = False
            if more:
                form = [flag for flag, wanted in (("--reverse", reverse), ("--json", as_json)) if wanted]
                hint = _to_go_on(start, entries[-1][0], [f"--limit={limit}", *form], as_hex)
                remark(f"more follows; to go on: shardengine scan {shlex.quote(f'--data={data}')} {hint}")
    return DONE


def _print_record(key: bytes, value: bytes, as_hex: bool, as_json: bool, is_first: bool) -> None:
    if as_json:
        print_json({**field("key", key, as_hex), **field("value", value, as_hex)})
    elif as_hex:
        print_bytes(f"{key.hex()}\t{value.hex()}".encode())
    else:
        line = format_tsv(key, value)
        print_bytes(text_mark(line) + line if is_first else line)


def _to_go_on(prefix: bytes, last: bytes, options: list[str], as_hex: bool) -> str:
    """Arguments that a shell takes as they are printed; in hexadecimal when a key is no plain text."""
    if as_hex or not (_is_plain(prefix) and _is_plain(last)):
        words = [*options, "--hex", "--start-after", last.hex(), *([prefix.hex()] if prefix else [])]
    else:
        after = last.decode()
        start = ["--start-after", after] if not after.startswith("-") else [f"--start-after={after}"]
        words = [*options, *start, *(["--", prefix.decode()] if prefix else [])]
    return shlex.join(words)


def _is_plain(key: bytes) -> bool:
    """Whether it can be shown, copied and typed."""
    try:
        return key.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _pages(
    view: View, prefix: bytes, limit: int | None, after: bytes | None, reverse: bool
) -> Iterator[tuple[list[tuple[bytes, bytes]], bool]]:
    """Pages of records, and with the last one whether `limit` left any out."""
    left = limit
    while True:
        size = PAGE_ENTRIES if left is None else min(PAGE_ENTRIES, left)
        page = view.scan_prefix(prefix, limit=size, start_after=after, reverse=reverse)
        left = None if left is None else left - len(page.entries)
        yield page.entries, page.more and left == 0
        if not page.more or left == 0:
            return
        after = page.entries[-1][0]


@click.command()
@data_option()
@machine_option
@quiet_option
@config_option
@json_option
def digest(data: Path, machine: type[Machine], quiet: bool, config_file: Path | None, as_json: bool) -> int:
    """Print the digest of all records.

    It is equal for the same log, whatever the number of shards and the size of chunks.

    \b
    Examples:
      shardengine digest --data dir
      shardengine digest --data dir --json
    """

    with reading(data, machine, config_file) as reader, reader.view() as view:
        at = view.last_applied
        facts = {"digest": view.digest().hex(), "index": at.index, "term": at.term, "entries": len(view)}
    if as_json:
        print_json(facts)
    else:
        print_bytes(str(facts["digest"]).encode())
    return DONE


@click.command()
@data_option()
@machine_option
@quiet_option
@config_option
@json_option
def stats(data: Path, machine: type[Machine], quiet: bool, config_file: Path | None, as_json: bool) -> int:
    """Print shards, indices and sizes, and whether an engine runs.

    What is not in files is left out: workers, what is in flight, open views. `stats()` of the engine itself has it.

    \b
    Examples:
      shardengine stats --data dir
      shardengine stats --data dir --json
    """
    with reading(data, machine, config_file) as reader:
        facts = reader.stats()
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
