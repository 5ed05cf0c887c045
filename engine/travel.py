"""A snapshot on its way to another host: numbered pieces here, the same directory there.

    piece 0    the manifest, no data
    piece 1..  the bytes of the parts, one part after the other; no piece spans two; empty parts have none
    the last   says so

Every piece names its snapshot (`source`, the checksum of the manifest) and carries a checksum of all it says. How
pieces get across is the host's business; `encode_piece` gives bytes. One piece at a time is in memory on either side.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO

import msgspec

from engine.config import MIB
from engine.errors import (
    PieceDamagedError,
    PieceDuplicateError,
    PieceEndError,
    PieceGapError,
    PieceSourceError,
    SnapshotDamagedError,
    SnapshotFormatError,
    TravelError,
)
from engine.manifest import MANIFEST, SNAPSHOT_FORMAT, Manifest, PartInfo, read_manifest, write_manifest
from engine.retention import PARTIAL, Partial, snapshot_info, sweep
from shards.digest import checksum128, hasher128

PIECE_BYTES = 1 * MIB
PIECE_BYTES_MAX = 64 * MIB

_PURPOSE = "travel"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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


def stream_snapshot(path: str | os.PathLike[str], piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """The pieces of the snapshot at `path`, in order; no piece holds more than `piece_bytes` of data.

    Reads as it goes, and blocks for that; at most one file is open, and closed when the generator is. A part is
    checked against the manifest while it is read: of a damaged one the end is not given out.

    Raises:
        TravelError: `piece_bytes` is out of range, or a file cannot be read.
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
    if fault := _fault_of(manifest):
        raise SnapshotDamagedError(f"{folder / MANIFEST}: {fault}", hint="take another snapshot", path=str(folder))
    return _pieces(folder, manifest, piece_bytes)


def _pieces(folder: Path, manifest: Manifest, piece_bytes: int) -> Iterator[Piece]:
    source = bytes.fromhex(manifest.checksum)
    left = sum(info.bytes for info in manifest.parts)
    yield Piece(source, 0, 0, 0, b"", msgspec.json.encode(manifest), left == 0).sealed()
    number = 1
    for part, info in enumerate(manifest.parts):
        for offset, data in _read(folder / info.file, info, piece_bytes):
            left -= len(data)
            yield Piece(source, number, part, offset, data, b"", left == 0).sealed()
            number += 1


def _read(path: Path, info: PartInfo, piece_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Stretches of a part with their offsets. Raises SnapshotDamagedError before the one that would complete a bad one."""
    hasher = hasher128()
    with file_errors_named(f"reading {path}"), _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != info.bytes:
            raise _damaged(path, f"has {size} bytes, not the {info.bytes} of its manifest")
        for offset in range(0, size, piece_bytes):
            data = file.read(min(piece_bytes, size - offset))
            hasher.update(data)
            if offset + piece_bytes >= size and hasher.hexdigest() != info.checksum:
                raise _damaged(path, "does not match the checksum of its manifest")
            yield offset, data


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None


def _damaged(path: Path, fault: str) -> SnapshotDamagedError:
    return SnapshotDamagedError(f"{path} {fault}", hint="send another snapshot", path=str(path))


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
            _check_place(piece, self._writer)
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
        with self._file_work():
            if self._is_there(self._manifest):
                path = self._directory / self._manifest.name
            else:
                write_manifest(self._partial.path, self._manifest)
                path = self._partial.seal(self._manifest.name)
        self.abandon()
        return path

    def abandon(self) -> None:
        """Remove everything that was not finished. Nothing can be added afterwards."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()
        if self._partial is not None:
            self._partial.remove()

    def __enter__(self) -> SnapshotAssembler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _check_open(self) -> None:
        if self._closed:
            raise TravelError("the assembly is over: finished, abandoned or failed", hint="begin another one")

    def _check_piece(self, piece: Piece) -> None:
        """Whether it is whole, of this snapshot, and the next one."""
        if piece.checksum != piece.expected_checksum():
            raise PieceDamagedError(
                f"piece {piece.number} does not match its checksum", hint="send it again", number=piece.number
            )
        if self._manifest is not None and piece.source.hex() != self._manifest.checksum:
            raise PieceSourceError(
                f"piece {piece.number} is of snapshot {piece.source.hex()}, not {self._manifest.checksum}",
                hint="finish one snapshot before the next, or abandon it and begin anew",
                number=piece.number,
            )
        numbers = {"number": piece.number, "expected": self._next}
        if piece.number < self._next:
            raise PieceDuplicateError(f"piece {piece.number} came before; {self._next} is next", **numbers)
        if self._complete:
            raise PieceEndError(f"piece {piece.number} comes after the last, {self._next - 1}", **numbers)
        if piece.number > self._next:
            raise PieceGapError(
                f"piece {piece.number} comes where {self._next} is next", hint=f"send from {self._next} on", **numbers
            )

    def _begin(self, piece: Piece) -> None:
        manifest = _manifest_of(piece)
        with self._file_work():
            self._is_there(manifest)
            self._partial = Partial(self._directory, _PURPOSE)
            self._writer = _Writer(self._partial.path, manifest.parts)
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

    @contextmanager
    def _file_work(self) -> Iterator[None]:
        """What fails in here leaves files in an unknown state, and so ends the assembly."""
        try:
            with file_errors_named(f"assembling in {self._directory}"):
                yield
        except BaseException:
            self.abandon()
            raise


def _manifest_of(piece: Piece) -> Manifest:
    """The manifest that piece 0 carries, checked."""
    try:
        found = msgspec.json.decode(piece.metadata, type=dict[str, object]).get("format")
        if found != SNAPSHOT_FORMAT:
            raise SnapshotFormatError(
                f"the snapshot has format {found!r}; this version reads format {SNAPSHOT_FORMAT}",
                hint="install it with the version that wrote it",
                format=found,
            )
        manifest = msgspec.json.decode(piece.metadata, type=Manifest)
    except msgspec.MsgspecError as error:
        raise PieceDamagedError(f"piece 0 carries no manifest: {error}", hint="send it again", number=0) from error
    fault = _fault_of(manifest)
    if piece.source.hex() != manifest.checksum or manifest.checksum != manifest.expected_checksum():
        fault = "the manifest does not match its checksum"
    elif piece.data or piece.part or piece.offset:
        fault = f"it holds {len(piece.data)} bytes of part {piece.part}"
    elif not fault and piece.last != (sum(info.bytes for info in manifest.parts) == 0):
        raise PieceEndError("piece 0 is wrong about being the last", hint="send it again", number=0)
    if fault:
        raise PieceDamagedError(f"piece 0: {fault}", hint="send it again", number=0)
    return manifest


def _fault_of(manifest: Manifest) -> str:
    """What no honest manifest says: names that lead out of the directory or clash, numbers that cannot be."""
    names = [info.file for info in manifest.parts]
    for name in names:
        if "/" in name or "\0" in name or name.startswith((".", MANIFEST)) or not 0 < len(os.fsencode(name)) < 256:
            return f"{name!r} is no name of a part"
    if len(set(names)) < len(names):
        return "two parts have one name"
    if len(names) != manifest.shards or min(manifest.last_included.index, manifest.last_included.term) < 0:
        return f"{len(names)} parts for {manifest.shards} shards at {manifest.last_included}"
    for info in manifest.parts:
        if info.bytes < 0 or (info.bytes == 0 and info.checksum != checksum128(b"").hex()):
            return f"{info.file} cannot have {info.bytes} bytes and checksum {info.checksum}"
    return ""


def _check_place(piece: Piece, writer: _Writer) -> None:
    """Whether the piece goes on where the files end, and ends where it says. Raises PieceError kinds."""
    number = piece.number
    if (piece.part, piece.offset) != (writer.part, writer.offset):
        raise PieceGapError(
            f"piece {number} begins at byte {piece.offset} of part {piece.part}; byte {writer.offset} of part "
            f"{writer.part} is next",
            number=number,
        )
    if piece.metadata or not 0 < len(piece.data) <= writer.room:
        raise PieceDamagedError(
            f"piece {number} has {len(piece.data)} bytes of data and {len(piece.metadata)} of metadata; part "
            f"{piece.part} has room for {writer.room}",
            number=number,
        )
    whole = writer.is_whole_with(piece.data)
    if piece.last and not whole:
        raise PieceEndError(f"piece {number} says to be the last, but bytes are missing", number=number)
    if whole and not piece.last:
        raise PieceDamagedError(f"piece {number} completes the snapshot and does not say so", number=number)
    if len(piece.data) == writer.room and not writer.matches_with(piece.data):
        raise PieceDamagedError(
            f"part {piece.part} does not match the checksum of its manifest",
            hint="the snapshot was damaged before it was sent; send another one",
            number=number,
        )


class _Writer:
    """Writes the parts, one file after the other. `part` and `offset` say where the next byte goes.

    Invariant: a file that is full is on the disk and closed; at most one is open.
    """

    def __init__(self, folder: Path, parts: list[PartInfo]) -> None:
        self._folder = folder
        self._parts = parts
        self._file: BinaryIO | None = None
        self._last = max((part for part, info in enumerate(parts) if info.bytes), default=-1)
        self.part, self.offset = -1, 0
        self._go_on()

    @property
    def room(self) -> int:
        return self._parts[self.part].bytes - self.offset

    def is_whole_with(self, data: bytes) -> bool:
        return self.part == self._last and len(data) == self.room

    def matches_with(self, data: bytes) -> bool:
        """Whether the open part, ended by `data`, is what the manifest says."""
        hasher = self._hasher.copy()
        hasher.update(data)
        return hasher.hexdigest() == self._parts[self.part].checksum

    def write(self, data: bytes) -> None:
        assert self._file is not None and len(data) <= self.room
        self._file.write(data)
        self._hasher.update(data)
        self.offset += len(data)
        if self.room == 0:
            self._go_on()

    def _go_on(self) -> None:
        """Complete the open file; open the next one that will have bytes, making the empty ones on the way."""
        while True:
            self._complete()
            self.part, self.offset = self.part + 1, 0
            if self.part == len(self._parts):
                return
            self._file = (self._folder / self._parts[self.part].file).open("xb")
            self._hasher = hasher128()
            if self.room:
                return

    def _complete(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self.close()

    def close(self) -> None:
        """Close what is open. Does not fail: what is not flushed by now is given up."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass


@contextmanager
def file_errors_named(doing: str) -> Iterator[None]:
    """Turn an OSError into a TravelError that says what was being done, and keeps `errno`."""
    try:
        yield
    except OSError as error:
        hint = "make room" if error.errno in _FULL else "see that the path is right and may be used"
        raise TravelError(f"{doing}: {error.strerror or error}", hint=hint, errno=error.errno) from error
