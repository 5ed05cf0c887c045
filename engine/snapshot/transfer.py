"""A snapshot on its way to another host: numbered pieces here, the same directory there.

    piece 0    the manifest, no data
    piece 1..  the bytes of the parts, one part after the other; no piece spans two; empty parts have none
    the last   says so

Every piece names its snapshot (`source`, the checksum of the manifest) and carries a checksum of all it says. How they
get across is the host's business; `encode_piece` makes bytes of them. One piece at a time is in memory on either side.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec

from shardengine.engine.config import MIB
from shardengine.engine.errors import (
    PieceDamagedError,
    PieceDuplicateError,
    PieceEndError,
    PieceGapError,
    PieceSourceError,
    SnapshotDamagedError,
    TravelError,
)
from shardengine.engine.snapshot.folder import PARTIAL, Partial, file_errors_named, snapshot_info, sweep
from shardengine.engine.snapshot.manifest import Manifest, parse_manifest, read_manifest, write_manifest
from shardengine.engine.snapshot.parts import read_part, stretches
from shardengine.engine.storage.files import sync_directory
from shardengine.ipc.files import create_file, sync, write_all
from shardengine.shards.digest import hasher128

PIECE_BYTES = 1 * MIB
PIECE_BYTES_MAX = 64 * MIB

_Natural = Annotated[int, msgspec.Meta(ge=0)]


class Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A stretch of a snapshot: `data` begins at byte `offset` of the manifest's part number `part`.

    source: the checksum of the manifest, 16 bytes. number: from 0, without gaps. metadata: JSON of the manifest on
    piece 0, else empty. last: no piece follows. checksum: XXH3-128 of all the others, see `summed`.
    """

    source: bytes
    number: _Natural
    part: _Natural
    offset: _Natural
    data: bytes
    metadata: bytes
    last: bool
    checksum: bytes = b""

    def summed(self) -> Piece:
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


def stream_snapshot(path: str | os.PathLike[str], piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """The pieces of the snapshot at `path`, in order; no piece holds more than `piece_bytes` of data.

    Reads as it goes, and blocks for that; at most one file is open, and closed when the generator is. A part is
    checked against the manifest while it is read: of a damaged one the end is not given out.

    Raises:
        TravelError: `piece_bytes` is out of range.
        SnapshotError: this process lacks what it takes to read a file.
        SnapshotDamagedError: at once, or later when a part turns out to be missing, cut off or damaged.
        SnapshotFormatError: this version cannot read the snapshot.
    """
    if not 1 <= piece_bytes <= PIECE_BYTES_MAX:
        raise TravelError(
            f"piece_bytes = {piece_bytes}: expected 1 to {PIECE_BYTES_MAX}",
            hint=f"leave it out for {PIECE_BYTES}",
            piece_bytes=piece_bytes,
        )
    folder = Path(path)
    manifest = read_manifest(folder)
    return pieces_of(manifest, (stretches(folder / info.file, info, piece_bytes) for info in manifest.parts))


def pieces_of(manifest: Manifest, parts: Iterable[Iterable[tuple[int, bytes]]]) -> Iterator[Piece]:
    """The pieces of a snapshot whose parts come in stretches, each with its offset."""
    source = bytes.fromhex(manifest.checksum)
    left = sum(info.bytes for info in manifest.parts)
    yield Piece(source, 0, 0, 0, b"", msgspec.json.encode(manifest), left == 0).summed()
    number = 1
    for part, found in enumerate(parts):
        for offset, data in found:
            left -= len(data)
            yield Piece(source, number, part, offset, data, b"", left == 0).summed()
            number += 1


def manifest_of(piece: Piece) -> Manifest:
    """The manifest that piece 0 carries.

    Raises:
        SnapshotFormatError: this version cannot read the snapshot.
        PieceDamagedError, PieceEndError: the piece, or the manifest, says what cannot be.
    """
    try:
        manifest = parse_manifest(piece.metadata, "the snapshot")
    except ValueError as error:
        raise _damaged(0, f"carries what {error}") from error
    fault = ""
    if piece.source.hex() != manifest.checksum:
        fault = "carries another manifest than that of the snapshot it names"
    elif piece.data or piece.part or piece.offset:
        fault = f"has {len(piece.data)} bytes of part {piece.part}; the first piece has none"
    if fault:
        raise _damaged(0, fault)
    _check_end(piece, whole=not any(info.bytes for info in manifest.parts))
    return manifest


def _damaged(number: int, what: str, hint: str = "send it again") -> PieceDamagedError:
    return PieceDamagedError(f"piece {number} {what}", hint=hint, number=number)


def _check_end(piece: Piece, *, whole: bool) -> None:
    """Raises PieceEndError when the piece says to be the last and is not, PieceDamagedError when it is and does not."""
    if piece.last and not whole:
        raise PieceEndError(
            f"piece {piece.number} says to be the last, but bytes are missing",
            hint="the sender gave up; let it begin anew",
            number=piece.number,
        )
    if whole and not piece.last:
        raise _damaged(piece.number, "completes the snapshot and does not say so")


class _Writer:
    """Writes the parts into `folder`, one file after the other. `part` and `offset` say where the next byte goes.

    Invariant: a file that is full is on the disk and closed; at most one is open.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Raises OSError; nothing is open then."""
        self._folder = folder
        self._parts = parts = manifest.parts
        self._descriptor = -1
        self._last = max((part for part, info in enumerate(parts) if info.bytes), default=-1)
        self.part, self.offset = -1, 0
        self._go_on()

    def check(self, piece: Piece) -> None:
        """Whether the piece goes on where the files end, and ends what it says. Changes nothing.

        Raises:
            PieceGapError: it begins elsewhere.
            PieceEndError: it says to be the last, and bytes are missing.
            PieceDamagedError: it has no data, or too much, or completes a part that is not what the manifest says.
        """
        number, size, room = piece.number, len(piece.data), self._parts[self.part].bytes - self.offset
        if (piece.part, piece.offset) != (self.part, self.offset):
            raise PieceGapError(
                f"piece {number} begins at byte {piece.offset} of part {piece.part}; byte {self.offset} of part "
                f"{self.part} is next",
                hint="let the sender begin anew",
                number=number,
            )
        if piece.metadata or not 0 < size <= room:
            has = f"has {size} bytes of data and {len(piece.metadata)} of metadata"
            raise _damaged(number, f"{has}; part {self.part} has room for {room}")
        _check_end(piece, whole=self.part == self._last and size == room)
        if size == room and not self._matches_with(piece.data):
            what = f"ends a part: {self._parts[self.part].file} does not match the checksum of its manifest"
            raise _damaged(number, what, hint="the snapshot was damaged before it was sent; send another one")

    def _matches_with(self, data: bytes) -> bool:
        """Whether the open part, ended by `data`, is what the manifest says."""
        hasher = self._hasher.copy()
        hasher.update(data)
        return hasher.hexdigest() == self._parts[self.part].checksum

    def write(self, data: bytes) -> None:
        write_all(self._descriptor, data, self.offset)
        self._hasher.update(data)
        self.offset += len(data)
        if self.offset == self._parts[self.part].bytes:
            sync(self._descriptor, self._folder / self._parts[self.part].file)
            self._go_on()

    def _go_on(self) -> None:
        """Open the next file that will have bytes, making the empty ones on the way."""
        self.close()
        for part in range(self.part + 1, len(self._parts)):
            self.part, self.offset, self._hasher = part, 0, hasher128()
            path = self._folder / self._parts[part].file
            self._descriptor = create_file(path)
            if self._parts[part].bytes:
                return
            sync(self._descriptor, path)
            self.close()

    def close(self) -> None:
        """Close what is open. Does not fail."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


class SnapshotAssembler:
    """Makes a snapshot in `directory` out of the pieces of `stream_snapshot`, in order.

        with SnapshotAssembler(directory) as assembler:
            for piece in pieces:
                assembler.add(piece)
            path = assembler.finish()

    Everything grows in a new hidden directory, which leaving the `with` block, or `abandon`, removes; what dead
    processes left of theirs is removed when an assembler is made. A refused piece changes nothing: the right one may
    still follow. A file that cannot be written ends the assembly. Blocks for file work; not thread-safe.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._next = 0
        self._complete = self._closed = False
        self._manifest: Manifest | None = None
        self._partial: Partial | None = None
        self._writer: _Writer | None = None
        with file_errors_named(f"sweeping {self._directory}"):
            sweep(self._directory, f"{PARTIAL}travel-")

    @property
    def next_number(self) -> int:
        """The number of the piece that `add` takes next."""
        return self._next

    @property
    def complete(self) -> bool:
        """Whether the last piece was taken, so that `finish` can follow."""
        return self._complete

    def add(self, piece: Piece) -> None:
        """Take the next piece.

        Raises:
            PieceDamagedError: the piece, or the part that it completes, does not match its checksum or manifest.
            PieceSourceError: it belongs to another snapshot than the first one did.
            PieceDuplicateError, PieceGapError: it comes again, or pieces before it are missing.
            PieceEndError: it says to be the last and bytes are missing, or the last one came before it.
            SnapshotFormatError: this version cannot read the snapshot.
            TravelError: a file cannot be written, another snapshot has the name, or the assembly is over.
        """
        self._check_open()
        self._check_piece(piece)
        if self._writer is None:
            self._begin(piece)
        else:
            self._writer.check(piece)
            with self._file_work():
                self._writer.write(piece.data)
        self._next += 1
        self._complete = piece.last

    def finish(self) -> Path:
        """Give the snapshot its name. Returns its path, once all of it is on the disk.

        If the very same snapshot is there already, that one stays and its path is returned.

        Raises:
            PieceEndError: the last piece is missing; it may still be added.
            TravelError: a file cannot be written, another snapshot has the name, or the assembly is over.
        """
        self._check_open()
        if not self._complete:
            raise PieceEndError(
                f"the pieces end at number {self._next}, before the last one",
                hint="send the rest, or abandon the assembly",
                number=self._next,
            )
        assert self._partial is not None and self._manifest is not None
        path = self._directory / self._manifest.name
        if self._is_there(self._manifest):
            self._check_whole(path, self._manifest)
            with self._file_work():
                sync_directory(self._directory)  # who gave it its name may have died before
        else:
            with self._file_work():
                write_manifest(self._partial.path, self._manifest)
                self._partial.seal(self._manifest.name)
        self.abandon()
        return path

    def abandon(self) -> None:
        """Remove everything that was not finished. Nothing can be added afterwards."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()
        if self._partial is not None:
            with file_errors_named(f"removing {self._partial.path}"):
                self._partial.remove()

    def __enter__(self) -> SnapshotAssembler:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def _check_open(self) -> None:
        if self._closed:
            raise TravelError("the assembly is over: finished, abandoned or failed", hint="begin another one")

    def _check_piece(self, piece: Piece) -> None:
        """Whether it is whole, of this snapshot, and the next one."""
        if piece.checksum != piece.expected_checksum():
            raise _damaged(piece.number, "does not match its checksum")
        if self._manifest is not None and piece.source.hex() != self._manifest.checksum:
            what = f"piece {piece.number} is of snapshot {piece.source.hex()}, not {self._manifest.checksum}"
            hint = "finish one snapshot before the next, or abandon it and begin anew"
            raise PieceSourceError(what, hint=hint, number=piece.number)
        if piece.number != self._next or self._complete:
            raise self._out_of_order(piece.number)

    def _out_of_order(self, number: int) -> TravelError:
        if number < self._next:
            return PieceDuplicateError(
                f"piece {number} came before; {self._next} is next", hint="skip it", number=number, expected=self._next
            )
        if self._complete:
            return PieceEndError(f"piece {number} comes after the last, {self._next - 1}", hint="finish", number=number)
        return PieceGapError(
            f"piece {number} comes where {self._next} is next",
            hint=f"send from {self._next} on",
            number=number,
            expected=self._next,
        )

    def _begin(self, piece: Piece) -> None:
        manifest = manifest_of(piece)
        self._is_there(manifest)
        with self._file_work():
            self._partial = Partial(self._directory, "travel")
            self._writer = _Writer(self._partial.path, manifest)
        self._manifest = manifest

    def _is_there(self, manifest: Manifest) -> bool:
        """Whether this very snapshot is in the directory. Raises TravelError when something else has its name."""
        path = self._directory / manifest.name
        if not os.path.lexists(path):
            return False
        info = snapshot_info(path)
        if info is None or info.checksum.hex() != manifest.checksum:
            raise TravelError(
                f"{path} is there, and is not snapshot {manifest.checksum}",
                hint="move it away, or assemble in another directory",
                path=str(path),
            )
        return True

    def _check_whole(self, path: Path, manifest: Manifest) -> None:
        """Raises TravelError when the snapshot that is there says to be the very one, and is damaged."""
        try:
            for part in manifest.parts:
                read_part(path / part.file, part)
        except SnapshotDamagedError as error:
            raise TravelError(
                f"{error.message}, and has the name of the snapshot that came",
                hint="move it away, and finish again",
                path=str(path),
            ) from error

    @contextmanager
    def _file_work(self) -> Iterator[None]:
        """What fails in here leaves files in an unknown state, and so ends the assembly."""
        try:
            with file_errors_named(f"assembling in {self._directory}"):
                yield
        except BaseException:
            self.abandon()
            raise
