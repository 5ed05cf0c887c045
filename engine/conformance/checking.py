"""All rules, over a whole history.

An operation begins and ends; between the two it takes effect, or is answered, at one index of the log. One operation is
*before* another if it ended before the other began.

 1. lost         An acknowledged command is in the log, at the index that was told, which no other one was told.
 2. result       Its result is what the machine makes of that entry.
 3. order        A command that is before another has the lower index; those of one call stand next to each other.
 4. stale        A read is answered at an index not below `at_least`; a linearizable one, not below that of any
                 acknowledged command, and of any linearizable read, before it.
 5. future       It is answered at an index below that of every command it is before, and in the log.
 6. back         It is answered at an index not below that of any read, and any acknowledged command, of its session
                 before it.
 7. value, view  It sees the state at its index; what is read of a view, the state at the view's revision, always.
 8. refused, twice, unasked
                 What was refused is not in the log; a command whose outcome is not known is there once at most; nothing
                 is there that was not proposed, but for entries without a command, as a new leader makes them.
 9. event-...    A subscription is told what the log wrote under its filter from `since` on: every event, once, in the
                 log's order, with its value, up to the last one that came, or that was waited for; and none that was
                 still to come (5). That everything up to a revision was told is said behind that.
10. torn         Entries that were applied as one chunk are seen together: no read is answered at an index inside of it.
                 (A node may apply what was proposed together in pieces.)

A local read lies outside of rule 4 for others: that it saw an entry obliges no reader of another session.

Why one sweep in the order of time decides. A read that knows its revision has one index. Any other gets the lowest at
which its values were the state and that rules 4 and 6 allow. Those rules bound later operations from below only, by
what earlier ones got, so the lowest index is the best one for all that follows; and the bound from above, rule 5,
depends on the writes alone. Hence if any choice of indices fits, this one does. An operation that breaks a rule obliges
nobody, so one fault is one finding where that is possible.

It costs one replay of the log, and one step for each beginning, end and event. A read without a revision looks at the
writes of its keys between its bounds; a scan at all keys with its prefix that ever were; a search in a sorted list is
logarithmic.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from shardengine.engine.conformance.claims import NEVER, Claims
from shardengine.engine.conformance.operations import Operation, Read, Scan, Watch, Write
from shardengine.engine.conformance.reading import Reading
from shardengine.engine.conformance.timeline import Timeline
from shardengine.engine.conformance.verdict import Findings, Verdict
from shardengine.engine.conformance.watching import Watching


def checked(timeline: Timeline, operations: Iterable[Operation], *, others: bool, findings_max: int) -> Verdict:
    """Judge all operations. `others`: the log holds commands whose proposals were not recorded."""
    findings = Findings(findings_max)
    ordered = sorted(operations, key=attrgetter("begun"))
    claims = Claims(timeline, [one for one in ordered if isinstance(one, Write)], findings, others=others)
    moments = _moments(ordered)
    ceiling = _ceiling(claims.began, len(moments))
    _Sweep(claims, ceiling, Reading(timeline, claims.inside, findings), findings).run(moments)
    watching, events = Watching(timeline, ceiling, findings), 0
    for watch in ordered:
        if isinstance(watch, Watch):
            watching.judge(watch)
            events += len(watch.events)
    return Verdict(findings.kept, findings.count, len(ordered), events, timeline.last)


def _moments(ordered: list[Operation]) -> list[Operation | None]:
    """By order number, whose beginning or end it is."""
    last = max((max(one.begun, one.ended or 0) for one in ordered), default=0)
    last = max([last, *(one.at[-1] for one in ordered if isinstance(one, Watch) and one.at)])
    found: list[Operation | None] = [None] * (last + 1)
    for operation in ordered:
        found[operation.begun] = operation
        if operation.ended is not None:
            found[operation.ended] = operation
    return found


def _ceiling(began: list[int], moments: int) -> list[int]:
    """By order number, the newest entry that could be there: no command up to it was asked for later."""
    lowest: dict[int, int] = {}
    for index in range(len(began) - 1, 0, -1):
        lowest[began[index]] = index
    most = lowest.get(NEVER, len(began)) - 1
    found = [most] * moments
    later = moments
    for moment in sorted(lowest, reverse=True):
        if 0 < moment < moments:
            found[moment:later] = [most] * (later - moment)
            most, later = min(most, lowest[moment] - 1), moment
    found[:later] = [most] * later
    return found


class _Sweep:
    """From the first moment to the last. `_floor`: what a linearizable read that begins now must see; `_floors`: what
    each session saw; `_bounds`: both, as an operation that goes on found them."""

    def __init__(self, claims: Claims, ceiling: list[int], reading: Reading, findings: Findings) -> None:
        self._claims = claims
        self._ceiling = ceiling
        self._reading = reading
        self._findings = findings
        self._floor = 0
        self._floors: dict[str, int] = {}
        self._bounds: dict[int, tuple[int, int]] = {}

    def run(self, moments: list[Operation | None]) -> None:
        proved = self._claims.proved
        for moment, operation in enumerate(moments):
            if type(operation) is Write:
                if operation.ended == moment and operation.begun in proved:
                    self._write(operation, moment)
            elif type(operation) is Read or type(operation) is Scan:
                if operation.begun == moment:
                    self._bounds[moment] = self._floor, self._floors.get(operation.session, 0)
                elif operation.outcome == "ok":
                    self._read(operation, moment)

    def _write(self, write: Write, moment: int) -> None:
        index, most = self._claims.proved[write.begun], self._ceiling[moment]
        if index > most:
            later = self._claims.began[most + 1]
            said = f"operation {write.begun}, told entry {index}, had ended when entry {most + 1} was first asked for"
            self._findings.add("order", said, write.begun, *([] if later == NEVER else [later]))
        else:
            self._oblige(write.session, index, everybody=True)

    def _read(self, read: Read | Scan, moment: int) -> None:
        if read.of_view is not None:
            self._reading.of_view(read)
            return
        floor, before = self._bounds.pop(read.begun)
        must = max(read.at_least, floor) if read.linearizable else read.at_least
        index = self._reading.index(read, must, before, self._ceiling[moment])
        if index is not None:
            self._oblige(read.session, index, everybody=read.linearizable)

    def _oblige(self, session: str, index: int, *, everybody: bool) -> None:
        if everybody and index > self._floor:
            self._floor = index
        if index > self._floors.get(session, 0):
            self._floors[session] = index
