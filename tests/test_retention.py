"""Directories of snapshots: what is listed, what stays, what is swept, and what is nobody's business."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.engine.contract import SnapshotInfo, SnapshotMetadata
from shardengine.engine.errors import ConfigError
from shardengine.engine.snapshot.folder import (
    PARTIAL,
    Partial,
    prune,
    remove_snapshot,
    snapshot_info,
    sweep,
    valid_snapshots,
)
from shardengine.engine.snapshot.manifest import MANIFEST, read_manifest
from shardengine.shards.types import LogId
from tests.snapshots import contents, deaths, make_snapshot, manifest_for

PARTS = [b"0123456789" * 3, b"", b"9876543210"]


def pruned(folder: Path | str, keep: int, index: int = 10**13) -> list[str]:
    """Prune as after a snapshot at `index` of the lineage that `make_snapshot` gives."""
    return prune(folder, keep, manifest_for([b"x"], index, 1))


def indices(folder: Path) -> list[int]:
    return [info.last_included.index for info in valid_snapshots(folder)]


def foreign(folder: Path) -> dict[str, bytes | None]:
    """Put into `folder` what is nobody's business. Returns it."""
    (folder / "notes.txt").write_text("mine")
    (folder / ".partial-file").write_text("mine")
    (folder / ".removing-file").write_text("mine")
    (folder / "folder" / "inside").mkdir(parents=True)
    (folder / "folder" / "inside" / "data").write_text("mine")
    make_snapshot(folder, PARTS, index=1).rename(folder / "kept by hand")
    (folder / "link").symlink_to(folder / "kept by hand")
    (folder / ".partial-link").symlink_to(folder / "folder")
    (folder / ".removing-link").symlink_to(folder / "folder")
    elsewhere = make_snapshot(folder / "folder", PARTS, index=9)
    (folder / elsewhere.name).symlink_to(elsewhere)
    return contents(folder)


def test_a_listing_says_what_each_snapshot_is_oldest_first(tmp_path: Path) -> None:
    paths = {index: make_snapshot(tmp_path, PARTS, index, term) for index, term in ((20, 3), (7, 3), (100, 3))}
    listed = valid_snapshots(tmp_path)
    assert [info.last_included for info in listed] == [LogId(7, 3), LogId(20, 3), LogId(100, 3)]
    assert listed[0] == SnapshotInfo(
        path=str(paths[7]),
        last_included=LogId(7, 3),
        shards=3,
        bytes=40,
        entries=4,
        checksum=bytes.fromhex(read_manifest(paths[7]).checksum),
        lineage="a lineage",
    )
    assert valid_snapshots(str(tmp_path)) == listed
    assert SnapshotMetadata(LogId(7, 3), listed[0].checksum) == SnapshotMetadata(LogId(7, 3), listed[0].checksum)


def test_a_directory_that_is_not_there_has_no_snapshots(tmp_path: Path) -> None:
    assert valid_snapshots(tmp_path / "none") == []
    assert pruned(tmp_path / "none", 1) == []
    assert sweep(tmp_path / "none") == []


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda p: (p / MANIFEST).unlink(),
    "an edited manifest": lambda p: (p / MANIFEST).write_text((p / MANIFEST).read_text().replace("kv", "vk")),
    "half a manifest": lambda p: os.truncate(p / MANIFEST, 100),
    "a directory for a manifest": lambda p: to_folder(p / MANIFEST),
    "a part missing": lambda p: (p / "shard-000.mdb").unlink(),
    "an empty part missing": lambda p: (p / "shard-001.mdb").unlink(),
    "a part cut off": lambda p: os.truncate(p / "shard-000.mdb", 29),
    "a part too long": lambda p: os.truncate(p / "shard-000.mdb", 31),
    "a directory for a part": lambda p: to_folder(p / "shard-001.mdb"),
    "a pipe for a part": lambda p: to_pipe(p / "shard-001.mdb"),
    "a link for a part": lambda p: to_link(p / "shard-000.mdb"),
    "another name": lambda p: p.rename(p.with_name(f"{8:020}-{2:010}")),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_snapshot_is_not_listed_and_not_removed(tmp_path: Path, what: str) -> None:
    make_snapshot(tmp_path, PARTS, index=50)
    path = make_snapshot(tmp_path, PARTS)
    assert indices(tmp_path) == [7, 50]
    DAMAGES[what](path)
    before = contents(tmp_path)
    assert indices(tmp_path) == [50]
    assert snapshot_info(path) is None
    assert pruned(tmp_path, 1) == []
    assert contents(tmp_path) == before


def test_a_snapshot_of_another_format_is_not_listed(tmp_path: Path) -> None:
    make_snapshot(tmp_path, PARTS, format=2)
    assert valid_snapshots(tmp_path) == []


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 9])
def test_the_newest_by_index_stay_and_nothing_foreign_is_touched(tmp_path: Path, keep: int) -> None:
    others = foreign(tmp_path)
    paths = {index: make_snapshot(tmp_path, PARTS, index, term) for index, term in ((30, 1), (4, 9), (200, 5), (31, 1))}
    oldest_first = [4, 30, 31, 200]
    assert pruned(tmp_path, keep) == [str(paths[index]) for index in oldest_first[:-keep]]
    assert indices(tmp_path) == oldest_first[-keep:]
    for index in oldest_first[-keep:]:
        shutil.rmtree(paths[index])
    assert contents(tmp_path) == others


@given(st.sets(st.tuples(st.integers(1, 10**12), st.integers(1, 99)), max_size=8), st.integers(1, 9))
def test_what_stays_is_the_end_of_the_sorted_list(places: set[tuple[int, int]], keep: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        for index, term in places:
            make_snapshot(Path(name), [b"x"], index, term)
        removed = pruned(name, keep)
        left = [(info.last_included.index, info.last_included.term) for info in valid_snapshots(name)]
        assert left == sorted(places)[-keep:]
        assert len(removed) + len(left) == len(places)


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_snapshot_stays(tmp_path: Path, keep: int) -> None:
    make_snapshot(tmp_path, PARTS)
    with pytest.raises(ConfigError, match=f"keep = {keep}"):
        pruned(tmp_path, keep)
    assert indices(tmp_path) == [7]


def test_what_a_removal_left_half_done_is_finished_by_the_next(tmp_path: Path) -> None:
    make_snapshot(tmp_path, PARTS).rename(tmp_path / ".removing-abc")
    (tmp_path / ".removing-abc" / "shard-000.mdb").unlink()
    assert pruned(tmp_path, 1) == []
    assert contents(tmp_path) == {}


def test_removing_what_is_gone_does_nothing(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path, PARTS)
    remove_snapshot(path)
    remove_snapshot(path)
    assert contents(tmp_path) == {}


def test_a_death_at_any_step_of_a_removal_leaves_each_snapshot_whole_or_unlisted(tmp_path: Path) -> None:
    kept = [make_snapshot(tmp_path / "kept", PARTS, index) for index in (1, 2, 3)]
    folder = tmp_path / "there"
    found = set()
    shutil.copytree(tmp_path / "kept", folder)
    for _ in deaths(lambda: pruned(folder, 1)):
        visible = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert visible == {path.name for path in kept[-len(visible) :]}
        assert visible == {Path(info.path).name for info in valid_snapshots(folder)}
        found.add(len(visible))
        pruned(folder, 1)
        assert [path.name for path in folder.iterdir()] == [kept[2].name]
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
    assert found == {1, 2, 3}


# half-written ones

CHILD = """
import os, signal, sys
from pathlib import Path
from shardengine.engine.snapshot.folder import Partial
partial = Partial(Path(sys.argv[1]), "creation")
(partial.path / "shard-000.mdb").write_bytes(b"half")
print(partial.path.name, flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_partial_lives_as_long_as_its_process_and_is_swept_after(tmp_path: Path) -> None:
    others = foreign(tmp_path)
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    where = Path(__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=where) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        assert name.startswith(".partial-creation-")
        assert sweep(tmp_path) == []
        assert (tmp_path / name / "shard-000.mdb").exists()
        child.communicate("")
    assert child.returncode == -signal.SIGKILL
    assert sweep(tmp_path, ".partial-travel-") == []
    assert sweep(tmp_path) == [name]
    assert contents(tmp_path) == others


def test_a_partial_of_this_process_is_not_swept_until_it_is_given_up(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "new" / "there", "test")
    (partial.path / "file").touch()
    assert sweep(tmp_path / "new" / "there") == []
    partial.remove()
    partial.remove()
    assert contents(tmp_path / "new" / "there") == {}


def test_a_sealed_partial_has_its_name_and_is_nobodys_to_remove(tmp_path: Path) -> None:
    descriptors = os.listdir("/proc/self/fd")
    partial = Partial(tmp_path, "test")
    (partial.path / "file").touch()
    assert partial.seal("final") == tmp_path / "final"
    assert os.listdir("/proc/self/fd") == descriptors
    partial.remove()
    assert sweep(tmp_path) == []
    assert contents(tmp_path) == {"final": None, "final/file": b""}


def test_a_partial_cannot_take_a_name_that_is_in_use(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path, PARTS)
    before = contents(tmp_path)
    partial = Partial(tmp_path, "test")
    with pytest.raises(OSError):
        partial.seal(path.name)
    partial.remove()
    assert contents(tmp_path) == before


def test_a_sweep_removes_half_removed_ones_too(tmp_path: Path) -> None:
    (tmp_path / ".removing-x").mkdir()
    (tmp_path / ".partial-y").mkdir()
    assert sweep(tmp_path) == [".removing-x", ".partial-y"]
    assert contents(tmp_path) == {}


def test_a_partial_swept_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep comes between making the directory and opening it, then between opening and locking it."""
    swept: list[list[str]] = []
    opened = os.open

    def open_late(path: Path, flags: int) -> int:
        if not path.name.startswith(PARTIAL):
            return opened(path, flags)
        if len(swept) == 0:
            monkeypatch.setattr(os, "open", opened)
            swept.append(sweep(tmp_path))
            monkeypatch.setattr(os, "open", open_late)
            return opened(path, flags)
        monkeypatch.setattr(os, "open", opened)
        descriptor = opened(path, flags)
        swept.append(sweep(tmp_path))
        return descriptor

    monkeypatch.setattr(os, "open", open_late)
    partial = Partial(tmp_path, "test")
    assert [len(names) for names in swept] == [1, 1]
    assert partial.path.is_dir()
    assert sweep(tmp_path) == []
    partial.remove()
