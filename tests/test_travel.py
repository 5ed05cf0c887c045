"""Snapshots in pieces: whole again at the other end, and nothing left behind when not."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.engine.errors import (
    PieceGapError,
    SnapshotDamagedError,
    TravelError,
)
from shardengine.engine.snapshot.folder import Partial, valid_snapshots
from shardengine.engine.snapshot.manifest import MANIFEST, read_manifest
from shardengine.engine.snapshot.transfer import (
    PIECE_BYTES,
    PIECE_BYTES_MAX,
    Piece,
    SnapshotAssembler,
    decode_piece,
    encode_piece,
    stream_snapshot,
)
from tests.snapshots import (
    PARTS,
    PIECE,
    assemble,
    contents,
    deaths,
    file_work,
    make_snapshot,
    pieces_in,
)

# whole again


def test_two_thousand_pieces_of_4_kib_reassemble_byte_for_byte(tmp_path: Path) -> None:
    content = os.urandom(2_000 * 4096)
    parts = [content[: 700 * 4096], b"", content[700 * 4096 :]]
    path = make_snapshot(tmp_path / "here", parts)
    sent = [encode_piece(piece) for piece in stream_snapshot(path, 4096)]
    assert len(sent) == 1 + 2_000
    made = assemble((decode_piece(data) for data in sent), tmp_path / "there")
    assert made == tmp_path / "there" / path.name
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert read_manifest(made) == read_manifest(path)


@given(
    parts=st.lists(st.binary(max_size=300), min_size=1, max_size=6),
    piece_bytes=st.one_of(st.integers(1, 40), st.sampled_from([99, 100, 101, 300, PIECE_BYTES])),
)
def test_any_parts_in_pieces_of_any_size_reassemble_byte_for_byte(parts: list[bytes], piece_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pieces = pieces_in(folder / "here", parts, piece_bytes)
        for number, piece in enumerate(pieces):
            assert piece.number == number
            assert bool(piece.metadata) == (number == 0)
            assert piece.last == (number == len(pieces) - 1)
            assert piece.data == parts[piece.part][piece.offset : piece.offset + piece_bytes][: len(piece.data)]
            assert (0 if number == 0 else 1) <= len(piece.data) <= piece_bytes
        assert len(pieces) == 1 + sum(-(-len(part) // piece_bytes) for part in parts)
        assemble(pieces, folder / "there")
        assert contents(folder / "there") == contents(folder / "here")


def test_a_snapshot_without_a_byte_is_one_piece(tmp_path: Path) -> None:
    (piece,) = pieces_in(tmp_path / "here", [b"", b""])
    assert piece.last
    assemble([piece], tmp_path / "there")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_one_piece_at_a_time_is_in_memory(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "here", [b"0123456789abcdef" * (1 << 20)])
    tracemalloc.start()
    try:
        assemble(stream_snapshot(path, 64 << 10), tmp_path / "there")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_stream_that_is_not_read_to_its_end_closes_its_file(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path, PARTS)
    stream = stream_snapshot(path, PIECE)
    assert next(stream).number == 0
    assert next(stream).number == 1
    del stream  # what remains open, the fixture finds


def test_parts_are_on_the_disk_before_the_manifest_and_that_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = pieces_in(tmp_path / "here")
    done = file_work(monkeypatch)
    made = assemble(pieces, tmp_path / "there")
    begin = done.index("sync shard-000.mdb")  # behind the names of the directories that it is made in
    assert done[begin : begin + 7] == [
        *(f"sync shard-{shard:03}.mdb" for shard in range(5)),
        "sync manifest.json.new",
        f"name {MANIFEST}",
    ]
    folder, named = done[-3:-1]
    assert folder.startswith("sync .partial-")
    assert named == f"name {made.name}"
    assert done[-1] == "sync there"


# what is sent


@pytest.mark.parametrize("piece_bytes", [0, -1, PIECE_BYTES_MAX + 1])
def test_the_size_of_a_piece_has_limits(tmp_path: Path, piece_bytes: int) -> None:
    with pytest.raises(TravelError, match=f"piece_bytes = {piece_bytes}"):
        stream_snapshot(make_snapshot(tmp_path, PARTS), piece_bytes)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit flipped": lambda p: p.write_bytes(b"\1" + p.read_bytes()[1:]),
    "a byte cut off": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "cut off between two pieces": lambda p: p.write_bytes(p.read_bytes()[: 2 * PIECE]),
    "a byte too many": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "emptied": lambda p: p.write_bytes(b""),
    "missing": lambda p: p.unlink(),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_part_is_not_sent_whole(tmp_path: Path, what: str) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    DAMAGES[what](path / "shard-001.mdb")
    sent: list[Piece] = []
    with pytest.raises(SnapshotDamagedError, match=r"shard-001\.mdb"):
        sent.extend(stream_snapshot(path, PIECE))
    with pytest.raises(SnapshotDamagedError, match=r"shard-001\.mdb"):
        assemble(stream_snapshot(path, PIECE), tmp_path / "there")
    assert contents(tmp_path / "there") == {}


def test_a_part_that_shrinks_while_it_is_sent_is_noticed(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path, [bytes(64 << 10)])
    stream = stream_snapshot(path, 16 << 10)
    for _ in range(2):
        next(stream)
    os.truncate(path / "shard-000.mdb", 20 << 10)
    with pytest.raises(SnapshotDamagedError):
        list(stream)


def test_no_snapshot_and_an_unreadable_one_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SnapshotDamagedError):
        stream_snapshot(tmp_path / "nowhere")
    path = make_snapshot(tmp_path, PARTS)
    with pytest.raises(SnapshotDamagedError, match="Not a directory"):
        stream_snapshot(path / "shard-000.mdb")


# nothing is left behind


@pytest.mark.parametrize("given", range(8))
def test_an_abandoned_assembly_leaves_nothing(tmp_path: Path, given: int) -> None:
    pieces = pieces_in(tmp_path / "here")
    descriptors = os.listdir("/proc/self/fd")
    assembler = SnapshotAssembler(tmp_path / "there")
    for piece in pieces[:given]:
        assembler.add(piece)
    assert valid_snapshots(tmp_path / "there") == []
    assembler.abandon()
    assembler.abandon()
    assert os.listdir("/proc/self/fd") == descriptors
    assert contents(tmp_path / "there") == {}
    for late in (lambda: assembler.add(pieces[0]), assembler.finish):
        with pytest.raises(TravelError, match="over"):
            late()


def test_an_exception_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")

    def fail() -> None:
        with SnapshotAssembler(tmp_path / "there") as assembler:
            assembler.add(pieces[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert contents(tmp_path / "there") == {}


def test_a_finished_assembly_stays_and_is_over(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    with SnapshotAssembler(tmp_path / "there") as assembler:
        for piece in pieces:
            assembler.add(piece)
        path = assembler.finish()
        with pytest.raises(TravelError, match="over"):
            assembler.finish()
    assert [info.path for info in valid_snapshots(tmp_path / "there")] == [str(path)]


CHILD = """
import os, signal, sys
from pathlib import Path
from shardengine.engine.snapshot.transfer import SnapshotAssembler, stream_snapshot
assembler = SnapshotAssembler(Path(sys.argv[2]))
for piece in list(stream_snapshot(Path(sys.argv[1]), 32))[:5]:
    assembler.add(piece)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept_and_never_continued(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "here", PARTS)
    there = tmp_path / "there"
    subprocess.run([sys.executable, "-c", CHILD, str(path), str(there)], check=False, cwd=Path(__file__).parents[1])
    (stale,) = there.iterdir()
    assert stale.name.startswith(".partial-")
    with SnapshotAssembler(there) as assembler:
        assert list(there.iterdir()) == []
        with pytest.raises(PieceGapError):
            assembler.add(list(stream_snapshot(path, PIECE))[5])
    assemble(stream_snapshot(path, PIECE), there)
    assert contents(there) == contents(tmp_path / "here")


def test_assemblies_that_live_are_not_swept_and_do_not_meet(tmp_path: Path) -> None:
    here, there = pieces_in(tmp_path / "here"), tmp_path / "there"
    other = pieces_in(tmp_path / "here", index=8)
    creation = Partial(there, "anything")
    (there / ".partial-foreign").write_bytes(b"a file")
    (there / ".partial-other-purpose").mkdir()
    with SnapshotAssembler(there) as first, SnapshotAssembler(there) as second:
        for one, two in zip(here, other, strict=True):
            first.add(one)
            second.add(two)
            SnapshotAssembler(there).abandon()
        first.finish()
        second.finish()
    assert creation.path.is_dir()
    creation.remove()
    (there / ".partial-foreign").unlink()
    (there / ".partial-other-purpose").rmdir()
    assert contents(there) == contents(tmp_path / "here")


@pytest.mark.parametrize("parts", [[b"something else"], PARTS])
def test_a_name_that_is_taken_by_something_else_is_refused_and_that_stays(tmp_path: Path, parts: list[bytes]) -> None:
    pieces = pieces_in(tmp_path / "here")
    taken = make_snapshot(tmp_path / "there", parts, lineage="another")
    before = contents(tmp_path / "there")
    with SnapshotAssembler(tmp_path / "there") as assembler:
        with pytest.raises(TravelError, match="is there"):
            assembler.add(pieces[0])
        assert contents(tmp_path / "there") == before
        taken.rename(tmp_path / "there" / "aside")
        for piece in pieces:
            assembler.add(piece)
        taken.mkdir()
        with pytest.raises(TravelError, match="is there"):
            assembler.finish()
        taken.rmdir()
        assert assembler.finish() == taken
    assert len(list((tmp_path / "there").iterdir())) == 2


def test_a_snapshot_that_is_there_already_stays_and_is_the_answer(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    first = assemble(pieces, tmp_path / "there")
    marked = first.stat().st_ino
    assert assemble(pieces, tmp_path / "there") == first
    assert first.stat().st_ino == marked
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_one_of_the_same_name_that_is_damaged_is_not_the_answer(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    part = assemble(pieces, tmp_path / "there") / "shard-001.mdb"
    whole = part.read_bytes()
    with SnapshotAssembler(tmp_path / "there") as assembler:
        for piece in pieces:
            assembler.add(piece)
        part.write_bytes(whole[::-1])
        with pytest.raises(TravelError, match=r"shard-001\.mdb is damaged"):
            assembler.finish()
        part.write_bytes(whole)
        assembler.finish()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_file_that_cannot_be_written_is_told_and_ends_the_assembly(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here", [bytes(200 << 10)], 64 << 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SnapshotAssembler(tmp_path / "there") as assembler:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, hard))
        try:
            assembler.add(pieces[0])
            assembler.add(pieces[1])
            with pytest.raises(TravelError, match="limit for file sizes") as caught:
                assembler.add(pieces[2])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert contents(tmp_path / "there") == {}
        with pytest.raises(TravelError, match="over"):
            assembler.add(pieces[2])


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    (tmp_path / "file").touch()
    with pytest.raises(TravelError) as caught:
        assemble(pieces, tmp_path / "file" / "there")
    assert caught.value.errno == errno.ENOTDIR


def test_a_death_at_any_step_leaves_all_or_nothing_and_the_next_attempt_succeeds(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    there, wanted = tmp_path / "there", contents(tmp_path / "here")
    found = set()
    for _ in deaths(lambda: assemble(pieces, there)):
        listed = valid_snapshots(there)
        found.add(len(listed))
        assert len(listed) <= 1
        visible = {name: data for name, data in contents(there).items() if not name.startswith(".")}
        assert visible in ({}, wanted)
        assemble(pieces, there)
        assert contents(there) == wanted
        shutil.rmtree(there)
    assert found == {0, 1}
    with suppress(FileNotFoundError):
        shutil.rmtree(there)
