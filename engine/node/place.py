"""Where in its log a node stands: remembered, and compared with what the log holds, before anything is applied."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path

import msgspec

from shardengine.engine.engine import Engine
from shardengine.engine.errors import LogRegressedError, LogReplacedError, LogTruncatedError, disk_error
from shardengine.engine.node.frames import decode_frame
from shardengine.engine.node.log import Log, Logged, LogState
from shardengine.engine.storage.files import read_checked, write_checked
from shardengine.shards.types import LogId

NAME = "node"
_HINT = "a node's directory and its log belong together: give it the one it had, or an empty directory"


class _Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the file `node` of a data directory holds: which log its state was made from, and the name of the node,
    which it has from when it first shares a log."""

    log: str
    node: str = ""


def name_of(directory: Path) -> str:
    """The name of the node in `directory`, for life; a new one when it has none yet. Raises FormatError, OSError."""
    return _known(directory).node or os.urandom(16).hex()


def _known(directory: Path) -> _Place:
    try:
        return read_checked(directory / NAME, _Place)
    except FileNotFoundError:
        return _Place("")


async def find_place(directory: Path, engine: Engine, log: Log, state: LogState, node: str = "") -> int:
    """The position up to which all frames are applied whole, and behind which to read on. Remembers the log's identity,
    and the name `node`, the first time.

    Raises LogReplacedError when the log is another one than it was; LogTruncatedError, LogRegressedError or
    LogReplacedError when it does not continue what is applied; FormatError, StoreError.
    """
    path, known = directory / NAME, _known(directory)
    if known.log not in ("", state.identity):
        raise LogReplacedError(
            f"{directory} was made from the log {known.log}, and this is the log {state.identity}",
            hint=_HINT,
            expected=known.log,
            got=state.identity,
        )
    _check_ends(engine.last_applied(), state)
    position = await _compare(engine, log, state.first)
    if known != (place := _Place(state.identity, node or known.node)):
        try:
            write_checked(path, place)
        except OSError as error:
            raise disk_error("the log's identity cannot be remembered", error, path=str(path)) from error
    return position


async def place_of_snapshot(engine: Engine, log: Log) -> int:
    """As `find_place`, when a snapshot has just been installed. Raises LogReplacedError when it is not the log's."""
    try:
        return await _compare(engine, log, 0)
    except LogTruncatedError:
        return engine.last_applied().term


def entries_of_last_frame(engine: Engine) -> int:
    """How many entries of the newest applied frame are applied."""
    last, count = engine.last_applied(), 0
    while engine.entry_term(last.index - count) == last.term:
        count += 1
    return count


def _check_ends(last: LogId, state: LogState) -> None:
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
            hint="it is an older copy, or lost what it had acknowledged, or the directory was fed without a node; "
            + _HINT,
            last=state.last,
            applied=last,
        )


async def _compare(engine: Engine, log: Log, first: int) -> int:
    """See `find_place`: the newest applied frame against what the log holds in its place. A log that was set back, and
    gone on with, may hold as many entries there; but they came later than all that was applied."""
    last = engine.last_applied()
    if last.index == 0 or first > last.term:
        return last.term
    applied, logged = entries_of_last_frame(engine), await _logged_at(log, last.term)
    frame = None if logged is None else decode_frame(logged.frame, last.term)
    late = logged is not None and 0 < engine.stats()["time_ms"] < logged.time_ms
    if frame is None or late or not 0 < applied <= len(frame.datas):
        holds = "no frame" if frame is None else f"a {'later ' if late else ''}frame of {len(frame.datas)} entries"
        raise LogReplacedError(
            f"{applied} entries were applied of the frame at position {last.term}, where the log holds {holds}",
            hint=_HINT,
            position=last.term,
            applied=last,
        )
    return last.term if applied == len(frame.datas) else last.term - 1


async def _logged_at(log: Log, position: int) -> Logged | None:
    async with aclosing(log.read(position - 1)) as frames:
        async for logged in frames:
            return logged if logged.position == position else None
    return None
