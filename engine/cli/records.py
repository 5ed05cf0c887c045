"""Lines of a file into entries.

Every line is an entry, in order, so that a load can go on where it ended and an error can name the line. An empty line
is an entry without a command: it moves the index and nothing else.

tsv: `key TAB value`. In both, backslash-t, backslash-n, backslash-r and two backslashes stand for a tab, a newline, a
carriage return and a backslash; any other byte stands for itself. A line may end in CR LF.

jsonl: one object a line: `{"key": "a", "value": "b"}`, or `{"op": "delete", "key": "a"}`. `key_hex` and `value_hex`
give the bytes in hexadecimal. `scan --json` prints this form. Of a machine with other commands: see `commands.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec
from msgspec import UNSET, UnsetType

from shardengine import Delete, Entry, KeyValue, LogId, Machine, Put, encode
from shardengine.engine.cli.commands import Commands
from shardengine.engine.cli.common import DataSaysNoError
from shardengine.engine.cli.feed import Chunk
from shardengine.engine.cli.loads import Mark, Prefix
from shardengine.engine.cli.source import Lines

TERM = 1
"""What is loaded belongs to one term, nobody votes here: this one, or that in which a restored log ended."""

Parser = Callable[[bytes], bytes]
"""A line without its newline to the data of an entry; raises ValueError with what is wrong."""

Clock = Callable[[], int]
"""Milliseconds since the epoch, or 0."""


class BadRecordError(DataSaysNoError):
    """A line is no record. The lines before it stay loaded."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(
            f"line {line}: {problem}",
            hint=f"the input is at fault; lines before {line} are loaded: correct it and run the same command again",
        )
        self.line = line


@dataclass(frozen=True)
class Read(Chunk):
    """A chunk with the lines that it was made of, one an entry, and what of the input lies before them."""

    lines: list[bytes]
    before: Prefix

    def mark(self, count: int) -> Mark:
        """The one behind its first `count` lines."""
        prefix = self.before.copy()
        prefix.add(self.lines[:count])
        return Mark(self.entries[count - 1].index, prefix.line, prefix.digest())


class Records:
    """What is left of an input as chunks. Iterate once."""

    def __init__(
        self,
        lines: Lines,
        parse: Parser,
        *,
        before: Prefix,
        last: LogId,
        chunk_entries: int,
        chunk_bytes: int,
        clock: Clock = lambda: 0,
    ) -> None:
        """`before` was read already; the log ends at `last`; `clock` is asked for each entry's time."""
        self.line = before.line
        """Lines read so far."""
        self.entries_behind = last.index - before.line
        """Line N becomes the entry at index N + this."""
        self.open_end_taken = True
        """Whether a last line without a newline is a record; else it stays where it is, and `left_out` says so."""
        self.left_out = False
        self._term = max(TERM, last.term)
        self._prefix = before.copy()
        self._lines = lines
        self._parse = parse
        self._clock = clock
        self._chunk_entries = chunk_entries
        self._chunk_bytes = chunk_bytes

    def __iter__(self) -> Iterator[Read]:
        entries: list[Entry] = []
        lines: list[bytes] = []
        size = 0
        for line, data in self._data():
            if entries and (not isinstance(data, bytes) or size + len(data) > self._chunk_bytes):
                yield self._chunk(entries, lines)
                entries, lines, size = [], [], 0
            if isinstance(data, BadRecordError):
                raise data
            if data is None:
                continue
            entries.append(Entry(self.entries_behind + self.line, self._term, data, self._clock()))
            lines.append(line)
            size += len(data)
            if len(entries) >= self._chunk_entries:
                yield self._chunk(entries, lines)
                entries, lines, size = [], [], 0
        if entries:
            yield self._chunk(entries, lines)

    def _chunk(self, entries: list[Entry], lines: list[bytes]) -> Read:
        before = self._prefix.copy()
        self._prefix.add(lines)
        return Read(entries, self._lines.source.bytes_read, lines, before)

    def _data(self) -> Iterator[tuple[bytes, bytes | BadRecordError | None]]:
        """Each line and the data of its entry; None where the input pauses; a bad record last."""
        while True:
            try:
                lines = self._lines.next()
            except ValueError as error:
                yield b"", BadRecordError(self.line + 1, str(error))
                return
            if lines and self._lines.open_end and not self.open_end_taken:
                lines = lines[:-1]
                self.left_out = True
            if not lines:
                return
            for line in lines:
                self.line += 1
                try:
                    data = self._parse(line) if line else b""
                except ValueError as error:
                    yield line, BadRecordError(self.line, str(error))
                    return
                yield line, data
            if not self._lines.has_more():
                yield b"", None


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
    op: Literal["put", "delete"] | UnsetType = UNSET
    key: str | UnsetType = UNSET
    key_hex: str | UnsetType = UNSET
    value: str | UnsetType = UNSET
    value_hex: str | UnsetType = UNSET


_decode_line = msgspec.json.Decoder(_Line).decode


def parse_jsonl(line: bytes) -> bytes:
    if not line.strip():
        return b""
    try:
        record = _decode_line(line)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    _refuse_twins(line, record)
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


def _refuse_twins(line: bytes, record: _Line) -> None:
    """Of members that come twice a decoder keeps one, and nobody knows which was meant. Names and values are strings
    all, so four quotes a member say that there are no others; only where more are, it is looked into."""
    members = sum(part is not UNSET for part in (record.op, record.key, record.key_hex, record.value, record.value_hex))
    if line.count(b'"') == 4 * members:
        return
    names = Counter(name for name, _ in json.loads(line, object_pairs_hook=list))
    if twins := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"`{twins[0]}` comes twice")


def _either(name: str, text: str | UnsetType, as_hex: str | UnsetType) -> bytes | None:
    if text is not UNSET:
        if as_hex is not UNSET:
            raise ValueError(f"both `{name}` and `{name}_hex`")
        return text.encode()
    try:
        return None if as_hex is UNSET else bytes.fromhex(as_hex)
    except ValueError:
        raise ValueError(f"`{name}_hex` is not hexadecimal") from None


PARSERS: dict[str, Parser] = {"tsv": parse_tsv, "jsonl": parse_jsonl}


def parser_of(form: str | None, machine: type[Machine]) -> Parser:
    """What reads the lines of a file for `machine`. Without a `form` they are tsv if it has a Put, else jsonl.

    Raises ValueError for tsv where it has none.
    """
    if form == "tsv" and not _has_put(machine):
        raise ValueError(f"tsv makes key-value commands only, and {machine.name} has none; use --format jsonl")
    if form is None:
        form = "tsv" if _has_put(machine) else "jsonl"
    if form == "jsonl" and machine.command != KeyValue.command:
        return Commands(machine).parse
    return PARSERS[form]


def _has_put(machine: type[Machine]) -> bool:
    return Put in (get_args(machine.command) or (machine.command,))
