"""The running Python's standard library as a log: every line of every source file is an entry, in a fixed order."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from shardengine import Entry, Put, encode
from shardengine.engine.cli.feed import Chunk

TERM = 1
CHUNK_BYTES_MAX = 1 << 20


class Corpus:
    """The first `limit` lines of the standard library's sources: key `path:line`, value the line, index its number."""

    def __init__(self, limit: int | None = None) -> None:
        self.root = Path(sysconfig.get_path("stdlib"))
        self.files = _sources(self.root)
        self.entries = 0
        self.bytes = 0
        """Keys and values of all entries."""
        for key, value in self._first(limit):
            self.entries += 1
            self.bytes += len(key) + len(value)

    def chunks(self, entries_max: int, samples: dict[bytes, bytes]) -> Iterator[Chunk]:
        """The log, cut into chunks; the first record of each chunk is noted in `samples`."""
        entries: list[Entry] = []
        size = 0
        for index, (key, value) in enumerate(self.lines(), start=1):
            if not entries:
                samples[key] = value
            data = encode(Put(key, value))
            entries.append(Entry(index, TERM, data))
            size += len(data)
            if len(entries) >= entries_max or size >= CHUNK_BYTES_MAX or index == self.entries:
                yield Chunk(entries, index)
                entries, size = [], 0

    def lines(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of every entry."""
        return self._first(self.entries)

    def _first(self, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        left = sys.maxsize if limit is None else limit
        for path in self.files:
            lines = path.read_bytes().split(b"\n")
            if not lines[-1]:
                lines.pop()
            name = os.fsencode(path.relative_to(self.root)) + b":"
            for number, line in enumerate(lines[:left], start=1):
                yield name + b"%d" % number, line
            left -= len(lines)
            if left <= 0:
                return


def _sources(root: Path) -> list[Path]:
    """Every source file of the library, but nothing that was installed beside it."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in ("site-packages", "dist-packages", "__pycache__"))
        found.extend(Path(folder, name) for name in files if name.endswith(".py"))
    return sorted(found)
