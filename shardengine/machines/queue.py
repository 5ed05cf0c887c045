"""Messages that are leased and acknowledged: see `engine/machines/queue.py`."""

from shardengine.engine.machines.queue import LOT_BYTES, Ack, Lease, Move, Push, Queue

__all__ = ["LOT_BYTES", "Ack", "Lease", "Move", "Push", "Queue"]
