"""A piece of a travelling snapshot: what it says, and what an honest one can say.

    piece 0    the manifest, no data
    piece 1..  the bytes of the parts, one part after the other; no piece spans two; empty parts have none
    the last   says so

Every piece names its snapshot (`source`, the checksum of the manifest) and carries a checksum of all it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec

from shardengine.engine.errors import PieceDamagedError, PieceEndError, TravelError
from shardengine.engine.snapshot.manifest import Manifest, parse_manifest
from shardengine.ipc.errors import hint_for
from shardengine.shards.digest import hasher128

_Natural = Annotated[int, msgspec.Meta(ge=0)]


class Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A stretch of a snapshot: `data` begins at byte `offset` of the manifest's part number `part`.

    source: the checksum of the manifest, 16 bytes. number: from 0, without gaps. metadata: JSON of the manifest on
    piece 0, else empty. last: no piece follows. checksum: XXH3-128 of all the others, see `sealed`.
    """

    source: bytes
    number: _Natural
    part: _Natural
    offset: _Natural
    data: bytes
    metadata: bytes
    last: bool
    checksum: bytes = b""

    def sealed(self) -> Piece:
        """This piece with the checksum that belongs to it."""
        return msgspec.structs.replace(self, checksum=self.expected_checksum())

    def expected_checksum(self) -> bytes:
        place = (self.source, self.number, self.part, self.offset, len(self.data), self.metadata, self.last)
        hasher = hasher128(msgspec.msgpack.encode(place))
        hasher.update(self.data)
        return hasher.digest()


def encode_piece(piece: Piece) -> bytes:
    return msgspec.msgpack.encode(piece)


def decode_piece(data: bytes) -> Piece:
    """Raises PieceDamagedError when `data` is no piece. Whether it is undamaged, `SnapshotAssembler.add` finds out."""
    try:
        return msgspec.msgpack.decode(data, type=Piece)
    except msgspec.MsgspecError as error:
        raise PieceDamagedError(f"{len(data)} bytes are no piece: {error}", hint="send it again") from error


def manifest_of(piece: Piece) -> Manifest:
    """The manifest that piece 0 carries.

    Raises:
        SnapshotFormatError: this version cannot read the snapshot.
        PieceDamagedError, PieceEndError: the piece, or the manifest, says what cannot be.
    """
    try:
        manifest = parse_manifest(piece.metadata, "the snapshot")
    except ValueError as error:
        raise PieceDamagedError(f"what piece 0 carries {error}", hint="send it again", number=0) from error
    fault = ""
    if piece.source.hex() != manifest.checksum:
        fault = "the manifest is not that of the snapshot it names"
    elif piece.data or piece.part or piece.offset:
        fault = f"it has {len(piece.data)} bytes of part {piece.part}; the first piece has none"
    if fault:
        raise PieceDamagedError(f"piece 0: {fault}", hint="send it again", number=0)
    check_end(piece, whole=not any(info.bytes for info in manifest.parts))
    return manifest


def check_end(piece: Piece, *, whole: bool) -> None:
    """Raises PieceEndError when the piece says to be the last and is not, PieceDamagedError when it is and does not."""
    if piece.last and not whole:
        raise PieceEndError(
            f"piece {piece.number} says to be the last, but bytes are missing",
            hint="the sender gave up; let it begin anew",
            number=piece.number,
        )
    if whole and not piece.last:
        raise PieceDamagedError(
            f"piece {piece.number} completes the snapshot and does not say so",
            hint="send it again",
            number=piece.number,
        )


@contextmanager
def file_errors_named(doing: str) -> Iterator[None]:
    """Turn an OSError into a TravelError that says what was being done, and keeps `errno`."""
    try:
        yield
    except OSError as error:
        raise TravelError(f"{doing}: {error.strerror or error}", hint=hint_for(error), errno=error.errno) from error
