"""Every error the engine raises; all derive from `EngineError` and carry their numbers and a hint."""

from __future__ import annotations

from typing import Any

from shardengine.ipc.errors import FULL, hint_for
from shardengine.ipc.errors import EngineError as EngineError
from shardengine.ipc.errors import FileRefusedError as FileRefusedError
from shardengine.ipc.files import SyncError
from shardengine.shards.errors import BadEntryError as BadEntryError
from shardengine.shards.errors import ChunkFailedError as ChunkFailedError
from shardengine.shards.errors import ChunkTooLargeError as ChunkTooLargeError
from shardengine.shards.errors import MachineImportError as MachineImportError
from shardengine.shards.errors import MachineMismatchError as MachineMismatchError
from shardengine.shards.errors import StoreDamagedError as StoreDamagedError
from shardengine.shards.errors import StoreError as StoreError
from shardengine.shards.errors import StoreFullError as StoreFullError
from shardengine.shards.errors import StoreMismatchError as StoreMismatchError
from shardengine.shards.errors import SyncFailedError as SyncFailedError
from shardengine.shards.errors import UndeclaredKeyError as UndeclaredKeyError


class ConfigError(EngineError):
    """A setting has an impossible value; names the key, the value and the source it came from."""


class EngineStateError(EngineError):
    """The call does not fit the engine's state: not started, or already started."""


class EngineStoppedError(EngineStateError):
    """The engine stopped, or stops, while or before the call: nothing was read, and nothing applied unless already
    answered."""


class EngineLockedError(EngineError):
    """Another engine holds the directory; names its pid."""


class ShardCountMismatchError(EngineError):
    """The directory holds another number of shards than asked for."""


class FormatError(EngineError):
    """The directory is of a format this version does not read, or no data directory at all."""


class DamagedError(EngineError):
    """Files contradict each other or fail their checksum; nothing was changed."""


class DirectoryChangedError(EngineError):
    """The data directory, or a file that keeps others out of it, was moved, removed or replaced under the running
    engine, which fails before anything lands elsewhere."""


class StateUntrustedError(EngineError):
    """The machine went down while state was not yet synced (durability="process"), or nothing tells that it did not;
    the files cannot be trusted."""


class LogGapError(EngineError):
    """An entry's index leaves a gap after the last accepted one. Nothing of the chunk was accepted."""


class LogOrderError(EngineError):
    """Indices or terms inside a chunk, or against the log so far, fall. Nothing of the chunk was accepted."""


class LogConflictError(EngineError):
    """A re-delivered entry has another term than the one that was accepted at its index, or, while that is still in
    flight, other data. Nothing of the chunk was accepted."""


class HardStateError(EngineError):
    """A hard state that must not be saved: it is none, its term falls, or it gives the vote of its term to another. The
    one that was saved before stays."""


class ChunkAbortedError(EngineError):
    """A chunk ahead of this one failed, so this one would leave a gap. Nothing was applied; send it again."""


class CommitRuleError(EngineError):
    """An event that the commit protocol does not allow in this state: a defect, here or in a worker."""


class WorkerFailedError(EngineError):
    """A worker could not be brought to its duty: it does not start, hangs, or one chunk kills it every time."""


class SnapshotError(EngineError):
    """A snapshot could not be taken, read or installed. Live state and index are untouched."""


class SnapshotDamagedError(SnapshotError):
    """A snapshot's manifest or a part is missing, cut off, edited, or does not match its checksum."""


class SnapshotFormatError(SnapshotError):
    """A snapshot is of a format, machine, or set of limits that this engine does not take."""


class SnapshotStaleError(SnapshotError):
    """A snapshot is older than the current state; `force=True` installs it all the same, and begins a lineage."""


class SnapshotLabelError(SnapshotError):
    """The state at the asked-for index is past, or falls inside a chunk: the label would be a lie."""


class SnapshotInProgressError(SnapshotError):
    """Another snapshot is being taken, or another state installed; one at a time."""


class SnapshotAbortedError(SnapshotError):
    """The snapshot was given up: a worker died or hung, the time ran out, or it was cancelled. No file is left."""


class TravelError(SnapshotError):
    """A piece of a travelling snapshot does not fit: a gap, a duplicate, damage, another source, or an early end."""


class PieceGapError(TravelError):
    """A piece comes too early: one or more before it are missing. It was not taken; the missing one still fits."""


class PieceDuplicateError(TravelError):
    """A piece comes again. It was not taken; the next one still fits."""


class PieceDamagedError(TravelError):
    """A piece, or the part it completes, does not match its checksum, its manifest, or the form of a piece."""


class PieceSourceError(TravelError):
    """A piece belongs to another snapshot than those before it. It was not taken."""


class PieceEndError(TravelError):
    """The pieces end before the snapshot is whole, or go on after the last one."""


class WrongThreadError(EngineError):
    """The engine belongs to the thread that made it."""


class WrongLoopError(EngineError):
    """The engine belongs to the event loop of its first await until `stop()`."""


class ForkedError(EngineError):
    """The engine was made in a parent process; a forked child cannot use it."""


class TooManyViewsError(EngineError):
    """`views_max` views are open."""


class ViewClosedError(EngineError):
    """The view was closed, outlived its age limit, or its engine was stopped."""


class NoCutError(EngineError):
    """Another process's engine left no state of one index to be read: it commits without a pause, starts just now, or
    died within a commit."""


class LogError(EngineError):
    """Something is wrong with the log of a node, or with its place."""


class LogClosedError(LogError):
    """The log is closed, or was not opened. Nothing was appended."""


class LogLockedError(LogError):
    """Another process has the log open; names its pid."""


class LogFullError(LogError):
    """There is no room for what was to be appended. Nothing of it is in the log; what is in it is untouched."""


class LogFailedError(LogError):
    """The log takes nothing any more, since a write or a sync has failed: open it anew. Whether what was being appended
    is in it, only a later reading tells."""


class LogDamagedError(LogError):
    """A log's file is damaged where it must not be, or is none; names file and offset. Nothing was changed."""


class LogTruncatedError(LogError):
    """The frames that are needed next were cut away from the log: a snapshot that holds them is needed."""


class LogRegressedError(LogError):
    """The log ends before what was applied from it: it is an older copy, or it lost what it had acknowledged."""


class LogReplacedError(LogError):
    """The log is another one than the node has applied so far, or holds another frame where that one ended."""


class FrameDamagedError(LogError):
    """A frame of a log fails its own checksum, or is no frame."""


class FrameTooLargeError(LogError):
    """A frame is longer than the log takes. Nothing was appended."""


class NotAppendedError(LogError):
    """The log did not say what became of a proposal; it was read on since, and the proposal is not in it, nor will be:
    propose it again."""


class LogSettingsError(LogError):
    """A log's servers, or the log on them, are set up so that they would lose what they acknowledge, or cut what is
    needed; names each setting, what it is, and what it has to be. Nothing was written."""


class LogUnreachableError(LogError):
    """The servers of a log cannot be reached, or do not agree among each other, for now."""


class PeerError(EngineError):
    """Another node of the log did not answer, or could not do what it was asked for."""


class NameTakenError(EngineError):
    """Another node of the log, which lives, has this node's name: a data directory was copied. This one stopped."""


class StateDivergedError(EngineError):
    """This node holds something else than the others at the same entry; names both digests. It stopped."""


class ClusterError(EngineError):
    """The servers or nodes of a cluster on this machine cannot be started, or did not do what was asked of them."""


class NodeStoppedError(EngineStoppedError):
    """The node stops, or has failed: the call was not accepted. What it was to propose is not in the log."""


class OutcomeUnknownError(EngineError):
    """Whether a proposal was or will be applied, or with what results, is not known: the node ended before it could
    tell, or went on from a snapshot that may hold it. `id` is its frame's, to be looked for in the log."""


class RehearsalError(EngineError):
    """A command of a rehearsed log does not do the same in every run: replicas would differ. Names the command, what
    differs, and both values. Or a run in another process did not end well."""


class HistoryError(EngineError):
    """A recorded history contradicts itself, or a file holds none: names the line or the operation."""


def not_started() -> EngineStateError:
    """Of a state that is not open yet."""
    return EngineStateError("the engine does not run: its storage is not open", hint="start() it")


def not_any_more() -> EngineStoppedError:
    """Of a state that was read until a stop."""
    return EngineStoppedError("the engine does not run: it was stopped", hint="start() it again, or read before stop()")


def runs_already() -> EngineStateError:
    return EngineStateError("the engine runs already")


def still_runs() -> EngineStateError:
    return EngineStateError("the engine runs", hint="stop() it first")


def view_closed(revision: int, why: str) -> ViewClosedError:
    return ViewClosedError(f"the view of revision {revision} cannot be read: {why}")


def named(error: Exception) -> EngineError:
    """What nobody foresaw, as an error that a user can meet."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, OSError):
        return StoreError(str(error), hint=hint_for(error))
    return WorkerFailedError(f"defect: {error!r}", hint="report it, with the traceback in the log")


def disk_error(what: str, error: OSError, **facts: Any) -> StoreError:
    """What the system said about files, as an error that names `what` and says what to do."""
    kind = SyncFailedError if isinstance(error, SyncError) else StoreFullError if error.errno in FULL else StoreError
    return kind(f"{what}: {error}", hint=hint_for(error), **facts)
