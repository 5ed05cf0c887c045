"""The command `log`: the files of a local log, also while a process appends to it."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from shardengine.engine.cli.common import DONE, DataSaysNoError, json_option, quiet_option, remark
from shardengine.engine.cli.streams import print_facts, print_json
from shardengine.engine.errors import FrameDamagedError, LogDamagedError
from shardengine.engine.node.frames import decode_frame
from shardengine.engine.node.looking import find_log, overview, walk
from shardengine.engine.node.opening import read_closed


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@click.option("--verify", is_flag=True, help="Read every record, and check every frame.")
@click.option("--dump", is_flag=True, help="Print the entries, one JSON object a line.")
@click.option("--after", type=click.IntRange(0), metavar="POSITION", help="With --dump: begin behind this position.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="With --dump: at most so many entries.")
@quiet_option
@json_option
def log(
    directory: Path, verify: bool, dump: bool, after: int | None, limit: int | None, quiet: bool, as_json: bool
) -> int:
    """Print what the log in DIR holds: segments, positions, times.

    DIR is a log's directory, or that of a node, whose log lies in it. Nothing is changed or locked, and a process may
    append meanwhile. Exit code 1 when something is damaged, with file and offset.

    \b
    Examples:
      shardengine log node/log
      shardengine log node --verify --json
      shardengine log node --dump --after 120 --limit 10
    """
    if verify and dump:
        raise click.UsageError("--verify or --dump, one at a time")
    if not dump and (after is not None or limit is not None):
        raise click.UsageError("--after and --limit belong to --dump")
    found = find_log(directory)
    if found is None:
        raise click.UsageError(f"{directory} holds no log; name the directory of a log, or of a node that has one")
    try:
        if dump:
            _dump(found, after or 0, limit)
            return DONE
        facts = _facts(found)
        if verify:
            facts |= _verified(found)
    except (LogDamagedError, FrameDamagedError) as error:
        if as_json and not dump:
            facts = {"ok": False, "problem": error.message, "path": error.facts.get("path")}
            print_json({**facts, "offset": error.facts.get("offset"), "position": error.facts.get("position")})
        raise DataSaysNoError(error.message, error.hint) from error
    print_facts(str(found), facts, as_json)
    return DONE


def _facts(directory: Path) -> dict[str, Any]:
    found = overview(directory)
    facts: dict[str, Any] = found._asdict()
    for name in ("first_time", "last_time"):
        time_ms = facts.pop(f"{name}_ms")
        facts[name] = (
            datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds") if time_ms else None
        )
    _tell_how_far(directory, found.last)
    return facts


def _tell_how_far(directory: Path, last: int) -> None:
    if read_closed(directory) is None:
        remark(f"read up to position {last}: the log is open, or was not closed, and more may follow")


def _verified(directory: Path) -> dict[str, Any]:
    """Raises LogDamagedError, FrameDamagedError."""
    frames = entries = last = 0
    for segment, record in walk(directory):
        try:
            entries += len(decode_frame(record.frame, record.position).datas)
        except FrameDamagedError as error:
            raise FrameDamagedError(
                f"{segment.path}, offset {record.at}: {error.message}",
                hint=error.hint,
                position=record.position,
                path=str(segment.path),
                offset=record.at,
            ) from error
        frames, last = frames + 1, record.position
    return {"ok": True, "frames": frames, "entries": entries, "verified_up_to": last}


def _dump(directory: Path, after: int, limit: int | None) -> None:
    """Raises LogDamagedError, FrameDamagedError."""
    printed, last = 0, after
    for _, record in walk(directory, after):
        frame = decode_frame(record.frame, record.position)
        for number, data in enumerate(frame.datas):
            if printed == limit:
                remark(f"more follows; to go on with whole frames: --after {last}")
                return
            print_json(
                {
                    "position": record.position,
                    "time_ms": record.time_ms,
                    "frame": frame.id.hex(),
                    "number": number,
                    "data": base64.b64encode(data).decode(),
                }
            )
            printed += 1
        last = record.position
    _tell_how_far(directory, last)
