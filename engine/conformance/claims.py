"""Whose entry is whose: which proposal put each entry of the log there, and from when on it may be seen."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from shardengine.engine.conformance.operations import Write
from shardengine.engine.conformance.timeline import Timeline
from shardengine.engine.conformance.verdict import Findings

NEVER = 1 << 62


class Claims:
    """Rules 1, 2 and 8 (see `checking.py`).

    An entry is claimed by the proposal that was told its index. One that nobody was told is claimed by a proposal of
    the same data whose outcome is not known, the first such entry by the first such proposal: entries become visible in
    their order, so if any way to give them to these proposals fits what was seen, this one does.

    `began`: by index, the number of the operation that brought the entry; 0 where that was not recorded. `inside`: the
    entries that have another one behind them in every chunk that they were applied in. `proved`: by the number of an
    acknowledged operation, the highest index that is truly its own.
    """

    def __init__(self, timeline: Timeline, writes: list[Write], findings: Findings, *, others: bool) -> None:
        self._timeline = timeline
        self._findings = findings
        self._owner: dict[int, int] = {}
        self._began: dict[int, int] = {}
        self._fed: set[int] = set()
        self.proved: dict[int, int] = {}
        self.inside: set[int] = set()
        self._ends: set[int] = set()
        for write in writes:
            if write.first is not None:
                self._feed(write)
            elif write.outcome == "ok":
                self._told(write)
        self.inside -= self._ends
        if not others:
            self._search([write for write in writes if write.first is None])
        self.began = [self._began.get(index, 0) for index in range(timeline.last + 1)]

    def _told(self, write: Write) -> None:
        """It was told indices: are the entries there its own?"""
        first = write.results[0].index
        if len(write.datas) > 1:
            indices = [result.index for result in write.results]
            if indices != list(range(first, first + len(indices))):
                self._findings.add("order", f"operation {write.begun} was told the entries {indices}", write.begun)
                return
        for index, data in enumerate(write.datas, first):
            if self._is_lost(write, index, data):
                return
            if index in self._owner:
                owner = self._owner[index]
                said = f"operations {owner} and {write.begun} were both told entry {index}"
                self._findings.add("lost", said, owner, write.begun)
                return
            self._owner[index] = write.begun
            self._began[index] = write.begun
        self._judge_results(write)
        self.proved[write.begun] = first + len(write.datas) - 1

    def _is_lost(self, write: Write, index: int, data: bytes) -> bool:
        last = self._timeline.last
        there = 1 <= index <= last
        if there and self._timeline.datas[index] == data:
            return False
        what = "holds something else" if there else f"is not in the log, which ends at {last}"
        said = f"operation {write.begun} was acknowledged as entry {index}, which {what}"
        self._findings.add("lost", said, write.begun)
        return True

    def _judge_results(self, write: Write) -> None:
        for result in write.results:
            if not result.already_applied and result != self._timeline.result(result.index):
                said = f"operation {write.begun} was told {result}, and it is {self._timeline.result(result.index)}"
                self._findings.add("result", said, write.begun)

    def _feed(self, write: Write) -> None:
        """Entries were applied, by the index that they have."""
        assert write.first is not None
        own = list(enumerate(write.datas, write.first))
        self._fed.update(index for index, _ in own)
        if write.outcome == "ok":
            told = [result.index for result in write.results]
            if told != [index for index, _ in own]:
                said = f"operation {write.begun} applied entries from {write.first}, and was told of {told}"
                self._findings.add("result", said, write.begun)
                return
            if any(self._is_lost(write, index, data) for index, data in own):
                return
            self._judge_results(write)
            self.proved[write.begun] = own[-1][0]
        self._ends.add(own[-1][0])
        for (index, data), again in zip(own, self._known(write), strict=True):
            if 1 <= index <= self._timeline.last and self._timeline.datas[index] == data:
                before = self._began.get(index, NEVER)
                if write.outcome == "fail":
                    self._began[index] = before
                elif not again:
                    self._began[index] = min(before, write.begun)
                    self.inside.add(index)
                elif before == NEVER:
                    self._began[index] = 0

    def _known(self, write: Write) -> Iterable[bool]:
        """Which of its entries were applied before, it was told."""
        if write.outcome != "ok":
            return (False for _ in write.datas)
        return (result.already_applied for result in write.results)

    def _search(self, proposals: list[Write]) -> None:
        """Whose are the entries that nobody was told of?"""
        unknown: defaultdict[bytes, deque[int]] = defaultdict(deque)
        for write in proposals:
            if write.outcome in ("open", "info") or (write.outcome == "ok" and write.begun not in self.proved):
                for data in write.datas:
                    unknown[data].append(write.begun)
        for index in range(1, self._timeline.last + 1):
            if index in self._owner or index in self._fed:
                continue
            if whose := unknown.get(self._timeline.datas[index]):
                self._began[index] = whose.popleft()
            elif self._timeline.datas[index]:
                self._nobodys(index, proposals)

    def _nobodys(self, index: int, proposals: list[Write]) -> None:
        data = self._timeline.datas[index]
        alike = [] if self._findings.full else [write for write in proposals if data in write.datas]
        numbers = [write.begun for write in alike]
        refused = [write.begun for write in alike if write.outcome == "fail"]
        if refused:
            said = f"entry {index} holds what was refused, to operation {refused[0]}"
            self._findings.add("refused", said, *refused)
        elif numbers:
            said = f"entry {index} holds what operation {numbers[0]} proposed, which is in the log already"
            self._findings.add("twice", said, *numbers)
        else:
            self._findings.add("unasked", f"entry {index} was proposed by nobody")
