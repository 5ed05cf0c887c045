"""Lines of a file into entries.

Line N of the input is log index N, so a load can be resumed and an error can name the line. An empty line is an
entry without a command: it moves the index and nothing else.

tsv: `key TAB value`. In both, backslash-t, backslash-n, backslash-r and two backslashes stand for a tab, a newline, a
carriage return and a backslash; any other byte stands for itself. A line may end in CR LF.

jsonl: one object a line: `{"key": "a", "value": "b"}`, or `{"op": "delete", "key": "a"}`. `key_hex` and `value_hex`
give the bytes in hexadecimal. `scan --json` prints this form.
"""

from __future__ import annotations

import os
import re
import select
import stat
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from engine import Delete, Entry, Put, encode
from engine.cli.common import DataSaysNoError
from engine.cli.feed import Chunk

READ_BYTES = 1 << 18
LINE_BYTES_MIN = 1 << 20
"""A line may always be this long; longer ones only where the value limit asks for it."""

TERM = 1
"""All loaded entries belong to one term: nobody votes here."""

Parser = Callable[[bytes], bytes]
"""A line without its newline to the data of an entry; raises ValueError with what is wrong."""


class BadRecordError(DataSaysNoError):
    """A line is no record. The lines before it stay loaded."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(
            f"line {line}: {problem}",
            hint=f"the input is at fault; lines before {line} are loaded: correct it and run the same command again",
        )
        self.line = line


class Source:
    """The lines of a file descriptor, in blocks. `interrupt()` ends the input, and a thread's wait for it."""

    def __init__(self, fd: int, line_bytes_max: int) -> None:
        self.bytes_read = 0
        self.interrupted = False
        found = os.fstat(fd)
        self.bytes_total = found.st_size if stat.S_ISREG(found.st_mode) else None
        self._fd = fd
        self._line_bytes_max = max(line_bytes_max, LINE_BYTES_MIN)
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._wake_receive, self._wake_send = os.pipe()

    def close(self) -> None:
        os.close(self._wake_receive)
        os.close(self._wake_send)

    def interrupt(self) -> None:
        self.interrupted = True
        os.write(self._wake_send, b"!")

    def has_more(self) -> bool:
        """Whether reading would not wait (true at the end, too)."""
        return bool(select.select([self._fd], [], [], 0)[0])

    def lines(self) -> list[bytes]:
        """The next complete lines, without newlines; empty at the end. The last line needs no newline.

        Raises:
            ValueError: a line is longer than allowed.
        """
        while block := self._read():
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
        return [rest] if rest and not self.interrupted else []

    def _read(self) -> bytes:
        ready, _, _ = select.select([self._fd, self._wake_receive], [], [])
        if self.interrupted or self._wake_receive in ready:
            return b""
        block = os.read(self._fd, READ_BYTES)
        self.bytes_read += len(block)
        return block


class Records:
    """The entries of a source as chunks, from the line after `skip` on. Iterate once."""

    def __init__(self, source: Source, parse: Parser, *, skip: int, chunk_entries: int, chunk_bytes: int) -> None:
        self.line = 0
        """Lines read so far."""
        self.skipped_bytes = 0
        """How far the input was read when the first line that counts appeared."""
        self._source = source
        self._parse = parse
        self._skip = skip
        self._chunk_entries = chunk_entries
        self._chunk_bytes = chunk_bytes

    def __iter__(self) -> Iterator[Chunk]:
        entries: list[Entry] = []
        size = 0
        for data in self._data():
            if isinstance(data, BadRecordError):
                if entries:
                    yield Chunk(entries, self._source.bytes_read)
                raise data
            if data is not None:
                entries.append(Entry(self.line, TERM, data))
                size += len(data)
            full = len(entries) >= self._chunk_entries or size >= self._chunk_bytes
            if entries and (full or data is None):
                yield Chunk(entries, self._source.bytes_read)
                entries, size = [], 0
        if entries:
            yield Chunk(entries, self._source.bytes_read)

    def _data(self) -> Iterator[bytes | BadRecordError | None]:
        """The data of each entry; None where the input pauses; a bad record last."""
        while True:
            try:
                lines = self._source.lines()
            except ValueError as error:
                yield BadRecordError(self.line + 1, str(error))
                return
            if not lines:
                return
            behind = self._skip - self.line
            if behind >= len(lines):
                self.line += len(lines)
                self.skipped_bytes = self._source.bytes_read
                continue
            for line in lines[max(behind, 0) :]:
                self.line = max(self.line, self._skip) + 1
                try:
                    data = self._parse(line) if line else b""
                except ValueError as error:
                    yield BadRecordError(self.line, str(error))
                    return
                yield data
            if not self._source.has_more():
                yield None


_TSV_ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)
_TSV_PLAIN = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"\\": b"\\"}
_TSV_SPECIAL = re.compile(rb"[\t\n\r\\]")
_TSV_ESCAPED = {b"\t": rb"\t", b"\n": rb"\n", b"\r": rb"\r", b"\\": rb"\\"}


def _unescape(found: re.Match[bytes]) -> bytes:
    try:
        return _TSV_PLAIN[found[1]]
    except KeyError:
        raise ValueError(rf"\{found[1].decode(errors='replace')} is no escape; write \\ for a backslash") from None


def parse_tsv(line: bytes) -> bytes:
    line = line.removesuffix(b"\r")
    if not line:
        return b""
    key, tab, value = line.partition(b"\t")
    if not tab:
        raise ValueError("no tab: a record is key, tab, value")
    if b"\t" in value:
        raise ValueError(r"a second tab; write \t for a tab inside a value")
    if b"\\" in line:
        key, value = _TSV_ESCAPE.sub(_unescape, key), _TSV_ESCAPE.sub(_unescape, value)
    return encode(Put(key, value))


def format_tsv(key: bytes, value: bytes) -> bytes:
    """What `parse_tsv` reads back."""
    return b"\t".join(_TSV_SPECIAL.sub(lambda found: _TSV_ESCAPED[found[0]], text) for text in (key, value))


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    op: Literal["put", "delete"] = "put"
    key: str | None = None
    key_hex: str | None = None
    value: str | None = None
    value_hex: str | None = None


_decode_line = msgspec.json.Decoder(_Line).decode


def parse_jsonl(line: bytes) -> bytes:
    if not line.strip():
        return b""
    try:
        record = _decode_line(line)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    key = _either("key", record.key, record.key_hex)
    if key is None:
        raise ValueError("no `key`")
    value = _either("value", record.value, record.value_hex)
    if record.op == "delete":
        if value is not None:
            raise ValueError("a delete has no value")
        return encode(Delete(key))
    if value is None:
        raise ValueError("no `value`")
    return encode(Put(key, value))


def _either(name: str, text: str | None, as_hex: str | None) -> bytes | None:
    if text is not None:
        if as_hex is not None:
            raise ValueError(f"both `{name}` and `{name}_hex`")
        return text.encode()
    try:
        return None if as_hex is None else bytes.fromhex(as_hex)
    except ValueError:
        raise ValueError(f"`{name}_hex` is not hexadecimal") from None


PARSERS: dict[str, Parser] = {"tsv": parse_tsv, "jsonl": parse_jsonl}
