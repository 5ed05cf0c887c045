"""shardengine: a replicated state machine on all cores of a host.

A replicated log hands over committed chunks. The *coordinator* (this process) splits each chunk by key hash over
*worker* processes, one a shard; each applies its part to its own LMDB environment. A two-phase commit makes the chunk
atomic over all shards. Reads go straight to the environments, through one read transaction a shard (a *cut*).

Order of life: `Engine(path)`, `start()`, any number of `apply_chunk` and reads, `stop()`, `close_storage()`; or
`async with Engine(path) as db`.

Glossary: *entry*, one committed log record. *Chunk*, consecutive entries, applied whole or not at all. *Group*, queued
chunks that go through one commit. *Part*, what one shard gets of a group; *participant*, a shard that has one. *Solo*,
a group with one participant and no vote. *Decision record*, what makes a group decided. *Generation*, one directory
with a full set of shards. *Run mark*, whether the files may hold more than the disk does.

Files, lowest first:

    errors.py       every error a user can meet
    config.py       every setting, with its unit and range
    contract.py     the StateMachine protocol and the values it speaks in
    commit.py       two-phase group commit as a table; no I/O
    barrier.py      the snapshot barrier as a table; no I/O
    decision.py     the decision record, and what a start makes of it
    log.py          where the accepted log ends; terms
    split.py        from entries to parts
    cut.py          reads at one applied index
    view.py         repeatable reads
    beside.py       the same work on many things, on several threads
    files.py        files that are whole or absent; locks
    anchors.py      whether a running engine's files are still in their place
    reading.py      opening what others may have put there
    manifest.py     what a snapshot contains
    parts.py        the parts of a snapshot, each read once and judged
    retention.py    a directory of snapshots: which are valid, which stay
    pieces.py       a piece of a travelling snapshot
    receiving.py    the parts of an arriving one, written in order
    travel.py       a snapshot in numbered pieces, and whole again
    archive.py      a snapshot as one file
    policy.py       when it is time for a snapshot; no I/O, no clock
    generations.py  the data directory
    runmark.py      whether the files may hold more than the disk does; what is durable
    placing.py      whether keys lie where the machine places them
    check.py        whether a shard's file at rest is what is said of it
    chunks.py       what is in flight: Chunk, Batch, Delivery
    lives.py        workers' lives as the coordinator sees them; no I/O, no clock
    launch.py       by which interpreter, with which options, workers are started
    processes.py    worker processes: start, kill, reap
    pinning.py      where in the log a snapshot's barrier goes
    flushing.py     making all that is published durable
    coordinator.py  chunks in, actions carried out, results out
    install.py      from a snapshot or a generation to a new generation
    compacting.py   the same state in a new generation, without gaps
    snapshots.py    writing snapshots into place, checking and keeping them
    resources.py    what the host allows: cores, limits
    opening.py      from a path to a locked, trusted directory
    runtime.py      one run: everything between start and stop
    reshard.py      convert a stopped directory to another shard count
    shell.py        thread, loop, and who waits; asyncio
    engine.py       the class people use
    verify.py       judge a stopped directory
    cli/            the command line; needs the extra `cli`
"""

from engine.archive import export_snapshot, import_snapshot
from engine.config import EngineConfig, load_config
from engine.contract import ScanResult, SnapshotInfo, SnapshotMetadata, StartReport, StateMachine
from engine.engine import Engine
from engine.errors import (
    BadEntryError,
    ChunkAbortedError,
    ChunkFailedError,
    ChunkTooLargeError,
    CommitRuleError,
    ConfigError,
    DamagedError,
    DirectoryChangedError,
    EngineError,
    EngineLockedError,
    EngineStateError,
    EngineStoppedError,
    FileRefusedError,
    ForkedError,
    FormatError,
    LogConflictError,
    LogGapError,
    LogOrderError,
    MachineImportError,
    MachineMismatchError,
    PieceDamagedError,
    PieceDuplicateError,
    PieceEndError,
    PieceGapError,
    PieceSourceError,
    ShardCountMismatchError,
    SnapshotAbortedError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotFormatError,
    SnapshotInProgressError,
    SnapshotLabelError,
    SnapshotStaleError,
    StateUntrustedError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreMismatchError,
    SyncFailedError,
    TooManyViewsError,
    TravelError,
    UndeclaredKeyError,
    ViewClosedError,
    WorkerFailedError,
    WrongLoopError,
    WrongThreadError,
)
from engine.policy import SnapshotPolicy
from engine.retention import valid_snapshots
from engine.shell import run
from engine.travel import Piece, SnapshotAssembler, decode_piece, encode_piece, stream_snapshot
from engine.view import View
from shards.kv import CompareAndSwap, Delete, KeyValue, Put
from shards.machine import Context, Machine, Rejected, Tx, encode
from shards.types import ApplyResult, Entry, LogId

__version__ = "0.1.0"

__all__ = [
    "ApplyResult",
    "BadEntryError",
    "ChunkAbortedError",
    "ChunkFailedError",
    "ChunkTooLargeError",
    "CommitRuleError",
    "CompareAndSwap",
    "ConfigError",
    "Context",
    "DamagedError",
    "Delete",
    "DirectoryChangedError",
    "Engine",
    "EngineConfig",
    "EngineError",
    "EngineLockedError",
    "EngineStateError",
    "EngineStoppedError",
    "Entry",
    "FileRefusedError",
    "ForkedError",
    "FormatError",
    "KeyValue",
    "LogConflictError",
    "LogGapError",
    "LogId",
    "LogOrderError",
    "Machine",
    "MachineImportError",
    "MachineMismatchError",
    "Piece",
    "PieceDamagedError",
    "PieceDuplicateError",
    "PieceEndError",
    "PieceGapError",
    "PieceSourceError",
    "Put",
    "Rejected",
    "ScanResult",
    "ShardCountMismatchError",
    "SnapshotAbortedError",
    "SnapshotAssembler",
    "SnapshotDamagedError",
    "SnapshotError",
    "SnapshotFormatError",
    "SnapshotInProgressError",
    "SnapshotInfo",
    "SnapshotLabelError",
    "SnapshotMetadata",
    "SnapshotPolicy",
    "SnapshotStaleError",
    "StartReport",
    "StateMachine",
    "StateUntrustedError",
    "StoreDamagedError",
    "StoreError",
    "StoreFullError",
    "StoreMismatchError",
    "SyncFailedError",
    "TooManyViewsError",
    "TravelError",
    "Tx",
    "UndeclaredKeyError",
    "View",
    "ViewClosedError",
    "WorkerFailedError",
    "WrongLoopError",
    "WrongThreadError",
    "decode_piece",
    "encode",
    "encode_piece",
    "export_snapshot",
    "import_snapshot",
    "load_config",
    "run",
    "stream_snapshot",
    "valid_snapshots",
]
