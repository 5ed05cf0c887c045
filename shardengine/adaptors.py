"""State machines with the contract of `Engine` and no worker processes: `from shardengine.adaptors import ...`."""

from __future__ import annotations

from shardengine.engine.adaptors.memory import MemoryStateMachine

__all__ = ["MemoryStateMachine"]
