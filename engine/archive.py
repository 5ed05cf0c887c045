"""A snapshot as one file: what `travel` sends, one piece after the other.

    bytes
    0..13    magic
    14..15   version of this layout, u16
    then, for every piece: its length, u32, and the piece as `encode_piece` gives it

Numbers are little-endian. The file ends with the last piece. The checksums are those of the pieces.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from engine.errors import PieceDamagedError, PieceEndError, SnapshotFormatError, TravelError
from engine.files import sync_directory
from engine.pieces import file_errors_named
from engine.travel import PIECE_BYTES, PIECE_BYTES_MAX, SnapshotAssembler, decode_piece, encode_piece, stream_snapshot

ARCHIVE_VERSION = 1
FRAME_BYTES_MAX = 2 * PIECE_BYTES_MAX

_MAGIC = b"\x89shardsnap\r\n\x1a\n"  # as PNG's: shows when something took the file for text
_HEADER = struct.Struct(f"<{len(_MAGIC)}sH")
_LENGTH = struct.Struct("<I")
assert _HEADER.size == 16

_Path = str | os.PathLike[str]


def export_snapshot(path: _Path, file: _Path, piece_bytes: int = PIECE_BYTES) -> None:
    """Write the snapshot at `path` to `file`, which is replaced once all of it is on the disk, and not before.

    Blocks. A failure leaves what was there; a crash may leave `file` with `.new` appended, which the next export to
    the same place overwrites.

    Raises:
        SnapshotDamagedError, SnapshotFormatError: it is no valid snapshot.
        TravelError: a file cannot be read or written.
    """
    pieces = stream_snapshot(path, piece_bytes)
    target = Path(file)
    beside = target.with_name(target.name + ".new")
    with file_errors_named(f"writing {target}"):
        try:
            with beside.open("wb") as output:
                output.write(_HEADER.pack(_MAGIC, ARCHIVE_VERSION))
                for piece in pieces:
                    _write_frame(output, encode_piece(piece))
                output.flush()
                os.fsync(output.fileno())
            beside.rename(target)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
        sync_directory(target.parent)


def _write_frame(output: BinaryIO, frame: bytes) -> None:
    if len(frame) > FRAME_BYTES_MAX:
        raise TravelError(
            f"the manifest makes a piece of {len(frame)} bytes; an archive takes {FRAME_BYTES_MAX}",
            hint="send the snapshot with stream_snapshot, or copy its directory",
            bytes=len(frame),
        )
    output.write(_LENGTH.pack(len(frame)))
    output.write(frame)


def import_snapshot(file: _Path, directory: _Path) -> Path:
    """Make the snapshot in `file`, which `export_snapshot` wrote, in `directory`. Returns its path there.

    Blocks. A failure leaves nothing.

    Raises:
        PieceEndError: the file was cut off, or goes on after its end.
        PieceDamagedError, or another TravelError: it was edited or damaged, or a file cannot be read or written.
        SnapshotFormatError: it is no archive, or of a version that this one cannot read.
    """
    source = Path(file)
    with file_errors_named(f"reading {source}"), source.open("rb") as stream:
        _check_header(stream, source)
        with SnapshotAssembler(directory) as assembler:
            for frame in _frames(stream, source):
                assembler.add(decode_piece(frame))
            return assembler.finish()


def _check_header(stream: BinaryIO, source: Path) -> None:
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size and _MAGIC.startswith(header[: len(_MAGIC)]):
        raise PieceEndError(f"{source} ends after {len(header)} bytes", hint="copy it again", offset=len(header))
    if not header.startswith(_MAGIC):
        raise SnapshotFormatError(f"{source} is no exported snapshot", hint="was it changed on its way?")
    _, version = _HEADER.unpack(header)
    if version != ARCHIVE_VERSION:
        raise SnapshotFormatError(
            f"{source} has version {version}; this version reads {ARCHIVE_VERSION}",
            hint="import it with the version that wrote it",
            version=version,
        )


def _frames(stream: BinaryIO, source: Path) -> Iterator[bytes]:
    """The encoded pieces, as long as the file goes on."""
    while prefix := stream.read(_LENGTH.size):
        offset = stream.tell()
        length = int.from_bytes(prefix, "little")
        if length > FRAME_BYTES_MAX:
            raise PieceDamagedError(
                f"{source}: a piece of {length} bytes before byte {offset}; {FRAME_BYTES_MAX} is the most",
                hint="the file is damaged; copy or export it again",
                offset=offset,
            )
        frame = stream.read(length)
        if len(prefix) < _LENGTH.size or len(frame) < length:
            raise PieceEndError(
                f"{source} ends inside a piece, after {offset + len(frame)} bytes", hint="copy it again", offset=offset
            )
        yield frame
