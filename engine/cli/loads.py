"""What was loaded into a directory before, so that an input is known again, and nothing of it taken twice or skipped.

An input is known by its lines, not by its name: by a hash over all that were taken. The file `loads` in the data
directory holds *marks*: when the log ended at `index`, the first `line` lines of an input, with this hash, had been
taken. A mark is written before the chunk that it speaks of is sent, so after the death of all processes the newest
one whose index the log has reached says exactly how far it came; later ones speak of chunks that never were.

A *stretch* is what one run of `load` took of one input. Its head, the first mark that was ever made of that input,
tells others from it early.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import msgspec

from shardengine.engine.cli.common import DataSaysNoError
from shardengine.engine.cli.feed import IN_FLIGHT_CHUNKS
from shardengine.engine.cli.source import Lines
from shardengine.engine.cli.streams import named
from shardengine.engine.errors import FormatError
from shardengine.engine.storage.files import read_json, replace_file, write_whole
from shardengine.shards.digest import hasher128

STRETCHES_MAX = 1000
"""An input that as many others followed is forgotten: loaded again, it is put behind the log."""

HELD_BYTES_MAX = 16 << 20
"""How much of an input is held in memory to tell what it is."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """When the log ended at `index`, the first `line` lines of an input had been taken; `digest` is their hash."""

    index: int
    line: int
    digest: str


class Stretch(msgspec.Struct):
    """What one run took: its head, and its newest marks, a chunk each."""

    head: Mark | None = None
    marks: list[Mark] = []

    def add(self, mark: Mark) -> None:
        self.head = self.head or mark
        self.marks = [*self.marks[-IN_FLIGHT_CHUNKS - 1 :], mark]

    def cut(self, index: int) -> None:
        """Forget what the log, which ends at `index`, does not hold."""
        self.marks = [mark for mark in self.marks if mark.index <= index]

    def checks(self) -> deque[Mark]:
        """What an input has to agree with, first to last, to be this one."""
        last = self.marks[-1]
        return deque([self.head, last] if self.head is not None and self.head.line < last.line else [last])


class _Memory(msgspec.Struct):
    lineage: str
    stretches: list[Stretch]


class Loads:
    """The file `loads` of a directory whose lock is held."""

    def __init__(self, data: Path, lineage: str, index: int, *, durable: bool) -> None:
        """`index`: where the log ends. `durable`: marks survive a power loss, as the state does.

        Raises FormatError when the file is not what this version writes.
        """
        self._path = data / "loads"
        self._durable = durable
        try:
            memory = read_json(self._path, _Memory)
        except FileNotFoundError:
            memory = _Memory(lineage, [])
        except FormatError as error:
            raise FormatError(
                error.message, hint=f"remove {self._path}: what is loaded then is put behind the log"
            ) from error
        self._memory = memory if memory.lineage == lineage else _Memory(lineage, [])
        self._cut(index)

    def _cut(self, index: int) -> None:
        for stretch in self._memory.stretches:
            stretch.cut(index)
        kept = [stretch for stretch in self._memory.stretches if stretch.marks]
        self._memory.stretches = kept[-STRETCHES_MAX:]

    @property
    def stretches(self) -> list[Stretch]:
        return self._memory.stretches

    def begin(self, head: Mark | None) -> None:
        """A new stretch; with the head of the one that it goes on. Of those before it, where they ended is enough."""
        for stretch in self.stretches:
            stretch.marks = stretch.marks[-1:]
        self.stretches.append(Stretch(head))

    def note(self, mark: Mark) -> None:
        """Before the chunk that ends at `mark` is sent."""
        self.stretches[-1].add(mark)
        with named(str(self._path)):
            if self._durable:
                write_whole(self._path, msgspec.json.encode(self._memory))
            else:  # a process's death leaves the one or the other
                replace_file(self._path, msgspec.json.encode(self._memory), synced=False)

    def settle(self, index: int) -> None:
        """The log ends at `index`: forget chunks that did not come so far. Returns when all is on the disk."""
        self._cut(index)
        write_whole(self._path, msgspec.json.encode(self._memory))


class Prefix:
    """The lines of an input from its first on: how many, and their hash."""

    def __init__(self) -> None:
        self.line = 0
        self._hasher = hasher128()

    def add(self, lines: list[bytes]) -> None:
        if lines:
            self.line += len(lines)
            self._hasher.update(b"\n".join(lines) + b"\n")

    def copy(self) -> Prefix:
        other = Prefix()
        other.line, other._hasher = self.line, self._hasher.copy()
        return other

    def digest(self) -> str:
        return str(self._hasher.hexdigest())


class Recognition:
    """Reads an input as far as it agrees with one that was loaded before.

    Afterwards `prefix` is what was taken of it then (nothing, when it is new) and `head` that one's head; the lines
    stand behind the prefix.
    """

    def __init__(self, lines: Lines, stretches: list[Stretch]) -> None:
        """Blocks for reading. Raises what reading raises, and DataSaysNoError when a pipe turns out late to be
        another input than it seemed."""
        self.prefix = Prefix()
        self.head: Mark | None = None
        self._lines = lines
        self._read = Prefix()
        self._held: list[bytes] | None = []
        self._held_bytes = 0
        self._open = [(stretch.head, stretch.checks()) for stretch in stretches]
        while self._open and (block := lines.next()):
            self._take(block)
        self._go_back()

    def _take(self, block: list[bytes]) -> None:
        while block and self._open:
            stop = min(checks[0].line for _, checks in self._open) - self._read.line
            part, block = block[:stop], block[stop:]
            self._read.add(part)
            self._hold(part)
            if len(part) == stop:
                self._compare()
        self._hold(block)

    def _hold(self, lines: list[bytes]) -> None:
        if self._held is not None:
            self._held += lines
            self._held_bytes += sum(map(len, lines))
            if self._held_bytes > HELD_BYTES_MAX:
                self._held = None

    def _compare(self) -> None:
        digest, still = self._read.digest(), []
        for head, checks in self._open:
            if checks[0].line != self._read.line:
                still.append((head, checks))
            elif checks.popleft().digest == digest:
                if checks:
                    still.append((head, checks))
                else:
                    self.prefix, self.head = self._read.copy(), head
                    self._held, self._held_bytes = [], 0
        self._open = still

    def _go_back(self) -> None:
        """To behind the prefix."""
        if self._held is not None:
            self._lines.give_back(self._held)
        elif self._lines.source.is_file:
            self._lines.rewind(self.prefix.line)
        elif not self._lines.source.interrupted:
            raise DataSaysNoError(
                f"the input begins as one that was loaded before, and differs from it behind line {self.prefix.line}",
                hint="load it with --append, which puts all of it behind the log; a file instead of a pipe needs none",
            )
