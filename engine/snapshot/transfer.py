"""A snapshot on its way to another host: numbered pieces here, the same directory there.

    piece 0    the manifest, no data
    piece 1..  the bytes of the parts, one part after the other; no piece spans two; empty parts have none
    the last   says so

Every piece names its snapshot (`source`, the checksum of the manifest) and carries a checksum of all it says. How
pieces get across is the host's business; `encode_piece` makes bytes of them. One piece at a time is in memory on
either side.
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
from shardengine.engine.snapshot.folder import PARTIAL, Partial, snapshot_info, sweep
from shardengine.engine.snapshot.manifest import Manifest, PartInfo, parse_manifest, read_manifest, write_manifest
from shardengine.engine.snapshot.parts import read_part, stretches
from shardengine.engine.storage.files import sync_directory
from shardengine.ipc.errors import hint_for
from shardengine.ipc.files import create_file, sync, write_all
from shardengine.shards.digest import hasher128

PIECE_BYTES = 1 * MIB
PIECE_BYTES_MAX = 64 * MIB

_PURPOSE = "travel"
_AGAIN = "send it again"

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
        raise PieceDamagedError(f"{len(data)} bytes are no piece: {error}", hint=_AGAIN) from error


@contextmanager
def file_errors_named(doing: str) -> Iterator[None]:
    """Turn an OSError into a TravelError that says what was being done, and keeps `errno`."""
    try:
        yield
    except OSError as error:
        raise TravelError(f"{doing}: {error.strerror or error}", hint=hint_for(error), errno=error.errno) from error


# ---- sending ---------------------------------------------------------------------------------------------------------


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
        message = f"piece_bytes = {piece_bytes}: expected 1 to {PIECE_BYTES_MAX}"
        raise TravelError(message, hint=f"leave it out for {PIECE_BYTES}", piece_bytes=piece_bytes)
    folder = Path(path)
    manifest = read_manifest(folder)
    content = (
        (part, offset, data)
        for part, info in enumerate(manifest.parts)
        for offset, data in stretches(folder / info.file, info, piece_bytes)
    )
    return numbered(manifest, content)


def numbered(manifest: Manifest, content: Iterable[tuple[int, int, bytes]]) -> Iterator[Piece]:
    """The pieces of a snapshot. `content` is every byte of its parts in order, in stretches with part and offset."""
    source = bytes.fromhex(manifest.checksum)
    left = _bytes_of(manifest.parts)
    yield Piece(source, 0, 0, 0, b"", msgspec.json.encode(manifest), left == 0).summed()
    for number, (part, offset, data) in enumerate(content, 1):
        left -= len(data)
        yield Piece(source, number, part, offset, data, b"", left == 0).summed()


def _bytes_of(parts: list[PartInfo]) -> int:
    return sum(part.bytes for part in parts)


# ---- receiving -------------------------------------------------------------------------------------------------------


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
        self._writer: _PartsWriter | None = None
        with file_errors_named(f"sweeping {self._directory}"):
            sweep(self._directory, f"{PARTIAL}{_PURPOSE}-")

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
            message = f"the pieces end at number {self._next}, before the last one"
            raise PieceEndError(message, hint="send the rest, or abandon the assembly", number=self._next)
        assert self._partial is not None and self._manifest is not None
        path = self._directory / self._manifest.name
        if self._is_there(self._manifest):
            _check_whole(path, self._manifest)
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
        number, expected = piece.number, self._next
        if piece.checksum != piece.expected_checksum():
            raise PieceDamagedError(f"piece {number} does not match its checksum", hint=_AGAIN, number=number)
        if self._manifest is not None and piece.source.hex() != self._manifest.checksum:
            message = f"piece {number} is of snapshot {piece.source.hex()}, not {self._manifest.checksum}"
            hint = "finish one snapshot before the next, or abandon it and begin anew"
            raise PieceSourceError(message, hint=hint, number=number)
        if number < expected:
            message = f"piece {number} came before; {expected} is next"
            raise PieceDuplicateError(message, hint="skip it", number=number, expected=expected)
        if self._complete:
            raise PieceEndError(f"piece {number} comes after the last, {expected - 1}", hint="finish", number=number)
        if number > expected:
            message = f"piece {number} comes where {expected} is next"
            raise PieceGapError(message, hint=f"send from {expected} on", number=number, expected=expected)

    def _begin(self, piece: Piece) -> None:
        manifest = manifest_of(piece)
        self._is_there(manifest)
        with self._file_work():
            self._partial = Partial(self._directory, _PURPOSE)
            self._writer = _PartsWriter(self._partial.path, manifest.parts)
            self._writer.go_on()
        self._manifest = manifest

    def _is_there(self, manifest: Manifest) -> bool:
        """Whether this very snapshot is in the directory. Raises TravelError when something else has its name."""
        path = self._directory / manifest.name
        if not os.path.lexists(path):
            return False
        info = snapshot_info(path)
        if info is None or info.checksum.hex() != manifest.checksum:
            message = f"{path} is there, and is not snapshot {manifest.checksum}"
            raise TravelError(message, hint="move it away, or assemble in another directory", path=str(path))
        return True

    @contextmanager
    def _file_work(self) -> Iterator[None]:
        """What fails in here leaves files in an unknown state, and so ends the assembly."""
        try:
            with file_errors_named(f"assembling in {self._directory}"):
                yield
        except BaseException:
            self.abandon()
            raise


def _check_whole(path: Path, manifest: Manifest) -> None:
    """Raises TravelError when the snapshot that is there says to be the very one, and is damaged."""
    try:
        for part in manifest.parts:
            read_part(path / part.file, part)
    except SnapshotDamagedError as error:
        message = f"{error.message}, and has the name of the snapshot that came"
        raise TravelError(message, hint="move it away, and finish again", path=str(path)) from error


def manifest_of(piece: Piece) -> Manifest:
    """The manifest that piece 0 carries. Raises SnapshotFormatError when this version cannot read the snapshot,
    PieceDamagedError or PieceEndError when the piece, or the manifest, says what cannot be."""
    try:
        manifest = parse_manifest(piece.metadata, "the snapshot")
    except ValueError as error:
        raise PieceDamagedError(f"what piece 0 carries {error}", hint=_AGAIN, number=0) from error
    if piece.source.hex() != manifest.checksum:
        message = "piece 0: the manifest is not that of the snapshot it names"
        raise PieceDamagedError(message, hint=_AGAIN, number=0)
    if piece.data or piece.part or piece.offset:
        message = f"piece 0: it has {len(piece.data)} bytes of part {piece.part}; the first piece has none"
        raise PieceDamagedError(message, hint=_AGAIN, number=0)
    _check_end(piece, left=_bytes_of(manifest.parts))
    return manifest


def _check_end(piece: Piece, *, left: int) -> None:
    """Whether the piece says truly that it is the last, or is not; `left` are the bytes that it leaves to come."""
    number = piece.number
    if piece.last and left:
        message = f"piece {number} says to be the last, but bytes are missing"
        raise PieceEndError(message, hint="the sender gave up; let it begin anew", number=number)
    if not piece.last and not left:
        message = f"piece {number} completes the snapshot and does not say so"
        raise PieceDamagedError(message, hint=_AGAIN, number=number)


class _PartsWriter:
    """Writes the parts, one file after the other. The next byte goes to `_offset` of `_part`; `_left` are to come.

    Invariant: a file that is full is on the disk and closed; at most one is open.
    """

    def __init__(self, folder: Path, parts: list[PartInfo]) -> None:
        self._folder = folder
        self._parts = parts
        self._descriptor = -1
        self._hasher = hasher128()
        self._part, self._offset, self._left = -1, 0, _bytes_of(parts)

    @property
    def _room(self) -> int:
        return self._parts[self._part].bytes - self._offset

    def check(self, piece: Piece) -> None:
        """Whether the piece goes on where the files end, and ends what it says. Changes nothing. Raises PieceGapError,
        PieceEndError, PieceDamagedError: see `SnapshotAssembler.add`."""
        number, size, part = piece.number, len(piece.data), self._part
        if (piece.part, piece.offset) != (part, self._offset):
            message = f"piece {number} begins at byte {piece.offset} of part {piece.part}; byte {self._offset} of part "
            raise PieceGapError(f"{message}{part} is next", hint="let the sender begin anew", number=number)
        if piece.metadata or not 0 < size <= self._room:
            message = f"piece {number} has {size} bytes of data and {len(piece.metadata)} of metadata; part {part} has "
            raise PieceDamagedError(f"{message}room for {self._room}", hint=_AGAIN, number=number)
        _check_end(piece, left=self._left - size)
        if size == self._room:
            hasher = self._hasher.copy()
            hasher.update(piece.data)
            if hasher.hexdigest() != self._parts[part].checksum:
                message = f"{self._parts[part].file} does not match the checksum of its manifest"
                hint = "the snapshot was damaged before it was sent; send another one"
                raise PieceDamagedError(message, hint=hint, number=number)

    def write(self, data: bytes) -> None:
        write_all(self._descriptor, data, self._offset)
        self._hasher.update(data)
        self._offset += len(data)
        self._left -= len(data)
        if self._room == 0:
            self.go_on()

    def go_on(self) -> None:
        """Complete the open file, if one is; open the next one that will have bytes, making the empty ones on the way.
        Called once before the first byte."""
        while True:
            if self._descriptor >= 0:
                sync(self._descriptor, self._folder / self._parts[self._part].file)
                self.close()
            self._part, self._offset = self._part + 1, 0
            if self._part == len(self._parts):
                return
            self._descriptor = create_file(self._folder / self._parts[self._part].file)
            self._hasher = hasher128()
            if self._room:
                return

    def close(self) -> None:
        """Close what is open. Does not fail."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)
