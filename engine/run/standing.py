"""Where the log stands when no chunk says so: an engine may be told that it ends at a later entry."""

from __future__ import annotations

from shardengine.engine.errors import EngineStateError, LogOrderError
from shardengine.engine.run.busy import Busy
from shardengine.engine.run.shell import Shell
from shardengine.shards.types import U64_MAX, LogId


def check_name(entry: LogId) -> None:
    """Raise LogOrderError when it is no entry's name, nor (0, 0)."""
    if not isinstance(entry, LogId) or type(entry.index) is not int or type(entry.term) is not int:
        raise LogOrderError(f"{entry!r} is no LogId of two plain ints", hint="pass LogId(index, term)", got=entry)
    if not (0 <= entry.index <= U64_MAX and 0 <= entry.term <= U64_MAX) or (entry.term and not entry.index):
        raise LogOrderError(
            f"{entry!r} names no entry: index and term are 0 to {U64_MAX}, and before entry 1 there is only (0, 0)",
            hint="pass LogId(index, term)",
            got=entry,
            limit=U64_MAX,
        )


def stand_at(shell: Shell, busy: Busy, last: LogId) -> None:
    """See `Engine.update_last_applied`."""
    runtime = shell.running()
    runtime.coordinator.check_running()
    check_name(last)
    coordinator, applied = runtime.coordinator, runtime.last_applied
    coordinator.in_flight.tail.check_name(last)
    if last.index <= applied.index:
        return
    if busy.replacing:
        what = "another state is being installed"
    elif coordinator.pinning.busy:
        what = "a snapshot is being taken"
    elif shell.waiting_calls or not coordinator.idle:
        what = f"{coordinator.in_flight.chunks} chunks are in flight, and {shell.waiting_calls} calls wait for room"
    else:
        coordinator.pass_over(last)
        return
    raise EngineStateError(
        f"the log stands at {applied} and cannot pass over entries up to {last} now: {what}",
        hint="await what is under way, then ask again",
        applied=applied,
        asked=last,
    )
