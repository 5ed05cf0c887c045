"""A snapshot as one file: a tar, which `tar tvf` shows and `tar xf` unpacks into a directory that `restore` takes.

    <index>-<term>/manifest.json
    <index>-<term>/<part>            one after the other, in the manifest's order
    two empty blocks

Everything in the headers but names and sizes is always the same, so a snapshot is always the same file; sizes beyond
8 GiB are written as GNU tar does. Reading takes exactly what writing makes: each header is compared with the one that
must stand there, and names are only ever compared, never followed. What the parts hold is checked as it is in pieces.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shardengine.engine.errors import PieceDamagedError, PieceEndError, SnapshotFormatError, TravelError
from shardengine.engine.snapshot.manifest import MANIFEST, MANIFEST_BYTES_MAX, Manifest, manifest_bytes, parse_manifest
from shardengine.engine.snapshot.transfer import (
    PIECE_BYTES,
    Piece,
    SnapshotAssembler,
    file_errors_named,
    manifest_of,
    numbered,
    stream_snapshot,
)
from shardengine.engine.storage.files import sync_directory
from shardengine.ipc.files import open_plain, sync

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_BEFORE_TAR = b"\x89shardsnap\r\n\x1a\n"
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

_Path = str | os.PathLike[str]


def export_snapshot(path: _Path, file: _Path) -> None:
    """Write the snapshot at `path` to `file`, which is replaced once all of it is on the disk, and not before.

    Blocks. A failure leaves what was there; a crash may leave a hidden file beside it, `.export-` and random digits.

    Raises:
        SnapshotDamagedError, SnapshotFormatError: it is no valid snapshot.
        TravelError: a file cannot be read or written, or what `file` names is no plain file.
    """
    pieces = stream_snapshot(path, PIECE_BYTES)
    target = Path(file)
    beside = target.with_name(f".export-{os.urandom(8).hex()}")  # and no name that a person may have used
    with file_errors_named(f"writing {target}"):
        _check_target(target)
        output = beside.open("xb")
        try:
            with output:
                for block in _blocks(pieces):
                    output.write(block)
                output.flush()
                sync(output.fileno(), beside)
            beside.rename(target)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
        sync_directory(target.parent)


def _check_target(target: Path) -> None:
    if os.path.lexists(target) and not stat.S_ISREG(target.lstat().st_mode):
        raise TravelError(
            f"{target} is there and no plain file; it is not replaced", hint="name another file", path=str(target)
        )


def _blocks(pieces: Iterator[Piece]) -> Iterator[bytes]:
    """The archive of a snapshot that comes in `pieces`."""
    manifest = manifest_of(next(pieces))
    content = manifest_bytes(manifest)
    yield _header(manifest, MANIFEST, len(content)) + content + _padding(len(content))
    piece = next(pieces, None)
    for number, part in enumerate(manifest.parts):
        yield _header(manifest, part.file, part.bytes)
        while piece is not None and piece.part == number:
            yield piece.data
            piece = next(pieces, None)
        yield _padding(part.bytes)
    yield _END


def _header(manifest: Manifest, name: str, size: int) -> bytes:
    """The header of a file in the archive. It has no other form, and is one block, however large the file is."""
    info = tarfile.TarInfo(f"{manifest.name}/{name}")
    info.size = size
    block = info.tobuf(tarfile.GNU_FORMAT)
    assert len(block) == _BLOCK
    return block


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def import_snapshot(file: _Path, directory: _Path) -> Path:
    """Make the snapshot in `file`, which `export_snapshot` wrote, in `directory`. Returns its path there.

    Blocks. A failure leaves nothing.

    Raises:
        PieceEndError: the file was cut off, or goes on after its end.
        PieceDamagedError, or another TravelError: it was edited or damaged, or a file cannot be read or written.
        SnapshotFormatError: it is no archive, or of a version that this one cannot read.
    """
    source = Path(file)
    with file_errors_named(f"reading {source}"), open(open_plain(source.resolve()), "rb") as stream:
        return import_stream(stream, str(source), directory)


def import_stream(stream: BinaryIO, name: str, directory: _Path) -> Path:
    """As `import_snapshot`, from a pipe too, which errors call `name`. What cannot be ends it where it is read."""
    archive = _Archive(stream, name)
    with file_errors_named(f"reading {name}"), SnapshotAssembler(directory) as assembler:
        for piece in archive.pieces():
            assembler.add(piece)
        return assembler.finish()


class _Archive:
    """An archive that is read from its start to its end. Every refusal names the byte."""

    def __init__(self, stream: BinaryIO, source: str) -> None:
        self._stream = stream
        self._source = source
        self._offset = 0

    def pieces(self) -> Iterator[Piece]:
        """What it holds, as the pieces that `stream_snapshot` would have given."""
        manifest = self._manifest()
        return numbered(manifest, self._content(manifest))

    def _content(self, manifest: Manifest) -> Iterator[tuple[int, int, bytes]]:
        """What follows the manifest, to the end: the bytes of the parts, in stretches with part and offset."""
        for part, info in enumerate(manifest.parts):
            self._expect(_header(manifest, info.file, info.bytes), f"the header of {info.file}")
            for offset in range(0, info.bytes, PIECE_BYTES):
                yield part, offset, self._read(min(PIECE_BYTES, info.bytes - offset))
            self._expect(_padding(info.bytes), f"what fills up {info.file}")
        self._expect(_END, "its end")
        if self._some(1):
            raise PieceEndError(f"{self._source} goes on after its end", hint="copy it again", offset=self._offset)

    def _manifest(self) -> Manifest:
        header = self._some(_BLOCK)
        self._check_kind(header)
        try:
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except tarfile.HeaderError as error:
            raise self._foreign(f"its first header is damaged: {error}") from error
        if not 0 < size <= MANIFEST_BYTES_MAX:
            raise self._foreign(f"its first file has {size} bytes; a manifest has up to {MANIFEST_BYTES_MAX}")
        content = self._read(size)
        try:
            manifest = parse_manifest(content, self._source)
        except ValueError as error:
            raise PieceDamagedError(
                f"{self._source}: its manifest {error}", hint="export it again", offset=0
            ) from error
        if content != manifest_bytes(manifest) or header != _header(manifest, MANIFEST, size):
            raise PieceDamagedError(f"{self._source}: its manifest was edited", hint="export it again", offset=0)
        self._expect(_padding(size), "what fills up the manifest")
        return manifest

    def _check_kind(self, header: bytes) -> None:
        """Whether the first block may be a header of ours, or the beginning of one."""
        if header.startswith(_BEFORE_TAR):
            raise self._foreign("it has the form of before there was a release; export the snapshot again")
        for magic, name in _PACKED.items():
            if header.startswith(magic):
                raise self._foreign(f"it is packed: undo the {name} first")
        if not re.fullmatch(rb"\d{0,20}", header[:20]):
            raise self._foreign("it begins with something else")
        if len(header) < _BLOCK:
            raise self._cut_off()

    def _expect(self, expected: bytes, what: str) -> None:
        found = self._read(len(expected))
        if found != expected:
            raise PieceDamagedError(
                f"{self._source}: {what} is not what it must be, before byte {self._offset}",
                hint="copy or export it again; a directory that was unpacked is installed as it is",
                offset=self._offset,
            )

    def _read(self, size: int) -> bytes:
        data = self._some(size)
        if len(data) < size:
            raise self._cut_off()
        return data

    def _some(self, size: int) -> bytes:
        """Less than `size` bytes only at the end."""
        data = self._stream.read(size)
        self._offset += len(data)
        return data

    def _cut_off(self) -> PieceEndError:
        return PieceEndError(
            f"{self._source} ends after {self._offset} bytes", hint="copy it again", offset=self._offset
        )

    def _foreign(self, why: str) -> SnapshotFormatError:
        return SnapshotFormatError(f"{self._source} is no exported snapshot: {why}", hint="was it changed on its way?")
