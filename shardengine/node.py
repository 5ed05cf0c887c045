"""A node, the engine under a log: `from shardengine.node import ...`."""

from __future__ import annotations

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

__all__ = [
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
