"""What a watcher must have been told: rule 9 (see `checking.py`)."""

from __future__ import annotations

from shardengine.engine.conformance.operations import Event, Watch
from shardengine.engine.conformance.timeline import Timeline
from shardengine.engine.conformance.verdict import Findings, shown

_MARKS = ("progress", "cancelled")


class Watching:
    """Judges one subscription after the other."""

    def __init__(self, timeline: Timeline, ceiling: list[int], findings: Findings) -> None:
        """`ceiling`: by order number, the newest entry that could be there."""
        self._timeline = timeline
        self._ceiling = ceiling
        self._findings = findings

    def judge(self, watch: Watch) -> None:
        seen: set[tuple[int, bytes]] = set()
        newest, mark, through = 0, 0, min(watch.through, self._timeline.last)
        for event, at in zip(watch.events, watch.at, strict=True):
            if event.kind in _MARKS:
                if event.revision > self._ceiling[at]:
                    self._say("future", watch, event, f"when {self._ceiling[at]} was the newest that could be there")
                else:
                    mark = max(mark, event.revision)
                continue
            told = (event.revision, event.key)
            if (wrong := self._wrong(watch, event)) is not None:
                self._say("event-wrong", watch, event, wrong)
            elif event.revision > self._ceiling[at]:
                self._say("future", watch, event, f"when {self._ceiling[at]} was the newest that could be there")
            elif told in seen:
                self._say("event-twice", watch, event, "which it was told before")
            elif event.revision < newest:
                self._say("event-order", watch, event, f"behind one of entry {newest}")
            elif event.revision <= mark:
                self._say("event-order", watch, event, f"behind the word that all up to {mark} was told")
            else:
                newest = event.revision
            seen.add(told)
        self._missing(watch, seen, max(through, mark, newest - 1))

    def _wrong(self, watch: Watch, event: Event) -> str | None:
        """Why it is none of this subscription's events, or None."""
        if event.revision < watch.since:
            return f"before its first revision, {watch.since}"
        if event.key != watch.key if watch.key is not None else not event.key.startswith(watch.prefix):
            return "which it did not ask for"
        wrote = self._timeline.write(event.key, event.revision)
        if wrote is None:
            return "and that entry did not write it"
        value, previous = wrote
        kind = "put" if value is not None else "deleted"
        if (event.kind, event.value) != (kind, value):
            return f"and it was {kind}, with {shown(value)}"
        if event.previous != (previous if watch.previous else None):
            return f"with {shown(event.previous)} before, and it was {shown(previous)}"
        return None

    def _missing(self, watch: Watch, seen: set[tuple[int, bytes]], through: int) -> None:
        """All events of one entry come together, but a watcher may have ended within those of the newest."""
        for index, key in sorted(self._timeline.written(watch.key, watch.prefix, watch.since, through)):
            if (index, key) not in seen:
                said = f"watch {watch.begun} was not told what entry {index} did to {shown(key)}"
                self._findings.add("event-missing", said, watch.begun)

    def _say(self, rule: str, watch: Watch, event: Event, what: str) -> None:
        said = f"watch {watch.begun} was told that {shown(event.key)} was {event.kind} at {event.revision}, {what}"
        self._findings.add(rule, said, watch.begun)
