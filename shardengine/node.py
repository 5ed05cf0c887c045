"""A node, the engine under a log: `from shardengine.node import ...`."""

from __future__ import annotations

from shardengine.engine.node.log import Log, Logged, LogState

__all__ = ["Log", "LogState", "Logged"]
