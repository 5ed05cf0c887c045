"""What the coordinator needs of the outside: who started it, and worker processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from shardengine.engine.commit.inflight import Batch
from shardengine.engine.errors import EngineError
from shardengine.shards import wire


class OvertimeError(BaseException):
    """A command that runs in the engine's own process is not done in time. It is raised through `apply`, past all
    handlers of errors."""

    limit_ms = 0

    def __str__(self) -> str:
        where = "in the engine's own process, where commands over several shards run"
        return f"apply took more than worker_timeout_ms={self.limit_ms} {where}"


class Host(Protocol):
    """Who runs a coordinator. None of these calls it back but to ask."""

    def before_write(self) -> None:
        """The first byte of a group is about to be written. May wait for the disk. Raises what forbids to write: the
        group's first chunk fails with it."""

    def watched(self) -> AbstractContextManager[Callable[[], BaseException | None]]:
        """Commands of the machine run inside; raises OvertimeError in them when they take too long. What is entered
        tells whether it was, since it was asked last."""

    def published(self, batch: Batch) -> None:
        """`batch` is committed on every shard: show it to readers. Its results are given out next."""

    def wake(self, waiter: Any) -> None:
        """What `waiter`, of a chunk, waits for has come."""

    def moved(self) -> None:
        """The applied index, or what is in flight, is another than before."""

    def failed(self, error: EngineError) -> None:
        """Nothing will be applied any more, because of `error`."""


class Sender(Protocol):
    """Worker processes, one a shard."""

    def send(self, shard: int, order: wire.Order) -> None: ...
    def kill(self, shard: int) -> None: ...
    def pid(self, shard: int) -> int | None: ...
