"""A snapshot as one file: there and back, and every cut or edit of the file refused by name."""

from __future__ import annotations

import errno
import resource
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import archive
from engine.archive import FRAME_BYTES_MAX, export_snapshot, import_snapshot
from engine.errors import (
    PieceDamagedError,
    PieceDuplicateError,
    PieceEndError,
    PieceGapError,
    PieceSourceError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotFormatError,
    TravelError,
)
from engine.retention import valid_snapshots
from tests.snapshots import contents, deaths, file_work, make_snapshot

PARTS = [b"first part, " * 5, b"", b"second"]
HEADER_BYTES = 16


def exported(folder: Path, index: int = 7, piece_bytes: int = 25) -> bytes:
    path = make_snapshot(folder / "here", PARTS, index)
    export_snapshot(path, folder / "file", piece_bytes)
    return (folder / "file").read_bytes()


def frames(data: bytes) -> list[bytes]:
    """The header, then every piece with its length."""
    found, place = [data[:HEADER_BYTES]], HEADER_BYTES
    while place < len(data):
        end = place + 4 + struct.unpack_from("<I", data, place)[0]
        found.append(data[place:end])
        place = end
    return found


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
    assert done == ["sync file.new", "name file", f"sync {tmp_path.name}"]


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.integers(1, 250))
def test_any_snapshot_comes_back_the_same(parts: list[bytes], piece_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_snapshot(make_snapshot(folder / "here", parts), folder / "file", piece_bytes)
        import_snapshot(folder / "file", folder / "there")
        assert contents(folder / "there") == contents(folder / "here")


def test_the_layout_of_version_1_stays_as_it_is(tmp_path: Path) -> None:
    data = exported(tmp_path)
    assert data[:HEADER_BYTES] == b"\x89shardsnap\r\n\x1a\n\x01\x00"
    assert [len(frame) for frame in frames(data)[2:]] == [4 + 70, 4 + 70, 4 + 55, 4 + 51]


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = exported(tmp_path)
    for length in range(len(data)):
        assert type(refusal(tmp_path, data[:length])) is PieceEndError, length


def test_a_file_with_any_byte_changed_is_refused(tmp_path: Path) -> None:
    data = exported(tmp_path)
    for place in range(len(data)):
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
    assert type(refusal(tmp_path, data + b"\0")) is PieceEndError
    assert type(refusal(tmp_path, data + bytes(4))) is PieceDamagedError
    assert type(refusal(tmp_path, data + frames(data)[-1])) is PieceDuplicateError
    assert type(refusal(tmp_path, data + data)) is PieceDamagedError


ORDERS: dict[str, tuple[Callable[[list[bytes], list[bytes]], list[bytes]], type[TravelError]]] = {
    "a piece missing": (lambda f, _: [*f[:2], *f[3:]], PieceGapError),
    "a piece twice": (lambda f, _: [*f[:3], *f[2:]], PieceDuplicateError),
    "two pieces swapped": (lambda f, _: [*f[:2], f[3], f[2], *f[4:]], PieceGapError),
    "a piece of another": (lambda f, g: [*f[:3], g[3], *f[4:]], PieceSourceError),
    "the first of another": (lambda f, g: [f[0], g[1], *f[2:]], PieceSourceError),
    "no first piece": (lambda f, _: [f[0], *f[2:]], PieceGapError),
    "no last piece": (lambda f, _: f[:-1], PieceEndError),
    "no piece at all": (lambda f, _: f[:1], PieceEndError),
}


@pytest.mark.parametrize("what", ORDERS)
def test_pieces_in_another_order_are_refused_by_name(tmp_path: Path, what: str) -> None:
    change, expected = ORDERS[what]
    one, other = frames(exported(tmp_path / "a")), frames(exported(tmp_path / "b", index=8))
    assert type(refusal(tmp_path, b"".join(change(one, other)))) is expected


@pytest.mark.parametrize("data", [b"SQLite format 3\0 and more", b"\x89PNG\r\n\x1a\n" + bytes(30), b"a"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    error = refusal(tmp_path, data)
    assert type(error) is SnapshotFormatError
    assert "no exported snapshot" in error.message


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    data = exported(tmp_path)
    error = refusal(tmp_path, data[:14] + b"\x02\x00" + data[16:])
    assert type(error) is SnapshotFormatError
    assert error.version == 2


def test_a_length_beyond_the_limit_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    data = exported(tmp_path)
    error = refusal(tmp_path, data[:16] + struct.pack("<I", FRAME_BYTES_MAX + 1) + data[20:])
    assert type(error) is PieceDamagedError
    assert error.offset == 20


def test_a_piece_beyond_the_limit_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    monkeypatch.setattr(archive, "FRAME_BYTES_MAX", 100)
    with pytest.raises(TravelError, match="takes 100"):
        export_snapshot(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


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
        with pytest.raises(TravelError, match="make room") as caught:
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
        assert sorted(p.name for p in folder.iterdir()) == ["file", "wanted"]
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
