"""Token buckets on the log clock: see `engine/machines/limiter.py`."""

from shardengine.engine.machines.limiter import Configure, Limiter, Take

__all__ = ["Configure", "Limiter", "Take"]
