"""Pieces that do not fit: every wrong order, damage, source and end is refused by name and changes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.engine.errors import (
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
from shardengine.engine.snapshot.manifest import MANIFEST
from shardengine.engine.snapshot.transfer import (
    Piece,
    SnapshotAssembler,
    decode_piece,
    encode_piece,
    stream_snapshot,
)
from shardengine.shards.types import U64_MAX, LogId
from tests.snapshots import (
    assemble,
    changed,
    contents,
    make_snapshot,
    manifest_for,
    part_of,
    pieces_in,
    resummed,
)

Wrong = Callable[[list[Piece], list[Piece]], Piece]
"""From the pieces of this snapshot and of another one: a wrong piece in the place of number 3."""

WRONG: dict[str, tuple[Wrong, type[TravelError]]] = {
    "the next but one": (lambda p, _: p[4], PieceGapError),
    "the last at once": (lambda p, _: p[-1], PieceGapError),
    "a number beyond the end": (lambda p, _: resummed(p[3], number=U64_MAX), PieceGapError),
    "the same again": (lambda p, _: p[2], PieceDuplicateError),
    "the first again": (lambda p, _: p[0], PieceDuplicateError),
    "another snapshot's": (lambda _, q: q[3], PieceSourceError),
    "another snapshot's first": (lambda _, q: q[0], PieceSourceError),
    "a bit flipped": (lambda p, _: changed(p[3], data=bytes([p[3].data[0] ^ 1]) + p[3].data[1:]), PieceDamagedError),
    "cut off": (lambda p, _: changed(p[3], data=p[3].data[:-1]), PieceDamagedError),
    "without a checksum": (lambda p, _: changed(p[3], checksum=b""), PieceDamagedError),
    "without data": (lambda p, _: resummed(p[3], data=b""), PieceDamagedError),
    "with metadata": (lambda p, _: resummed(p[3], metadata=p[0].metadata), PieceDamagedError),
    "more than the part holds": (lambda p, _: resummed(p[3], data=bytes(37)), PieceDamagedError),
    "an earlier place": (lambda p, _: resummed(p[3], offset=p[2].offset), PieceGapError),
    "a later place": (lambda p, _: resummed(p[3], offset=p[3].offset + 1), PieceGapError),
    "another part": (lambda p, _: resummed(p[3], part=3), PieceGapError),
    "a part that is not": (lambda p, _: resummed(p[3], part=5), PieceGapError),
    "an end too early": (lambda p, _: resummed(p[3], last=True), PieceEndError),
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
        lambda p: resummed(p[0], metadata=p[0].metadata.replace(b'"clock":1000', b'"clock":1001')),
        PieceDamagedError,
    ),
    "no manifest": (lambda p: resummed(p[0], metadata=b""), PieceDamagedError),
    "half a manifest": (lambda p: resummed(p[0], metadata=p[0].metadata[:-1]), PieceDamagedError),
    "a list for a manifest": (lambda p: resummed(p[0], metadata=b"[1]"), PieceDamagedError),
    "another source than its manifest": (lambda p: resummed(p[0], source=bytes(16)), PieceDamagedError),
    "with data": (lambda p: resummed(p[0], data=b"x"), PieceDamagedError),
    "of part 1": (lambda p: resummed(p[0], part=1), PieceDamagedError),
    "the last too early": (lambda p: resummed(p[0], last=True), PieceEndError),
    "another format": (lambda p: resummed(p[0], metadata=b'{"format":2,"new":1}'), SnapshotFormatError),
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
            assembler.add(resummed(pieces[-1], number=len(pieces)))
        with pytest.raises(PieceDuplicateError):
            assembler.add(pieces[-1])
        assembler.finish()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_last_piece_that_does_not_say_so_is_refused(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    with pytest.raises(PieceDamagedError, match="does not say so"):
        assemble([*pieces[:-1], resummed(pieces[-1], last=False)], tmp_path / "there")
    assert contents(tmp_path / "there") == {}


def test_a_part_that_is_not_the_manifests_is_refused_though_every_piece_is_whole(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    pieces[2] = resummed(pieces[2], data=bytes(len(pieces[2].data)))
    with pytest.raises(PieceDamagedError, match=r"shard-001\.mdb does not match"):
        assemble(pieces, tmp_path / "there")
    assert contents(tmp_path / "there") == {}


def test_a_piece_that_completes_a_part_wrongly_is_refused_and_the_right_one_still_fits(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "here")
    with SnapshotAssembler(tmp_path / "there") as assembler:
        for piece in pieces:
            if piece.number in (4, 6):
                with pytest.raises(PieceDamagedError, match="does not match the checksum of its manifest"):
                    assembler.add(resummed(piece, data=bytes(len(piece.data))))
            assembler.add(piece)
        assembler.finish()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


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
    if change(fields) == fields[:-1]:  # the checksum is not there: a piece, but not a whole one
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
    return Piece(bytes.fromhex(manifest.checksum), 0, 0, 0, b"", msgspec.json.encode(manifest), False).summed()


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
