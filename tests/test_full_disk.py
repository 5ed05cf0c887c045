"""A disk that is really full, down to its last page: a small file system of memory, in a mount namespace of its own.

What LMDB maps is written without asking; where the disk has no page for it the process would die of SIGBUS.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from shardengine import Engine, KeyValue, SnapshotError, StoreFullError, run
from shardengine.engine.run.reshard import reshard
from tests.disks import in_a_file_system, needs_file_systems
from tests.streams import Follower
from tests.taking import CONFIG, Feeder, holds

LEFT_BYTES = (0, 40 << 10, 100 << 10, 150 << 10, 200 << 10, 300 << 10, 400 << 10, 600 << 10, 4 << 20)


def done_in_a_small_file_system(tmp_path: Path, what: str) -> list[str]:
    """Do `what`, which is defined here. Returns the words that it says."""
    disk = tmp_path / "disk"
    disk.mkdir()
    needs_file_systems(disk)
    program = [sys.executable, "-m", "tests.test_full_disk", what, str(disk), str(tmp_path)]
    done = in_a_file_system(disk, *program, size="48m")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def test_a_full_disk_fails_snapshots_and_installs_and_harms_nothing(tmp_path: Path) -> None:
    outcomes = done_in_a_small_file_system(tmp_path, "fill")
    assert len(outcomes) == 3 * len(LEFT_BYTES) and set(outcomes[:3]) == {"full"} and set(outcomes[-3:]) == {"done"}


def test_a_full_disk_stops_no_start_of_shards_that_never_had_a_worker(tmp_path: Path) -> None:
    assert done_in_a_small_file_system(tmp_path, "start_full") == ["started"]


async def fill(disk: Path, elsewhere: Path) -> None:
    """Leave the disk less and less full; say how each attempt ended."""
    async with Engine(disk / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(300)
        await db.generate_snapshot_data(elsewhere / "snapshot", None)
        await db.flush_async()
        for left in LEFT_BYTES:
            shutil.rmtree(disk / "data" / "snapshots", ignore_errors=True)
            (disk / "filler").unlink(missing_ok=True)
            leave(disk, left)
            before = {str(path) for path in disk.rglob("*")} | {str(disk / "data" / "snapshots")}
            index = 300
            for attempt in (db.create_snapshot(), db.restore(elsewhere / "snapshot"), db.reset()):
                try:
                    await attempt
                    index = 300 if db.last_applied().index else 0
                    outcome = "done"
                except (StoreFullError, SnapshotError):
                    assert {str(path) for path in disk.rglob("*")} <= before
                    outcome = "full"
                before = {str(path) for path in disk.rglob("*")} | {str(disk / "data" / "snapshots")}
                os.write(1, f"{outcome}\n".encode())
                await holds(db, Follower(7), index)
            await db.restore(elsewhere / "snapshot") if index == 0 else None


async def start_full(disk: Path, _elsewhere: Path) -> None:
    """Give a directory other shards, whose workers no one has been, and start it without a page to spare."""
    async with Engine(disk / "data", shards=2, config=CONFIG) as db:
        feeder = Feeder(db)
        await feeder.feed(20)
    reshard(disk / "data", 3, KeyValue, CONFIG)
    leave(disk, 0)
    db = Engine(disk / "data", config=CONFIG)
    db.start()
    await holds(db, feeder.model, 20)
    (disk / "filler").unlink()
    db.stop()
    os.write(1, b"started\n")


def leave(disk: Path, left: int) -> None:
    """Fill the disk up to `left` bytes."""
    statvfs = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, statvfs.f_bavail * statvfs.f_frsize - left))


if __name__ == "__main__":
    what = {"fill": fill, "start_full": start_full}[sys.argv[1]]
    run(lambda: what(Path(sys.argv[2]), Path(sys.argv[3])))
