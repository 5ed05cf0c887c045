"""State machines with the contract of `Engine` and no worker processes: `from shardengine.adaptors import ...`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardengine.engine.adaptors.file import FileStateMachine
    from shardengine.engine.adaptors.memory import MemoryStateMachine
    from shardengine.engine.adaptors.rocksdb import RocksDBStateMachine
    from shardengine.engine.adaptors.sqlite import SQLiteStateMachine

_HOME_OF = {
    "FileStateMachine": "engine.adaptors.file",
    "MemoryStateMachine": "engine.adaptors.memory",
    "RocksDBStateMachine": "engine.adaptors.rocksdb",
    "SQLiteStateMachine": "engine.adaptors.sqlite",
}
__all__ = ["FileStateMachine", "MemoryStateMachine", "RocksDBStateMachine", "SQLiteStateMachine"]


def __getattr__(name: str) -> Any:
    """RocksDBStateMachine raises ImportError without the extra `rocksdb`."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"shardengine.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
