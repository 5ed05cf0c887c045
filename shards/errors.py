"""What can go wrong inside one shard, or with one entry."""

from __future__ import annotations

from shardengine.ipc.errors import EngineError


class ChunkFailedError(EngineError):
    """The chunk failed as a whole; names the entry (`index`) when one caused it. No shard keeps a trace of it."""


class BadEntryError(ChunkFailedError):
    """An entry's data is no command of this machine, or passes a limit. Names the index and the limit."""


class UndeclaredKeyError(ChunkFailedError):
    """`apply` touched a key that lies in no partition of a key that `keys(command)` names: answers would depend on the
    shard count."""


class ChunkTooLargeError(EngineError):
    """A chunk's part for one shard, or what its commands over several shards ask for or write, is larger than a ring
    takes; names the limit and the setting to raise."""


class StoreError(EngineError):
    """A shard's LMDB environment could not do what was asked; the transaction left no trace."""


class StoreFullError(StoreError, ChunkFailedError):
    """No room for a group: the map, or the disk under it, is full. Nothing was applied."""


class SyncFailedError(StoreError):
    """The disk did not take what was to be made durable, and the kernel says so once only: nothing counts as durable
    from there on. The next start judges what is left."""


class StoreDamagedError(StoreError):
    """A shard's file is cut off, or its pages contradict each other."""


class StoreMismatchError(StoreError):
    """A shard's files belong to another shard, generation, machine or format than the one that opens them."""


class MachineImportError(EngineError):
    """A class that is no machine (what it lacks is said), or that worker processes cannot import or make: it lives in
    `__main__`, in a function, or nowhere, or takes arguments."""


class MachineMismatchError(EngineError):
    """The directory was created by another machine, or by a later version of this one."""
