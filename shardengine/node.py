"""A node, the engine under a log: `from shardengine.node import ...`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shardengine.engine.node.entries import entries_of
from shardengine.engine.node.local.log import LocalLog
from shardengine.engine.node.log import Log, Logged, LogState
from shardengine.engine.node.memory import MemoryLog
from shardengine.engine.node.node import Node
from shardengine.engine.node.policy import NodePolicy
from shardengine.engine.node.shared import Member, SharedLog
from shardengine.engine.node.sharing import SharedMemoryLog
from shardengine.engine.node.status import NodeStatus
from shardengine.engine.sync.node import SyncNode

if TYPE_CHECKING:
    from shardengine.engine.node.jetstream.log import JetStreamLog

__all__ = [
    "JetStreamLog",
    "LocalLog",
    "Log",
    "LogState",
    "Logged",
    "Member",
    "MemoryLog",
    "Node",
    "NodePolicy",
    "NodeStatus",
    "SharedLog",
    "SharedMemoryLog",
    "SyncNode",
    "entries_of",
]


def __getattr__(name: str) -> Any:
    """What a node on files of this machine has no use for is loaded when it is asked for."""
    if name != "JetStreamLog":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = import_module("shardengine.engine.node.jetstream.log").JetStreamLog
    return value
