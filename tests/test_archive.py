"""A snapshot as one file: there and back, and every cut or edit of the file refused by name."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.engine.errors import (
    PieceDamagedError,
    PieceEndError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotFormatError,
    TravelError,
)
from shardengine.engine.snapshot import archive
from shardengine.engine.snapshot.archive import export_snapshot, import_snapshot
from shardengine.engine.snapshot.folder import valid_snapshots
from shardengine.engine.snapshot.manifest import MANIFEST
from shardengine.shards.types import U64_MAX
from tests.snapshots import contents, deaths, file_work, make_snapshot, manifest_for

PARTS = [b"first part, " * 5, b"", b"second"]
BLOCK = 512


def exported(folder: Path, index: int = 7) -> bytes:
    path = make_snapshot(folder / "here", PARTS, index)
    export_snapshot(path, folder / "file")
    return (folder / "file").read_bytes()


def members(data: bytes) -> list[bytes]:
    """Every file in the archive, with its header and what fills it up; then the end."""
    found, place = [], 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            found.append(data[place:end])
            place = end
    return [*found, data[place:]]


def refusal(folder: Path, data: bytes) -> SnapshotError:
    """What an import of a file of `data` says; it must leave nothing."""
    (folder / "file").write_bytes(data)
    with pytest.raises(SnapshotError) as caught:
        import_snapshot(folder / "file", folder / "there")
    assert contents(folder / "there") == {}
    assert caught.value.hint
    return caught.value


def test_a_snapshot_goes_into_a_file_and_comes_back_the_same(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    export_snapshot(path, tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "here"]
    made = import_snapshot(tmp_path / "file", tmp_path / "there")
    assert made == tmp_path / "there" / path.name
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_file_is_on_the_disk_before_its_name_and_that_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    done = file_work(monkeypatch)
    export_snapshot(path, tmp_path / "file")
    assert len(done) == 3 and done[0].startswith("sync .export-")
    assert done[1:] == ["name file", f"sync {tmp_path.name}"]


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4))
def test_any_snapshot_comes_back_the_same(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_snapshot(make_snapshot(folder / "here", parts), folder / "file")
        import_snapshot(folder / "file", folder / "there")
        assert contents(folder / "there") == contents(folder / "here")


def test_the_archive_is_a_tar_that_others_can_look_into_and_unpack(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    export_snapshot(path, tmp_path / "file")
    listed = subprocess.run(["tar", "tvf", tmp_path / "file"], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == [
        f"{path.name}/{name}" for name in (MANIFEST, "shard-000.mdb", "shard-001.mdb", "shard-002.mdb")
    ]
    assert listed.stderr == ""
    subprocess.run(["tar", "xf", tmp_path / "file", "-C", tmp_path], check=True)
    assert contents(tmp_path / path.name) == contents(path)


def test_an_archive_has_one_form(tmp_path: Path) -> None:
    data = exported(tmp_path)
    os.utime(tmp_path / "here", (1, 1))
    export_snapshot(next((tmp_path / "here").iterdir()), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == data
    assert [len(member) // BLOCK for member in members(data)[1:]] == [2, 1, 2, 2]


@pytest.mark.parametrize("size", [0, 1, (8 << 30) - 1, 8 << 30, 10 << 40])
def test_a_header_is_one_block_however_large_the_part_is(size: int) -> None:
    manifest = manifest_for([b""], U64_MAX, U64_MAX)
    block = archive._header(manifest, "x" * 58, size)
    read = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    assert (len(block), read.size, read.name) == (BLOCK, size, f"{manifest.name}/{'x' * 58}")


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = exported(tmp_path)
    for length in range(0, len(data), 7):
        assert type(refusal(tmp_path, data[:length])) is PieceEndError, length


def test_a_file_with_any_byte_changed_is_refused(tmp_path: Path) -> None:
    data = exported(tmp_path)
    for place in range(0, len(data), 5):
        edited = bytearray(data)
        edited[place] ^= 1 << place % 8
        refusal(tmp_path, bytes(edited))


@given(st.integers(0), st.integers(0), st.binary(max_size=30))
def test_a_file_with_any_stretch_replaced_is_refused(start: int, length: int, other: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        data = exported(Path(name))
        start %= len(data)
        edited = data[:start] + other + data[start + length % 60 :]
        if edited != data:
            refusal(Path(name), edited)


def test_a_file_that_goes_on_after_its_end_is_refused(tmp_path: Path) -> None:
    data = exported(tmp_path)
    for more in (b"\0", bytes(BLOCK), data):
        assert type(refusal(tmp_path, data + more)) is PieceEndError


ORDERS: dict[str, tuple[Callable[[list[bytes], list[bytes]], list[bytes]], type[SnapshotError]]] = {
    "a part missing": (lambda m, _: [*m[:1], *m[2:]], PieceDamagedError),
    "a part twice": (lambda m, _: [*m[:2], *m[1:]], PieceDamagedError),
    "two parts swapped": (lambda m, _: [m[0], m[2], m[1], *m[3:]], PieceDamagedError),
    "a part of another": (lambda m, o: [*m[:3], o[3], m[4]], PieceDamagedError),
    "the manifest of another": (lambda m, o: [o[0], *m[1:]], PieceDamagedError),
    "the manifest last": (lambda m, _: [*m[1:4], m[0], m[4]], PieceDamagedError),
    "no last part": (lambda m, _: [*m[:3], m[4]], PieceDamagedError),
    "no end": (lambda m, _: m[:4], PieceEndError),
    "a file more": (lambda m, _: [*m[:4], m[3], m[4]], PieceDamagedError),
}


@pytest.mark.parametrize("what", ORDERS)
def test_files_in_another_order_are_refused_by_name(tmp_path: Path, what: str) -> None:
    change, expected = ORDERS[what]
    one, other = members(exported(tmp_path / "a")), members(exported(tmp_path / "b", index=8))
    assert len(one) == 5
    assert type(refusal(tmp_path, b"".join(change(one, other)))) is expected


def tarred(folder: Path, changes: dict[str, object], form: int) -> bytes:
    """The snapshot in `folder` as another tar, with changes to the header of its last part."""
    path = next(folder.iterdir())
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=form) as tar:
        for name in (MANIFEST, *sorted(file.name for file in path.glob("*.mdb"))):
            info = tarfile.TarInfo(f"{path.name}/{name}")
            info.size = (path / name).stat().st_size
            for field, value in changes.items() if name == "shard-002.mdb" else ():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO((path / name).read_bytes()) if info.isreg() else None)
    return whole.getvalue()


FOREIGN: dict[str, dict[str, object]] = {
    "a name that leads out": {"name": "../../evil"},
    "an absolute name": {"name": "/tmp/evil"},
    "a link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "a hard link": {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
    "a device": {"type": tarfile.CHRTYPE},
    "a pipe": {"type": tarfile.FIFOTYPE},
    "an owner": {"uid": 1},
    "a size that is not true": {"size": 3},
    "a long name": {"name": "x" * 90},
}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("what", FOREIGN)
def test_a_tar_that_was_made_by_others_is_refused_and_nothing_is_unpacked(tmp_path: Path, what: str, form: int) -> None:
    make_snapshot(tmp_path / "here", PARTS)
    refusal(tmp_path, tarred(tmp_path / "here", FOREIGN[what], form))
    assert {file.name for file in tmp_path.iterdir()} <= {"file", "here", "there"}


@pytest.mark.parametrize("magic", [b"\x89shardsnap\r\n\x1a\n\x01\x00", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"])
def test_a_file_of_another_form_is_refused_by_its_name(tmp_path: Path, magic: bytes) -> None:
    error = refusal(tmp_path, magic + bytes(600))
    assert type(error) is SnapshotFormatError
    assert "export the snapshot again" in error.message or "undo the" in error.message


def test_a_manifest_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    data = exported(tmp_path)
    info = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "strict")
    info.size = 1 << 40
    error = refusal(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + data[BLOCK:])
    assert type(error) is SnapshotFormatError and str(1 << 40) in error.message


def test_what_is_no_plain_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    for name in ("pipe", "link"):
        with pytest.raises(TravelError, match="no plain file"):
            export_snapshot(path, tmp_path / name)
    (tmp_path / "file.new").write_bytes(b"a person's")
    export_snapshot(path, tmp_path / "file")
    assert not (tmp_path / "victim").exists() and (tmp_path / "file.new").read_bytes() == b"a person's"
    with pytest.raises(TravelError, match="no plain file"):
        import_snapshot(tmp_path / "pipe", tmp_path / "there")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    import_snapshot(tmp_path / "link", tmp_path / "there")  # what the caller names is followed


@pytest.mark.parametrize("data", [b"SQLite format 3\0 and more", b"\x89PNG\r\n\x1a\n" + bytes(30), b"a"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    error = refusal(tmp_path, data)
    assert type(error) is SnapshotFormatError
    assert "no exported snapshot" in error.message


def test_files_that_are_not_there_are_told(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    for call in (
        lambda: import_snapshot(tmp_path / "none", tmp_path / "there"),
        lambda: export_snapshot(path, tmp_path / "none" / "file"),
    ):
        with pytest.raises(TravelError) as caught:
            call()
        assert caught.value.errno == errno.ENOENT
    with pytest.raises(SnapshotDamagedError):
        export_snapshot(tmp_path / "none", tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_a_failed_export_leaves_what_was_there(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    (tmp_path / "file").write_bytes(b"before")
    (path / "shard-002.mdb").write_bytes(b"secone")
    with pytest.raises(SnapshotDamagedError):
        export_snapshot(path, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"before"
    (tmp_path / "folder").mkdir()
    with pytest.raises(TravelError):
        export_snapshot(make_snapshot(tmp_path / "here", PARTS, 8), tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "here"]


def test_an_export_without_room_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "here", [bytes(200 << 10)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, hard))
    try:
        with pytest.raises(TravelError, match="limit for file sizes") as caught:
            export_snapshot(path, tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_a_death_at_any_step_of_an_export_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    folder = tmp_path / "out"
    folder.mkdir()
    export_snapshot(path, folder / "wanted")
    wanted = (folder / "wanted").read_bytes()
    (folder / "file").write_bytes(b"before")
    found = set()
    for _ in deaths(lambda: export_snapshot(path, folder / "file")):
        found.add((folder / "file").read_bytes())
        export_snapshot(path, folder / "file")
        assert (folder / "file").read_bytes() == wanted
        left = {p.name for p in folder.iterdir()} - {"file", "wanted"}
        assert len(left) <= 1 and all(name.startswith(".export-") for name in left)
        for name in left:
            (folder / name).unlink()
        (folder / "file").write_bytes(b"before")
    assert found == {b"before", wanted}


def test_a_death_at_any_step_of_an_import_leaves_all_or_nothing(tmp_path: Path) -> None:
    exported(tmp_path)
    there = tmp_path / "there"
    for _ in deaths(lambda: import_snapshot(tmp_path / "file", there)):
        for info in valid_snapshots(there):
            assert contents(Path(info.path)) == contents(next((tmp_path / "here").iterdir()))
        import_snapshot(tmp_path / "file", there)
        assert contents(there) == contents(tmp_path / "here")
        shutil.rmtree(there)
