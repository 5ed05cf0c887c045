"""Snapshots in pieces: whole again at the other end, or refused by name with nothing left behind."""

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
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from engine.manifest import MANIFEST, read_manifest
from engine.retention import Partial, valid_snapshots
from engine.travel import (
    PIECE_BYTES,
    PIECE_BYTES_MAX,
    Piece,
    SnapshotAssembler,
    decode_piece,
    encode_piece,
    stream_snapshot,
)
from shards.types import U64_MAX, LogId
from tests.snapshots import assemble, contents, deaths, make_snapshot, manifest_for, part_of

PARTS = [b"", bytes(range(100)), b"", b"x" * 64, b""]
PIECE = 32  # four pieces of part 1, the last one short; two full ones of part 3


def pieces_in(folder: Path, parts: list[bytes] = PARTS, piece_bytes: int = PIECE, index: int = 7) -> list[Piece]:
    path = make_snapshot(folder, parts, index)
    return list(stream_snapshot(path, piece_bytes))


def changed(piece: Piece, **changes: Any) -> Piece:
    return msgspec.structs.replace(piece, **changes)


def resealed(piece: Piece, **changes: Any) -> Piece:
    return changed(piece, **changes).sealed()


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
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def traced_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def traced_rename(source: Path, target: Path) -> None:
        rename(source, target)
        done.append(f"name {Path(target).name}")

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    made = assemble(pieces, tmp_path / "there")
    assert done[:7] == [
        *(f"sync shard-{shard:03}.mdb" for shard in range(5)),
        "sync manifest.json.new",
        f"name {MANIFEST}",
    ]
    folder, named = done[-3:-1]
    assert folder.startswith("sync .partial-")
    assert named == f"name {made.name}"
    assert done[-1] == "sync there"


# refused: every wrong order, damage, source and end

Wrong = Callable[[list[Piece], list[Piece]], Piece]
"""From the pieces of this snapshot and of another one: a wrong piece in the place of number 3."""

WRONG: dict[str, tuple[Wrong, type[TravelError]]] = {
    "the next but one": (lambda p, _: p[4], PieceGapError),
    "the last at once": (lambda p, _: p[-1], PieceGapError),
    "a number beyond the end": (lambda p, _: resealed(p[3], number=U64_MAX), PieceGapError),
    "the same again": (lambda p, _: p[2], PieceDuplicateError),
    "the first again": (lambda p, _: p[0], PieceDuplicateError),
    "another snapshot's": (lambda _, q: q[3], PieceSourceError),
    "another snapshot's first": (lambda _, q: q[0], PieceSourceError),
    "a bit flipped": (lambda p, _: changed(p[3], data=bytes([p[3].data[0] ^ 1]) + p[3].data[1:]), PieceDamagedError),
    "cut off": (lambda p, _: changed(p[3], data=p[3].data[:-1]), PieceDamagedError),
    "without a checksum": (lambda p, _: changed(p[3], checksum=b""), PieceDamagedError),
    "without data": (lambda p, _: resealed(p[3], data=b""), PieceDamagedError),
    "with metadata": (lambda p, _: resealed(p[3], metadata=p[0].metadata), PieceDamagedError),
    "more than the part holds": (lambda p, _: resealed(p[3], data=bytes(37)), PieceDamagedError),
    "an earlier place": (lambda p, _: resealed(p[3], offset=p[2].offset), PieceGapError),
    "a later place": (lambda p, _: resealed(p[3], offset=p[3].offset + 1), PieceGapError),
    "another part": (lambda p, _: resealed(p[3], part=3), PieceGapError),
    "a part that is not": (lambda p, _: resealed(p[3], part=5), PieceGapError),
    "an end too early": (lambda p, _: resealed(p[3], last=True), PieceEndError),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_piece_is_refused_by_name_and_changes_nothing(tmp_path: Path, what: str) -> None:
    pieces, others = pieces_in(tmp_path / "here"), pieces_in(tmp_path / "other", index=8)
    make, expected = WRONG[what]
    with SnapshotAssembler(tmp_path / "there") as assembler:
        for piece in pieces[:3]:
            assembler.add(piece)
        before = contents(tmp_path / "there")
        with pytest.raises(TravelError) as caught:
            assembler.add(make(pieces, others))
        assert type(caught.value) is expected
        assert caught.value.hint
        assert "number" in caught.value.facts
        assert contents(tmp_path / "there") == before
        for piece in pieces[assembler.next_number :]:
            assembler.add(piece)
        assembler.finish()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


FIRST: dict[str, tuple[Callable[[list[Piece]], Piece], type[SnapshotError]]] = {
    "not the first": (lambda p: p[1], PieceGapError),
    "damaged": (
        lambda p: changed(p[0], metadata=p[0].metadata.replace(b'"clock":1000', b'"clock":1001')),
        PieceDamagedError,
    ),
    "an edited manifest": (
        lambda p: resealed(p[0], metadata=p[0].metadata.replace(b'"clock":1000', b'"clock":1001')),
        PieceDamagedError,
    ),
    "no manifest": (lambda p: resealed(p[0], metadata=b""), PieceDamagedError),
    "half a manifest": (lambda p: resealed(p[0], metadata=p[0].metadata[:-1]), PieceDamagedError),
    "a list for a manifest": (lambda p: resealed(p[0], metadata=b"[1]"), PieceDamagedError),
    "another source than its manifest": (lambda p: resealed(p[0], source=bytes(16)), PieceDamagedError),
    "with data": (lambda p: resealed(p[0], data=b"x"), PieceDamagedError),
    "of part 1": (lambda p: resealed(p[0], part=1), PieceDamagedError),
    "the last too early": (lambda p: resealed(p[0], last=True), PieceEndError),
    "another format": (lambda p: resealed(p[0], metadata=b'{"format":2,"new":1}'), SnapshotFormatError),
}


@pytest.mark.parametrize("what", FIRST)
def test_a_wrong_first_piece_is_refused_by_name_and_makes_no_file(tmp_path: Path, what: str) -> None:
    pieces = pieces_in(tmp_path / "here")
    make, expected = FIRST[what]
    with SnapshotAssembler(tmp_path / "there") as assembler:
        with pytest.raises(SnapshotError) as caught:
            assembler.add(make(pieces))
        assert type(caught.value) is expected
        assert contents(tmp_path / "there") == {}
        for piece in pieces:
            assembler.add(piece)
        assembler.finish()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.parametrize("field", list(Piece.__struct_fields__))
def test_a_checksum_covers_every_field(tmp_path: Path, field: str) -> None:
    piece = pieces_in(tmp_path)[3]
    value = getattr(piece, field)
    other: object = value + b"x" if isinstance(value, bytes) else not value if isinstance(value, bool) else value + 1
    wrong = changed(piece, **{field: other})
    assert wrong.checksum != wrong.expected_checksum()


@pytest.mark.parametrize("given", range(7))
def test_an_end_too_early_is_refused_at_every_piece_and_leaves_nothing(tmp_path: Path, given: int) -> None:
    pieces = pieces_in(tmp_path / "here")
    assert len(pieces) == 7
    with pytest.raises(PieceEndError, match=f"number {given}"):
        assemble(pieces[:given], tmp_path / "there")
    assert contents(tmp_path / "there") == {}


def test_a_piece_after_the_last_is_refused(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    with SnapshotAssembler(tmp_path / "there") as assembler:
        for piece in pieces:
            assert not assembler.complete
            assembler.add(piece)
        assert assembler.complete
        with pytest.raises(PieceEndError):
            assembler.add(resealed(pieces[-1], number=len(pieces)))
        with pytest.raises(PieceDuplicateError):
            assembler.add(pieces[-1])
        assembler.finish()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_last_piece_that_does_not_say_so_is_refused(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    with pytest.raises(PieceDamagedError, match="does not say so"):
        assemble([*pieces[:-1], resealed(pieces[-1], last=False)], tmp_path / "there")
    assert contents(tmp_path / "there") == {}


def test_a_part_that_is_not_the_manifests_is_refused_though_every_piece_is_whole(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    pieces[2] = resealed(pieces[2], data=bytes(len(pieces[2].data)))
    with pytest.raises(PieceDamagedError, match=r"shard-001\.mdb does not match"):
        assemble(pieces, tmp_path / "there")
    assert contents(tmp_path / "there") == {}


STEPS = st.tuples(
    st.sampled_from([None, None, None, 0, 1]),  # of which snapshot: None is the one that the assembly is of
    st.one_of(st.none(), st.none(), st.integers(0, 6)),  # which number: None is the next
    st.one_of(st.none(), st.none(), st.integers(0, 1 << 20)),  # which bit is flipped: None is none
)


@given(st.lists(STEPS, max_size=25))
def test_random_pieces_are_answered_as_a_dumb_model_says(
    steps: list[tuple[int | None, int | None, int | None]],
) -> None:
    """Pieces of two snapshots, whole and damaged, in any order: taken is what the model says, nothing else."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / "here", Path(name) / "other"]
        streams = [pieces_in(folders[0]), pieces_in(folders[1], index=8)]
        source: int | None = None
        following = 0
        with SnapshotAssembler(Path(name) / "there") as assembler:
            for which, number, bit in (*steps, *[(None, None, None)] * 7):
                which = (source or 0) if which is None else which
                number = min(following, 6) if number is None else number
                expected = expectation(which, number, bit is not None, source, following)
                piece = streams[which][number]
                if bit is not None:
                    piece = flipped(piece, bit)
                if expected is None:
                    assembler.add(piece)
                    source, following = which, following + 1
                else:
                    with pytest.raises(expected):
                        assembler.add(piece)
                assert (assembler.next_number, assembler.complete) == (following, following == 7)
            assembler.finish()
        assert source is not None
        assert contents(Path(name) / "there") == contents(folders[source])


def expectation(which: int, number: int, damaged: bool, source: int | None, following: int) -> type[TravelError] | None:
    if damaged:
        return PieceDamagedError
    if source is not None and which != source:
        return PieceSourceError
    if number == following:
        return None
    return PieceDuplicateError if number < following else PieceGapError


def flipped(piece: Piece, place: int) -> Piece:
    """The piece with one bit of its data, or else of its metadata, the other way round."""
    field = "data" if piece.data else "metadata"
    content = bytearray(getattr(piece, field))
    content[place // 8 % len(content)] ^= 1 << place % 8
    return changed(piece, **{field: bytes(content)})


# what arrives in bytes


@given(st.binary(max_size=200))
def test_bytes_that_are_no_piece_are_refused(data: bytes) -> None:
    with pytest.raises(PieceDamagedError):
        decode_piece(data)


@pytest.mark.parametrize(
    "change", [lambda f: f[:-1], lambda f: [*f, 1], lambda f: [*f[:1], -1, *f[2:]], lambda f: f[0]]
)
def test_a_piece_of_another_form_is_refused(tmp_path: Path, change: Callable[[list[Any]], Any]) -> None:
    fields = msgspec.msgpack.decode(encode_piece(pieces_in(tmp_path)[1]))
    assert decode_piece(msgspec.msgpack.encode(fields)).number == 1
    wrong = msgspec.msgpack.encode(change(fields))
    if change(fields) == fields[:-1]:  # the checksum is not there: a piece, but not a sealed one
        with SnapshotAssembler(tmp_path / "there") as assembler, pytest.raises(PieceDamagedError):
            assembler.add(decode_piece(wrong))
    else:
        with pytest.raises(PieceDamagedError):
            decode_piece(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "../shard",
        "/tmp/shard",
        "a/b",
        "a\\b",
        ".",
        "..",
        ".hidden",
        "",
        "a\0b",
        "a\n",
        MANIFEST,
        f"{MANIFEST}.new",
        "x" * 201,
        "é",
    ],
)
def test_a_part_may_not_be_called(tmp_path: Path, name: str) -> None:
    part = msgspec.structs.replace(part_of(0, b"data"), file=name)
    path = make_snapshot(tmp_path / "here", [b"data"], parts=[part])
    with pytest.raises(SnapshotDamagedError, match="no name for a part"):
        stream_snapshot(path)
    with pytest.raises(PieceDamagedError, match="no name for a part"):
        assemble([first_piece([b"data"], parts=[part])], tmp_path / "deep" / "there")
    assert contents(tmp_path / "deep") == {}


def first_piece(parts: list[bytes], /, **changes: Any) -> Piece:
    manifest = manifest_for(parts, **changes)
    return Piece(bytes.fromhex(manifest.checksum), 0, 0, 0, b"", msgspec.json.encode(manifest), False).sealed()


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": [part_of(0, b"a"), part_of(0, b"b")]},
        {"parts": [part_of(0, b"a")]},
        {"shards": 3},
        {"last_included": LogId(-1, 2)},
        {"last_included": LogId(U64_MAX + 1, 2)},
        {"last_included": LogId(7, -1)},
        {"parts": [part_of(0, b"a"), msgspec.structs.replace(part_of(1, b"b"), bytes=-1)]},
        {"parts": [part_of(0, b"a"), msgspec.structs.replace(part_of(1, b"b"), bytes=0)]},
    ],
)
def test_a_manifest_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(PieceDamagedError):
        assemble([first_piece([b"a", b"b"], **changes)], tmp_path / "there")
    assert contents(tmp_path / "there") == {}


# what is sent


@pytest.mark.parametrize("piece_bytes", [0, -1, PIECE_BYTES_MAX + 1])
def test_the_size_of_a_piece_has_limits(tmp_path: Path, piece_bytes: int) -> None:
    with pytest.raises(TravelError, match=f"piece_bytes = {piece_bytes}"):
        stream_snapshot(make_snapshot(tmp_path, PARTS), piece_bytes)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit flipped": lambda p: p.write_bytes(b"\1" + p.read_bytes()[1:]),
    "a byte cut off": lambda p: p.write_bytes(p.read_bytes()[:-1]),
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
    assembler = SnapshotAssembler(tmp_path / "there")
    for piece in pieces[:given]:
        assembler.add(piece)
    assert valid_snapshots(tmp_path / "there") == []
    assembler.abandon()
    assembler.abandon()
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
from engine.travel import SnapshotAssembler, stream_snapshot
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


def test_a_file_that_cannot_be_written_is_told_and_ends_the_assembly(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here", [bytes(200 << 10)], 64 << 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SnapshotAssembler(tmp_path / "there") as assembler:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, hard))
        try:
            assembler.add(pieces[0])
            assembler.add(pieces[1])
            with pytest.raises(TravelError, match="make room") as caught:
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
