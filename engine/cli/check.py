"""The command `verify`: a directory, a snapshot, or an exported one, against itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from shardengine.engine.cli.archives import unpack
from shardengine.engine.cli.common import (
    DATA_SAYS_NO,
    DONE,
    MachineType,
    data_option,
    ending_on_signals,
    existing,
    json_option,
    quiet_option,
)
from shardengine.engine.cli.streams import print_json, print_text
from shardengine.engine.errors import EngineLockedError, SnapshotDamagedError, TravelError
from shardengine.engine.snapshot.manifest import MANIFEST
from shardengine.engine.storage.files import Lock
from shardengine.engine.verify import Finding, verify_directory, verify_live, verify_snapshot
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine

_PATH = click.Path(exists=True, allow_dash=True, path_type=Path)


@click.command()
@click.argument("path", type=_PATH, required=False)
@data_option(required=False)
@click.option("--snapshot", type=_PATH, help="The same as PATH.")
@click.option("--machine", type=MachineType(), metavar="MODULE:CLASS", help="What says on which shard a key belongs.")
@quiet_option
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    path: Path | None,
    data: Path | None,
    snapshot: Path | None,
    machine: type[Machine] | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Check the files of an engine, of a snapshot, or a FILE that `export` wrote.

    Reads all shards page by page, their own record of where they stand, and the decision record, each against the
    others; of a snapshot its manifest and parts. Changes nothing. Exit code 1 when something is damaged.

    While an engine runs on the directory, its files change: then only what it shows at one index is checked, every
    record's place and size, and their number, and the output says so.

    \b
    Examples:
      shardengine verify --data dir
      shardengine verify dir/snapshots/00000000000000010000-0000000001 --json
      shardengine verify state.snapshot
    """
    if (path or snapshot) and ctx.get_parameter_source("data") is ParameterSource.ENVIRONMENT:
        data = None  # a default, and not needed
    named = [one for one in (path, data, snapshot) if one is not None]
    if len(named) != 1:
        raise click.UsageError("name one thing to verify: PATH, or --data")
    (found,) = named
    is_directory = data is not None or (found.is_dir() and not (found / MANIFEST).exists())
    facts = _directory_facts(existing(found), machine) if is_directory else _snapshot_facts(found, machine)
    if as_json:
        print_json(facts)
    elif facts["ok"]:
        print_text("no damage found")
        if facts.get("live"):
            print_text(f"an engine runs: checked the {facts['entries']} records of index {facts['index']}, no pages")
    for finding in [] if as_json else facts["findings"]:
        print_text(f"{_where(finding['shard'])}: {finding['problem']}" if is_directory else finding["problem"])
    return DONE if facts["ok"] else DATA_SAYS_NO


def _where(shard: int | None) -> str:
    return "directory" if shard is None else f"shard {shard}"


def _directory_facts(data: Path, machine: type[Machine] | None) -> dict[str, Any]:
    try:
        return _found(verify_directory(data, machine))
    except EngineLockedError:
        if not Lock.held(data / "LOCK"):
            raise
    live = verify_live(data, machine or KeyValue)
    last = live.last_applied
    at = {"index": last.index, "term": last.term, "entries": live.entries, "digest": live.digest.hex()}
    return {**_found(live.findings), "live": True, **at}


def _found(findings: list[Finding]) -> dict[str, Any]:
    told = [{"shard": found.shard, "problem": found.problem} for found in findings]
    return {"ok": not told, "findings": told}


def _snapshot_facts(path: Path, machine: type[Machine] | None) -> dict[str, Any]:
    try:
        if path.is_dir():
            manifest = verify_snapshot(path, deep=True, machine=machine)
        else:
            with ending_on_signals(), tempfile.TemporaryDirectory(prefix="shardengine-verify-") as folder:
                manifest = verify_snapshot(unpack(path, Path(folder)), deep=True, machine=machine)
    except (SnapshotDamagedError, TravelError) as error:
        if error.facts.get("errno"):  # the system refused: nothing is known of the snapshot
            raise
        return {"ok": False, "findings": [{"shard": None, "problem": error.message}]}
    last = manifest.last_included
    return {"ok": True, "findings": [], "index": last.index, "term": last.term, "shards": manifest.shards}
