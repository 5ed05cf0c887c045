"""Messages that are leased and acknowledged: see `engine/machines/queue.py`."""

from shardengine.engine.machines.queue import Ack, Lease, Move, Push, Queue

__all__ = ["Ack", "Lease", "Move", "Push", "Queue"]
