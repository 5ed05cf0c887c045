"""The commands that keep a directory: `snapshot`, `snapshots`, `restore`, `export`, `import`, `reshard`, `compact`."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import click

from shardengine import Engine, SnapshotInfo, run, valid_snapshots
from shardengine.engine.cli.archives import STREAM, export_to, unpack
from shardengine.engine.cli.common import (
    DONE,
    config_option,
    data_option,
    existing,
    json_option,
    machine_option,
    opened,
    owned,
    quiet_option,
    remark,
    settings,
    shards_option,
)
from shardengine.engine.cli.progress import Progress
from shardengine.engine.cli.streams import print_facts, print_json, print_text
from shardengine.engine.run.reshard import reshard as convert
from shardengine.engine.storage.generations import Directory
from shardengine.shards.machine import Machine

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


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


@click.command()
@data_option()
@machine_option
@quiet_option
@config_option
@json_option
def snapshot(data: Path, machine: type[Machine], quiet: bool, config_file: Path | None, as_json: bool) -> int:
    """Take a snapshot into the directory's own `snapshots/`, and remove all but the newest.

    \b
    Examples:
      shardengine snapshot --data dir
      SHARDENGINE_SNAPSHOTS_KEEP=10 shardengine snapshot --data dir --json
    """

    async def work() -> SnapshotInfo:
        with opened(data, machine, config_file) as db:
            return await db.create_snapshot()

    facts = _facts(run(work))
    print_facts(facts["path"], facts, as_json)
    return DONE


@click.command()
@data_option()
@quiet_option
@json_option
def snapshots(data: Path, quiet: bool, as_json: bool) -> int:
    """List the valid snapshots of a directory, oldest first. Needs no engine, and disturbs none.

    \b
    Examples:
      shardengine snapshots --data dir
      shardengine snapshots --data dir --json
    """
    if not data.is_dir():
        raise click.UsageError(f"{data} is no directory")
    found = [_facts(info) for info in valid_snapshots(data / "snapshots")]
    if as_json:
        print_json({"snapshots": found})
    for facts in [] if as_json else found:
        print_facts(facts["path"], facts, False)
    return DONE


@click.command()
@click.argument("path", type=click.Path(exists=True, allow_dash=True, path_type=Path))
@data_option(text="The engine's directory; made when it is not there.")
@shards_option
@click.option("--force", is_flag=True, help="Install it even when it is older than the current state.")
@machine_option
@quiet_option
@config_option
@json_option
def restore(
    path: Path,
    data: Path,
    shards: int | None,
    force: bool,
    machine: type[Machine],
    quiet: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Replace the state of a directory by the snapshot at PATH, whatever number of shards it was taken with.

    PATH is a snapshot, or a file that `export` wrote ("-": standard input), which is unpacked among the directory's
    snapshots first. It is verified in full. A crash leaves the old state or the new one.

    \b
    Examples:
      shardengine restore dir/snapshots/00000000000000010000-0000000001 --data other --shards 8
      shardengine restore state.snapshot --data new
      shardengine restore old-snapshot --data dir --force
    """
    config = settings(config_file, {"shards": shards})

    async def work() -> dict[str, Any]:
        async with Engine(owned(data), config=config, machine=machine) as db:
            await db.restore(path if path.is_dir() else unpack(path, data / "snapshots"), force=force)
            at = db.last_applied()
            return {"path": str(data), "index": at.index, "term": at.term, "entries": len(db)}

    facts = run(work)
    print_facts(facts["path"], facts, as_json)
    return DONE


@click.command("export")
@click.argument("path", type=_FOLDER)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE when it is there.")
@quiet_option
@json_option
def export_(path: Path, file: Path, force: bool, quiet: bool, as_json: bool) -> int:
    """Write the snapshot at PATH as one FILE, or to standard output for "-".

    A file that is there is replaced with --force only; a pipe or a character device is written through; a symbolic
    link is refused.

    \b
    Examples:
      shardengine export dir/snapshots/00000000000000010000-0000000001 state.snapshot
      shardengine export dir/snapshots/00000000000000010000-0000000001 - | ssh host shardengine import - --data dir
    """
    export_to(path, file, force=force)
    if as_json and str(file) != STREAM:
        print_json({"path": str(file)})
    return DONE


@click.command("import")
@click.argument("file", type=_FILE)
@data_option(text="The engine's directory; made when it is not there.")
@shards_option
@machine_option
@quiet_option
@config_option
@json_option
def import_(
    file: Path,
    data: Path,
    shards: int | None,
    machine: type[Machine],
    quiet: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Unpack FILE, which `export` wrote, among the snapshots of a directory, and print where it is.

    The state stays as it is; `restore` installs it, and also takes FILE itself.

    \b
    Examples:
      shardengine import state.snapshot --data dir
    """
    if (owned(data) / "config").is_file():
        path = unpack(file, data / "snapshots")
    else:
        path = _into_new(file, Engine(data, config=settings(config_file, {"shards": shards}), machine=machine), data)
    if as_json:
        print_json({"path": str(path)})
    else:
        print_text(str(path))
    return DONE


def _into_new(file: Path, db: Engine, data: Path) -> Path:
    """The snapshot in `file` beside an empty state, where no engine was. A failure leaves what was there: nothing, or
    an empty directory."""
    made = [path for path in (data, *data.parents) if not path.exists()]
    db.start()  # nobody else begins to use it meanwhile
    try:
        path = unpack(file, data / "snapshots")
    except BaseException:
        _stop(db)
        for child in data.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        for folder in made:
            folder.rmdir()
        raise
    _stop(db)
    return path


def _stop(db: Engine) -> None:
    db.stop()
    db.close_storage()


@click.command()
@click.argument("directory", type=_FOLDER)
@click.option("--shards", type=click.IntRange(1, 256), required=True, help="Shards it shall have.")
@machine_option
@quiet_option
@config_option
@json_option
def reshard(
    directory: Path, shards: int, machine: type[Machine], quiet: bool, config_file: Path | None, as_json: bool
) -> int:
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

        before = convert(existing(directory), shards, machine, settings(config_file, {}), note)
    facts = {"path": str(directory), "shards": shards, "before": before, "records": told}
    if before == shards:
        remark(f"{directory} has {shards} shards already; nothing to do")
    else:
        remark(f"{before} shards are {shards}: {told:,} records in {time.monotonic() - began:.1f} s")
    if as_json:
        print_json(facts)
    return DONE


@click.command()
@click.argument("directory", type=_FOLDER)
@machine_option
@quiet_option
@config_option
@json_option
def compact(directory: Path, machine: type[Machine], quiet: bool, config_file: Path | None, as_json: bool) -> int:
    """Give back the disk, and the map, that deleted and rewritten records left in DIRECTORY.

    The state is copied without gaps beside the old one, which needs room for it, and takes its place at once. A crash
    leaves the old one or the new one.

    \b
    Examples:
      shardengine compact dir
    """
    before = Directory(existing(directory)).bytes_on_disk()

    async def work() -> int:
        with opened(directory, machine, config_file) as db:
            await db.compact()
            return len(db)

    entries = run(work)
    after = Directory(directory).bytes_on_disk()
    facts = {"path": str(directory), "entries": entries, "bytes_before": before, "bytes_after": after}
    print_facts(str(directory), facts, as_json)
    return DONE
