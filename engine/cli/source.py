"""What a file descriptor holds, as lines of UTF-8: unpacked and decoded by what it begins with.

gzip, bzip2 and xz are read as if they were unpacked; UTF-8, UTF-16 and UTF-32 with a byte order mark lose it and
become UTF-8. What this Python cannot read is named, with the command that can. A byte order mark says that text
follows, whatever that begins with.
"""

from __future__ import annotations

import bz2
import codecs
import itertools
import lzma
import os
import select
import shlex
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from shardengine.engine.cli.common import DataSaysNoError
from shardengine.engine.cli.streams import named

READ_BYTES = 1 << 18
LINE_BYTES_MIN = 1 << 20
"""A line may always be this long; longer ones only where the value limit asks for it."""


class _Unpacker(Protocol):
    """What `bz2` and `lzma` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gunzip:
    """`zlib` with the manners of `bz2` and `lzma`."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        found = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.needs_input = len(found) < max_length and not self._inner.unconsumed_tail
        return found


_BZIP2 = [b"BZh%d%s" % (level, block) for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")]
_PACKINGS: dict[bytes, tuple[str, Callable[[], _Unpacker]]] = {
    b"\x1f\x8b": ("gzip", _Gunzip),
    **dict.fromkeys(_BZIP2, ("bzip2", bz2.BZ2Decompressor)),
    b"\xfd7zXZ\0": ("xz", lzma.LZMADecompressor),
}
_UNREAD = {
    b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4cat"),
    b"\x1f\x9d": ("compress", "zcat"),
    b"PK\x03\x04": ("zip", "unzip -p"),
}
_ENCODINGS = {  # the longer ones first: UTF-32's mark begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_PACKED = [*_PACKINGS, *_UNREAD]


def text_mark(head: bytes) -> bytes:
    """What to print before `head`, so that it is read back as the very bytes that it is: nothing, or a mark."""
    special = [mark for mark in (*_PACKED, *_ENCODINGS) if head.startswith(mark)]
    return codecs.BOM_UTF8 if special or _wide(head) else b""


def _wide(head: bytes) -> str:
    """The encoding of text that begins like UTF-16 without its mark, or ""."""
    low, high = head[0:16:2], head[1:16:2]
    if len(high) < 4:
        return ""
    if all(low) and not any(high):
        return "UTF-16LE"
    return "UTF-16BE" if all(high) and not any(low) else ""


class Source:
    """The text of a file descriptor, in blocks. `interrupt()` ends the input, and a thread's wait for it."""

    def __init__(self, fd: int, name: str) -> None:
        """`name` is what a person would type for it: a path, or "-"."""
        self.bytes_read = 0
        self.interrupted = False
        self.packing = ""
        found = os.fstat(fd)
        self.is_file = stat.S_ISREG(found.st_mode)
        """Whether it can be read twice; and whether it may still grow, unless it is packed."""
        self.bytes_total = found.st_size if self.is_file else None
        self._fd = fd
        self._name = name
        self._start = os.lseek(fd, 0, os.SEEK_CUR) if self.is_file else 0
        self._wake_receive, self._wake_send = os.pipe()
        self._blocks = self._text()

    def close(self) -> None:
        os.close(self._wake_receive)
        os.close(self._wake_send)

    @property
    def found(self) -> os.stat_result:
        return os.fstat(self._fd)

    @property
    def is_terminal(self) -> bool:
        return os.isatty(self._fd)

    def interrupt(self) -> None:
        self.interrupted = True
        os.write(self._wake_send, b"!")

    def rewind(self) -> None:
        """Begin again; for files."""
        assert self.is_file
        os.lseek(self._fd, self._start, os.SEEK_SET)
        self.bytes_read = 0
        self._blocks = self._text()

    def has_more(self) -> bool:
        """Whether reading would not wait (true at the end, too)."""
        return bool(self._ready(0))

    def block(self) -> bytes:
        """The next stretch of text; empty at the end.

        Raises:
            ValueError: it is damaged, or cut off.
            DataSaysNoError: it is packed or encoded in a way that cannot be read here.
        """
        return next(self._blocks, b"")

    def _text(self) -> Iterator[bytes]:
        stored = iter(self._read, b"")
        head = _head(stored, _PACKED)
        for magic, (packing, tool) in _UNREAD.items():
            if head.startswith(magic):
                raise self._unreadable(f"compressed with {packing}", tool)
        blocks: Iterator[bytes] = itertools.chain((head,), stored)
        for magic, (packing, unpacker) in _PACKINGS.items():
            if head.startswith(magic):
                self.packing = packing
                blocks = self._unpacked(blocks, unpacker)
        yield from self._decoded(blocks)

    def _unpacked(self, blocks: Iterable[bytes], unpacker: Callable[[], _Unpacker]) -> Iterator[bytes]:
        """Members one after the other, with padding between them, as the tools take them."""
        member, begun = unpacker(), False
        for block in blocks:
            while block or (begun and not member.needs_input):
                begun = True
                try:
                    text = member.decompress(block, READ_BYTES)
                except (zlib.error, lzma.LZMAError, OSError) as error:
                    raise ValueError(f"the {self.packing} data is damaged: {error}") from None
                block = b""
                if text:
                    yield text
                if member.eof:
                    block = member.unused_data.lstrip(b"\0")
                    member, begun = unpacker(), False
        if begun and not self.interrupted:
            raise ValueError(f"the {self.packing} data is cut off")

    def _decoded(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        head = _head(blocks, _ENCODINGS)
        encoding = ""
        for mark, name in _ENCODINGS.items():
            if head.startswith(mark):
                encoding, head = name, head[len(mark) :]
                break
        else:
            if wide := _wide(head):
                raise self._unreadable(f"{wide} without a byte order mark", f"iconv -f {wide} -t UTF-8")
        blocks = (block for block in itertools.chain((head,), blocks) if block)
        if encoding in ("", "utf-8"):
            yield from blocks
            return
        decoder = codecs.getincrementaldecoder(encoding)()
        for block in itertools.chain(blocks, (b"",)):
            try:
                text = decoder.decode(block, final=not block and not self.interrupted)
            except UnicodeDecodeError as error:
                raise ValueError(f"no {encoding.upper()} text: {error.reason}") from None
            if text:
                yield text.encode()

    def _unreadable(self, what: str, command: str) -> DataSaysNoError:
        return DataSaysNoError(
            f"{self._name}: {what}", hint=f"{command} {shlex.quote(self._name)} | shardengine load -"
        )

    def _read(self) -> bytes:
        ready = self._ready(None)
        if self.interrupted or self._wake_receive in ready:
            return b""
        with named("standard input" if self._name == "-" else self._name):
            block = os.read(self._fd, READ_BYTES)
        self.bytes_read += len(block)
        return block

    def _ready(self, timeout_ms: int | None) -> list[int]:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake_receive, select.POLLIN)
        return [fd for fd, _ in poll.poll(timeout_ms)]


def _head(blocks: Iterator[bytes], marks: Iterable[bytes]) -> bytes:
    """As much from the front as it takes to know which of `marks` it begins with."""
    head = b""
    for block in blocks:
        head += block
        if not any(len(head) < len(mark) and mark.startswith(head) for mark in marks):
            break
    return head


class Lines:
    """The lines of a source, without their newlines."""

    def __init__(self, source: Source, line_bytes_max: int) -> None:
        self.source = source
        self.open_end = False
        """Whether the last line of all was read, and has no newline."""
        self._line_bytes_max = max(line_bytes_max, LINE_BYTES_MIN)
        self._given_back: list[bytes] = []
        self._rest: list[bytes] = []
        self._rest_bytes = 0

    def has_more(self) -> bool:
        return bool(self._given_back) or self.source.has_more()

    def give_back(self, lines: list[bytes]) -> None:
        """The next lines are these once more."""
        self._given_back = lines

    def rewind(self, line: int) -> None:
        """Go to behind line `line` of a file."""
        self.source.rewind()
        self.open_end = False
        self._given_back, self._rest, self._rest_bytes = [], [], 0
        while line and (lines := self.next()):
            self.give_back(lines[line:])
            line -= min(line, len(lines))

    def next(self) -> list[bytes]:
        """The next complete lines; empty at the end. The last line needs no newline: see `open_end`.

        Raises:
            ValueError: a line is longer than allowed, or what `Source.block` raises.
        """
        if self._given_back:
            lines, self._given_back = self._given_back, []
            return lines
        while block := self.source.block():
            head, newline, tail = block.rpartition(b"\n")
            if newline:
                whole = b"".join((*self._rest, head))
                self._rest, self._rest_bytes = [tail], len(tail)
                return whole.split(b"\n")
            self._rest.append(block)
            self._rest_bytes += len(block)
            if self._rest_bytes > self._line_bytes_max:
                raise ValueError(f"longer than {self._line_bytes_max} bytes")
        rest, self._rest = b"".join(self._rest), []
        if not rest or self.source.interrupted:
            return []
        self.open_end = True
        return [rest]
