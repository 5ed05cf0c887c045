"""The commands about snapshots and shard counts: `snapshot`, `snapshots`, `restore`, `export`, `import`, `reshard`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from engine import Engine, KeyValue, SnapshotInfo, export_snapshot, import_snapshot, run, valid_snapshots
from engine.cli.common import (
    DATA_SAYS_NO,
    DONE,
    config_option,
    data_option,
    existing,
    json_option,
    opened,
    print_bytes,
    print_json,
    print_table,
    say,
    settings,
)
from engine.cli.progress import Progress
from engine.errors import SnapshotDamagedError
from engine.reshard import reshard as convert
from engine.verify import verify_snapshot

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


def _facts(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "path": info.path,
        "index": info.last_included.index,
        "term": info.last_included.term,
        "shards": info.shards,
        "entries": info.entries,
        "bytes": info.bytes,
        "checksum": info.checksum.hex(),
    }


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print_table(str(facts["path"]), {name: value for name, value in facts.items() if name != "path"})


@click.command()
@data_option()
@config_option
@json_option
def snapshot(data: Path, config_file: Path | None, as_json: bool) -> int:
    """Take a snapshot into the directory's own `snapshots/`, and remove all but the newest.

    \b
    Examples:
      shardengine snapshot --data dir
      SHARDENGINE_SNAPSHOTS_KEEP=10 shardengine snapshot --data dir --json
    """

    async def work() -> SnapshotInfo:
        with opened(data, config_file) as db:
            return await db.create_snapshot()

    _show(_facts(run(work)), as_json)
    return DONE


@click.command()
@data_option()
@json_option
def snapshots(data: Path, as_json: bool) -> int:
    """List the valid snapshots of a directory, oldest first. Needs no engine, and disturbs none.

    \b
    Examples:
      shardengine snapshots --data dir
      shardengine snapshots --data dir --json
    """
    found = [_facts(info) for info in valid_snapshots(existing(data) / "snapshots")]
    if as_json:
        print_json(found)
    for facts in [] if as_json else found:
        _show(facts, False)
    return DONE


@click.command()
@click.argument("path", type=_FOLDER)
@data_option(text="The engine's directory; made when it is not there.")
@click.option("--shards", type=click.IntRange(1, 256), help="Shards of a new directory.  [default: by usable CPUs]")
@click.option("--force", is_flag=True, help="Install it even when it is older than the current state.")
@config_option
@json_option
def restore(path: Path, data: Path, shards: int | None, force: bool, config_file: Path | None, as_json: bool) -> int:
    """Replace the state of a directory by the snapshot at PATH, whatever number of shards it was taken with.

    It is verified in full first. A crash leaves the old state or the new one.

    \b
    Examples:
      shardengine restore dir/snapshots/00000000000000010000-0000000001 --data other --shards 8
      shardengine restore old-snapshot --data dir --force
    """
    config = settings(config_file, {"shards": shards} if shards is not None else {})

    async def work() -> dict[str, Any]:
        async with Engine(data, config=config) as db:
            await db.restore(path, force=force)
            at = db.last_applied()
            return {"path": str(data), "index": at.index, "term": at.term, "entries": len(db)}

    _show(run(work), as_json)
    return DONE


@click.command("export")
@click.argument("path", type=_FOLDER)
@click.argument("file", type=_FILE)
def export_(path: Path, file: Path) -> int:
    """Write the snapshot at PATH as one FILE.

    \b
    Examples:
      shardengine export dir/snapshots/00000000000000010000-0000000001 state.snapshot
    """
    export_snapshot(path, file)
    return DONE


@click.command("import")
@click.argument("file", type=_FILE)
@data_option()
@json_option
def import_(file: Path, data: Path, as_json: bool) -> int:
    """Unpack FILE, which `export` wrote, among the snapshots of a directory, and print where it is.

    \b
    Examples:
      shardengine import state.snapshot --data dir
    """
    path = import_snapshot(file, existing(data) / "snapshots")
    if as_json:
        print_json({"path": str(path)})
    else:
        print_bytes(bytes(path))
    return DONE


@click.command()
@click.argument("directory", type=_FOLDER)
@click.option("--shards", type=click.IntRange(1, 256), required=True, help="Shards it shall have.")
@click.option("--quiet", is_flag=True, help="No progress, no remarks.")
@config_option
@json_option
def reshard(directory: Path, shards: int, quiet: bool, config_file: Path | None, as_json: bool) -> int:
    """Convert the stopped engine in DIRECTORY to another number of shards.

    The new state is built beside the old one, which needs as much room again, and takes its place at once.

    \b
    Examples:
      shardengine reshard dir --shards 8
    """
    began = time.monotonic()
    with Progress(f"{shards} shards", None, quiet=quiet) as progress:
        told = 0

        def note(done: int, total: int) -> None:
            nonlocal told
            progress.total = total
            progress.update(done - told, done)
            told = done

        before = convert(existing(directory), shards, KeyValue, settings(config_file, {}), note)
    facts = {"path": str(directory), "shards": shards, "before": before, "records": told}
    if not quiet:
        say(f"{before} shards are {shards}: {told:,} records in {time.monotonic() - began:.1f} s")
    if as_json:
        print_json(facts)
    return DONE


def verify_offline(path: Path, as_json: bool) -> int:
    """Check a snapshot, page by page, without an engine."""
    try:
        manifest = verify_snapshot(path, deep=True)
    except SnapshotDamagedError as error:
        if as_json:
            print_json({"ok": False, "findings": [error.message]})
        else:
            print_bytes(error.message.encode())
        return DATA_SAYS_NO
    if as_json:
        last = manifest.last_included
        print_json({"ok": True, "findings": [], "index": last.index, "term": last.term, "shards": manifest.shards})
    else:
        print_bytes(b"no damage found")
    return DONE
