"""Where in its log a node stands: remembered, and compared with what the log holds, before anything is applied."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import msgspec

from shardengine.engine.engine import Engine
from shardengine.engine.errors import LogRegressedError, LogReplacedError, LogTruncatedError
from shardengine.engine.node.frames import Frame, decode_frame
from shardengine.engine.node.log import Log, LogState
from shardengine.engine.storage.files import read_checked, write_checked

NAME = "node"
_HINT = "a node's directory and its log belong together: give it the one it had, or an empty directory"


class _Place(msgspec.Struct, frozen=True):
    """What the file `node` of a data directory holds: which log its state was made from."""

    log: str


def check_identity(directory: Path, state: LogState) -> None:
    """Remember the log's identity, the first time. Raises LogReplacedError when it is another one's; FormatError,
    StoreError."""
    path = directory / NAME
    try:
        known = read_checked(path, _Place).log
    except FileNotFoundError:
        write_checked(path, _Place(state.identity))
        return
    if known != state.identity:
        raise LogReplacedError(
            f"{directory} was made from the log {known}, and this is the log {state.identity}",
            hint=_HINT,
            expected=known,
            got=state.identity,
        )


def entries_of_last_frame(engine: Engine) -> int:
    """How many entries of the newest applied frame are applied."""
    last, count = engine.last_applied(), 0
    while engine.entry_term(last.index - count) == last.term:
        count += 1
    return count


async def find_place(engine: Engine, log: Log, state: LogState) -> int:
    """The position up to which all frames are applied whole, and behind which to read on.

    Raises LogTruncatedError, LogRegressedError or LogReplacedError when the log does not continue what is applied.
    """
    last = engine.last_applied()
    if state.first > last.term + 1:
        raise LogTruncatedError(
            f"the log begins at position {state.first}, and is applied up to position {last.term} (entry {last.index})",
            hint="restore a snapshot whose last_included.term is at least one below the log's first position",
            first=state.first,
            applied=last,
        )
    if state.last < last.term:
        raise LogRegressedError(
            f"the log ends at position {state.last}, and is applied up to position {last.term} (entry {last.index})",
            hint=f"it is an older copy, or lost what it had acknowledged; {_HINT}",
            last=state.last,
            applied=last,
        )
    if last.index == 0 or state.first > last.term:
        return last.term
    applied, frame = entries_of_last_frame(engine), await _frame_at(log, last.term)
    if frame is None or not 0 < applied <= len(frame.datas):
        holds = "no frame" if frame is None else f"a frame of {len(frame.datas)} entries"
        raise LogReplacedError(
            f"{applied} entries were applied of the frame at position {last.term}, where the log holds {holds}",
            hint=_HINT,
            position=last.term,
            applied=last,
        )
    return last.term if applied == len(frame.datas) else last.term - 1


async def _frame_at(log: Log, position: int) -> Frame | None:
    async with aclosing(log.read(position - 1)) as frames:
        async for logged in frames:
            return decode_frame(logged.frame, position) if logged.position == position else None
    return None
