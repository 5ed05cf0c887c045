"""The class people use: a history, recorded, checked, written and read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from shardengine.engine.conformance.checking import checked
from shardengine.engine.conformance.lines import Line, Reader, lines_of
from shardengine.engine.conformance.operations import Recorder
from shardengine.engine.conformance.recorded import RecordedEngine, RecordedNode, RecordedSyncNode
from shardengine.engine.conformance.timeline import replayed
from shardengine.engine.conformance.verdict import Verdict
from shardengine.engine.errors import HistoryError
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.types import Entry, Limits

FINDINGS_MAX = 20


class History(Recorder):
    """What concurrent callers saw of a state machine, to be compared with the log that it was given.

        history = History()
        async with Node("data", log=log) as running:
            node = history.node(running)                # the same calls, recorded
            ...                                         # any number of tasks, or nodes, and faults meanwhile
            verdict = history.check(await entries_of(log))
        assert verdict.valid, verdict

    Clients of another kind are recorded by hand: `operation = history.begin_propose([data])`, or `begin_get`, and so
    on, when the request leaves, and one of `operation.ok(...)`, `operation.failed(error)` (it had no effect, and never
    will) and `operation.unknown(error)` when the answer comes. An operation of which nothing is heard is left open.

    Operations have a *session*: none of its reads may see an older state than one before it saw, or than what was
    acknowledged to it. A node never goes back, so the stand-in of each is a session; for callers that change nodes,
    name one for each caller.

    It belongs to nobody: any task and any thread may record. It keeps all it is told, in memory.
    """

    def node(self, node: Any, session: str = "node") -> RecordedNode:
        """A stand-in for a `Node`. Two nodes want two sessions; so does one that was started again after a power loss,
        as its local reads may go back."""
        return RecordedNode(self, node, session)

    def sync_node(self, node: Any, session: str = "node") -> RecordedSyncNode:
        """A stand-in for a `SyncNode`."""
        return RecordedSyncNode(self, node, session)

    def engine(self, engine: Any, session: str = "engine") -> RecordedEngine:
        """A stand-in for an `Engine`, or whatever else has the contract of `StateMachine`."""
        return RecordedEngine(self, engine, session, exact=True)

    def check(
        self,
        log: Iterable[Entry],
        machine: type[Machine] = KeyValue,
        *,
        limits: Limits | None = None,
        bad_entry: Literal["fail", "reject"] = "fail",
        others: bool = False,
        findings_max: int = FINDINGS_MAX,
    ) -> Verdict:
        """Replay the log, and judge by it all that was recorded; see `shardengine.engine.conformance.checking` for the
        rules. Blocks: some microseconds an entry and an operation. While it runs nothing may be recorded; what has no
        end yet counts as unknown.

        Args:
            log: its entries, from index 1 on.
            machine, limits, bad_entry: as the state machine's.
            others: the log holds commands whose proposals are not in this history.
            findings_max: so many are kept in words; all are counted.

        Raises as `replayed`: MachineImportError, LogGapError, LogOrderError, BadEntryError, UndeclaredKeyError or
        ChunkFailedError when the log is none that the machine could have applied.
        """
        timeline = replayed(log, machine, limits or Limits(), bad_entry)
        return checked(timeline, self.operations, others=others, findings_max=findings_max)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a new file, one JSON object a line (see `lines.py`). Blocks. Raises OSError, FileExistsError
        too; what was written by then stays."""
        with Path(path).open("xb") as file:
            for line in lines_of(self.operations):
                file.write(msgspec.json.encode(line) + b"\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """A history that `write` has written; it goes on where that ended. Blocks. Raises HistoryError, which names the
        `line` that does not fit; OSError."""
        lines: list[Line] = []
        with Path(path).open("rb") as file:
            for text in file:
                try:
                    lines.append(msgspec.json.decode(text, type=Line))
                except msgspec.MsgspecError as error:
                    raise _bad_line(path, len(lines) + 1, error) from error
        history = cls()
        history._order = count(lines[-1].n + 1 if lines else 1)
        reader = Reader(history.operations, history._order)
        for number, line in enumerate(lines, 1):
            try:
                reader.take(line)
            except (KeyError, TypeError, ValueError, AttributeError, msgspec.MsgspecError) as error:
                raise _bad_line(path, number, error) from error
        return history


def _bad_line(path: str | os.PathLike[str], number: int, error: Exception) -> HistoryError:
    what = f"{type(error).__name__}: {error}"
    return HistoryError(
        f"line {number} of {path} is none of a history: {what}", hint="it was cut off, or edited", line=number
    )
