"""shardengine: a replicated state machine on all cores of a host.

This is the front door: the public names, each resolved when it is first asked for, and links to the three ranks, which
are the packages `shardengine.ipc`, `shardengine.shards` and `shardengine.engine`. A worker, and a module with a
machine, load no more than what they name. Public submodules, `adaptors`, `conformance`
and those of `machines`, have a small file each.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardengine.engine.adaptors.rehearsal import Rehearsal as Rehearsal
    from shardengine.engine.adaptors.rehearsal import rehearse as rehearse
    from shardengine.engine.config import EngineConfig as EngineConfig
    from shardengine.engine.config import load_config as load_config
    from shardengine.engine.contract import HardState as HardState
    from shardengine.engine.contract import ScanResult as ScanResult
    from shardengine.engine.contract import SnapshotInfo as SnapshotInfo
    from shardengine.engine.contract import SnapshotMetadata as SnapshotMetadata
    from shardengine.engine.contract import StartReport as StartReport
    from shardengine.engine.contract import StateMachine as StateMachine
    from shardengine.engine.engine import Engine as Engine
    from shardengine.engine.errors import ChunkAbortedError as ChunkAbortedError
    from shardengine.engine.errors import ClusterError as ClusterError
    from shardengine.engine.errors import CommitRuleError as CommitRuleError
    from shardengine.engine.errors import ConfigError as ConfigError
    from shardengine.engine.errors import DamagedError as DamagedError
    from shardengine.engine.errors import DirectoryChangedError as DirectoryChangedError
    from shardengine.engine.errors import EngineLockedError as EngineLockedError
    from shardengine.engine.errors import EngineStateError as EngineStateError
    from shardengine.engine.errors import EngineStoppedError as EngineStoppedError
    from shardengine.engine.errors import ForkedError as ForkedError
    from shardengine.engine.errors import FormatError as FormatError
    from shardengine.engine.errors import FrameDamagedError as FrameDamagedError
    from shardengine.engine.errors import FrameTooLargeError as FrameTooLargeError
    from shardengine.engine.errors import HardStateError as HardStateError
    from shardengine.engine.errors import HistoryError as HistoryError
    from shardengine.engine.errors import LogClosedError as LogClosedError
    from shardengine.engine.errors import LogConflictError as LogConflictError
    from shardengine.engine.errors import LogDamagedError as LogDamagedError
    from shardengine.engine.errors import LogError as LogError
    from shardengine.engine.errors import LogFailedError as LogFailedError
    from shardengine.engine.errors import LogFullError as LogFullError
    from shardengine.engine.errors import LogGapError as LogGapError
    from shardengine.engine.errors import LogLockedError as LogLockedError
    from shardengine.engine.errors import LogOrderError as LogOrderError
    from shardengine.engine.errors import LogRegressedError as LogRegressedError
    from shardengine.engine.errors import LogReplacedError as LogReplacedError
    from shardengine.engine.errors import LogSettingsError as LogSettingsError
    from shardengine.engine.errors import LogTruncatedError as LogTruncatedError
    from shardengine.engine.errors import LogUnreachableError as LogUnreachableError
    from shardengine.engine.errors import NameTakenError as NameTakenError
    from shardengine.engine.errors import NoCutError as NoCutError
    from shardengine.engine.errors import NodeStoppedError as NodeStoppedError
    from shardengine.engine.errors import NotAppendedError as NotAppendedError
    from shardengine.engine.errors import OutcomeUnknownError as OutcomeUnknownError
    from shardengine.engine.errors import PeerError as PeerError
    from shardengine.engine.errors import PieceDamagedError as PieceDamagedError
    from shardengine.engine.errors import PieceDuplicateError as PieceDuplicateError
    from shardengine.engine.errors import PieceEndError as PieceEndError
    from shardengine.engine.errors import PieceGapError as PieceGapError
    from shardengine.engine.errors import PieceSourceError as PieceSourceError
    from shardengine.engine.errors import RehearsalError as RehearsalError
    from shardengine.engine.errors import ShardCountMismatchError as ShardCountMismatchError
    from shardengine.engine.errors import SnapshotAbortedError as SnapshotAbortedError
    from shardengine.engine.errors import SnapshotDamagedError as SnapshotDamagedError
    from shardengine.engine.errors import SnapshotError as SnapshotError
    from shardengine.engine.errors import SnapshotFormatError as SnapshotFormatError
    from shardengine.engine.errors import SnapshotInProgressError as SnapshotInProgressError
    from shardengine.engine.errors import SnapshotLabelError as SnapshotLabelError
    from shardengine.engine.errors import SnapshotStaleError as SnapshotStaleError
    from shardengine.engine.errors import StateDivergedError as StateDivergedError
    from shardengine.engine.errors import StateUntrustedError as StateUntrustedError
    from shardengine.engine.errors import TooManyViewsError as TooManyViewsError
    from shardengine.engine.errors import TravelError as TravelError
    from shardengine.engine.errors import ViewClosedError as ViewClosedError
    from shardengine.engine.errors import WorkerFailedError as WorkerFailedError
    from shardengine.engine.errors import WrongLoopError as WrongLoopError
    from shardengine.engine.errors import WrongThreadError as WrongThreadError
    from shardengine.engine.read.attach import Reader as Reader
    from shardengine.engine.read.view import View as View
    from shardengine.engine.run.shell import run as run
    from shardengine.engine.snapshot.archive import export_snapshot as export_snapshot
    from shardengine.engine.snapshot.archive import import_snapshot as import_snapshot
    from shardengine.engine.snapshot.folder import valid_snapshots as valid_snapshots
    from shardengine.engine.snapshot.policy import SnapshotPolicy as SnapshotPolicy
    from shardengine.engine.snapshot.transfer import Piece as Piece
    from shardengine.engine.snapshot.transfer import SnapshotAssembler as SnapshotAssembler
    from shardengine.engine.snapshot.transfer import decode_piece as decode_piece
    from shardengine.engine.snapshot.transfer import encode_piece as encode_piece
    from shardengine.engine.snapshot.transfer import stream_snapshot as stream_snapshot
    from shardengine.engine.sync.engine import SyncEngine as SyncEngine
    from shardengine.ipc.errors import EngineError as EngineError
    from shardengine.ipc.errors import FileRefusedError as FileRefusedError
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
    from shardengine.shards.kv import CompareAndSwap as CompareAndSwap
    from shardengine.shards.kv import Delete as Delete
    from shardengine.shards.kv import KeyValue as KeyValue
    from shardengine.shards.kv import Put as Put
    from shardengine.shards.machine import Context as Context
    from shardengine.shards.machine import Machine as Machine
    from shardengine.shards.machine import Rejected as Rejected
    from shardengine.shards.machine import encode as encode
    from shardengine.shards.transaction import Tx as Tx
    from shardengine.shards.types import ApplyResult as ApplyResult
    from shardengine.shards.types import Entry as Entry
    from shardengine.shards.types import Limits as Limits
    from shardengine.shards.types import LogId as LogId

__version__ = "0.1.0"

_HOMES = {
    "ipc.errors": (
        "EngineError",
        "FileRefusedError",
    ),
    "shards.errors": (
        "BadEntryError",
        "ChunkFailedError",
        "ChunkTooLargeError",
        "MachineImportError",
        "MachineMismatchError",
        "StoreDamagedError",
        "StoreError",
        "StoreFullError",
        "StoreMismatchError",
        "SyncFailedError",
        "UndeclaredKeyError",
    ),
    "shards.types": (
        "ApplyResult",
        "Entry",
        "Limits",
        "LogId",
    ),
    "shards.machine": (
        "Context",
        "Machine",
        "Rejected",
        "encode",
    ),
    "shards.transaction": ("Tx",),
    "shards.kv": (
        "CompareAndSwap",
        "Delete",
        "KeyValue",
        "Put",
    ),
    "engine.errors": (
        "ChunkAbortedError",
        "ClusterError",
        "CommitRuleError",
        "ConfigError",
        "DamagedError",
        "DirectoryChangedError",
        "EngineLockedError",
        "EngineStateError",
        "EngineStoppedError",
        "ForkedError",
        "FormatError",
        "FrameDamagedError",
        "FrameTooLargeError",
        "HardStateError",
        "HistoryError",
        "LogClosedError",
        "LogConflictError",
        "LogDamagedError",
        "LogError",
        "LogFailedError",
        "LogFullError",
        "LogGapError",
        "LogLockedError",
        "LogOrderError",
        "LogRegressedError",
        "LogReplacedError",
        "LogSettingsError",
        "LogTruncatedError",
        "LogUnreachableError",
        "NameTakenError",
        "NoCutError",
        "NodeStoppedError",
        "NotAppendedError",
        "OutcomeUnknownError",
        "PeerError",
        "PieceDamagedError",
        "PieceDuplicateError",
        "PieceEndError",
        "PieceGapError",
        "PieceSourceError",
        "RehearsalError",
        "ShardCountMismatchError",
        "SnapshotAbortedError",
        "SnapshotDamagedError",
        "SnapshotError",
        "SnapshotFormatError",
        "SnapshotInProgressError",
        "SnapshotLabelError",
        "SnapshotStaleError",
        "StateDivergedError",
        "StateUntrustedError",
        "TooManyViewsError",
        "TravelError",
        "ViewClosedError",
        "WorkerFailedError",
        "WrongLoopError",
        "WrongThreadError",
    ),
    "engine.config": (
        "EngineConfig",
        "load_config",
    ),
    "engine.contract": (
        "HardState",
        "ScanResult",
        "SnapshotInfo",
        "SnapshotMetadata",
        "StartReport",
        "StateMachine",
    ),
    "engine.snapshot.folder": ("valid_snapshots",),
    "engine.snapshot.transfer": (
        "Piece",
        "SnapshotAssembler",
        "decode_piece",
        "encode_piece",
        "stream_snapshot",
    ),
    "engine.snapshot.archive": (
        "export_snapshot",
        "import_snapshot",
    ),
    "engine.snapshot.policy": ("SnapshotPolicy",),
    "engine.read.attach": ("Reader",),
    "engine.read.view": ("View",),
    "engine.run.shell": ("run",),
    "engine.engine": ("Engine",),
    "engine.sync.engine": ("SyncEngine",),
    "engine.adaptors.rehearsal": (
        "Rehearsal",
        "rehearse",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
