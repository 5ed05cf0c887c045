"""What a read may have seen: rules 4 to 7, and 10 (see `checking.py`)."""

from __future__ import annotations

from collections.abc import Set

from shardengine.engine.conformance.operations import Read, Scan
from shardengine.engine.conformance.timeline import Timeline
from shardengine.engine.conformance.verdict import Findings, shown


class Reading:
    """Judges one read after the other."""

    def __init__(self, timeline: Timeline, inside: Set[int], findings: Findings) -> None:
        """`inside`: indices at which no read is answered."""
        self._timeline = timeline
        self._inside = inside
        self._findings = findings

    def of_view(self, read: Read | Scan) -> None:
        """Of a view: its revision's state, whenever it is read."""
        revision = read.of_view
        assert revision is not None
        there = read.revision == revision and 0 <= revision <= self._timeline.last
        if not there or not self._fits(read, revision):
            said = f"operation {read.begun} saw {_seen(read)} in a view of {revision}, which holds another state"
            self._findings.add("view", said, read.begun)

    def index(self, read: Read | Scan, must: int, before: int, most: int) -> int | None:
        """The index at which it was answered, the first one possible; None: there is none, and that is a finding.

        must: it has to see that entry. before: its session has. most: no later one was there yet."""
        if read.revision is not None:
            return self._at_revision(read, read.revision, must, before, most)
        assert isinstance(read, Read)
        found = self._first(read, must, most)
        if found is None:
            self._nowhere(read, must, most)
            return None
        if found < before:
            found = self._first(read, before, most)
        if found is None:
            said = f"operation {read.begun} saw {_seen(read)}, an older state than its session had seen, entry {before}"
            self._findings.add("back", said, read.begun)
        return found

    def _first(self, read: Read, low: int, most: int) -> int | None:
        while (found := self._timeline.first(read.keys, read.values, low, most)) in self._inside:
            assert found is not None
            low = found + 1
        return found

    def _at_revision(self, read: Read | Scan, revision: int, must: int, before: int, most: int) -> int | None:
        what = f"operation {read.begun} was answered at {revision}"
        if revision < must:
            self._findings.add("stale", f"{what}, and had to see entry {must}", read.begun)
        elif revision > most:
            self._findings.add("future", f"{what}, when {most} was the newest that could be there", read.begun)
        elif revision < before:
            self._findings.add("back", f"{what}, and its session had seen entry {before}", read.begun)
        elif revision in self._inside:
            self._findings.add("torn", f"{what}, inside of a chunk", read.begun)
        elif not self._fits(read, revision):
            self._findings.add("value", f"{what}, and saw {_seen(read)}: the state is another one", read.begun)
        else:
            return revision
        return None

    def _fits(self, read: Read | Scan, revision: int) -> bool:
        timeline = self._timeline
        if isinstance(read, Read):
            return all(timeline.get(key, revision) == value for key, value in zip(read.keys, read.values, strict=True))
        scanned = timeline.scan(read.prefix, read.limit, read.start_after, read.reverse, revision)
        return scanned.entries == read.entries and scanned.more == read.more

    def _nowhere(self, read: Read, must: int, most: int) -> None:
        """Say when, if ever, it would have been right. To look costs all writes of its keys: a finding that is only
        counted is worth none of that."""
        told = f"operation {read.begun} saw {_seen(read)}"
        if self._findings.full:
            self._findings.add("value", told, read.begun)
        elif (found := self._timeline.first(read.keys, read.values, must, most)) is not None:
            self._findings.add("torn", f"{told}, the state behind entry {found}, inside of a chunk", read.begun)
        elif (found := self._timeline.first(read.keys, read.values, 0, must - 1)) is not None:
            said = f"{told}, the state behind entry {found}, and had to see entry {must}"
            self._findings.add("stale", said, read.begun)
        elif (found := self._timeline.first(read.keys, read.values, most + 1, self._timeline.last)) is not None:
            said = f"{told}, the state behind entry {found}, when {most} was the newest that could be there"
            self._findings.add("future", said, read.begun)
        else:
            self._findings.add("value", f"{told}, which never was the state", read.begun)


def _seen(read: Read | Scan) -> str:
    """What it asked for and got, shortened."""
    if isinstance(read, Scan):
        return f"{len(read.entries)} records under {shown(read.prefix)}{', and more' if read.more else ''}"
    pairs = [f"{shown(key)} = {shown(value)}" for key, value in zip(read.keys[:3], read.values[:3], strict=True)]
    return ", ".join(pairs) + (", ..." if len(read.keys) > len(pairs) else "")
