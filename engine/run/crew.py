"""The workers of a run as they come and go: what they say goes to the coordinator, who dies is replaced."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable

from shardengine.engine.commit.coordinator import Coordinator
from shardengine.engine.errors import named
from shardengine.engine.read.cut import Reads
from shardengine.engine.run.processes import Workers
from shardengine.ipc.errors import LinkClosedError
from shardengine.ipc.link import Link
from shardengine.shards import wire

log = logging.getLogger("shardengine")


class Crew:
    """Driven by whoever waits: `on_readable` when a link has something, `tick` as time passes.

    `on_link` and `off_link` are called with a shard and a descriptor when a link to watch appears, and before it goes.
    `reads` is the readers' side, once there is one.
    """

    def __init__(self, workers: Workers, coordinator: Coordinator, in_place: Callable[[], bool]) -> None:
        """`in_place` tells whether the files that a new worker opens by name are still ours; else the run fails."""
        self.on_link: Callable[[int, int], None] = lambda shard, descriptor: None
        self.off_link: Callable[[int, int], None] = lambda shard, descriptor: None
        self.reads: Reads | None = None
        self._workers = workers
        self._coordinator = coordinator
        self._in_place = in_place

    def start(self, shard: int) -> None:
        """Start a worker. One that cannot be started is tried again with the tick, until the coordinator gives up."""
        try:
            link = self._workers.start(shard)
            self.on_link(shard, link.fileno())
        except OSError as error:
            self._workers.reap(shard)
            self._coordinator.on_start_refused(shard, error)
            log.warning("no worker can be started for shard %d: %s", shard, error)
        else:
            self._coordinator.lives.started(shard)

    def on_readable(self, shard: int) -> None:
        """Take the next word of the worker of `shard`, or replace the worker when it is gone. What goes wrong here
        stops the engine by name."""
        link = self._workers.links[shard]
        if link is None:
            return
        try:
            try:
                message = link.receive()
            except LinkClosedError:
                self._replace(shard, link)
            else:
                if message is not None:
                    self._on_message(shard, message)
        except Exception as error:
            self.broken(error)

    def _on_message(self, shard: int, message: bytes) -> None:
        answer = wire.decode_answer(message)
        if self.reads is not None and isinstance(answer, wire.Hello):
            self.reads.worker_came(shard)
        self._coordinator.on_answer(shard, answer)

    def broken(self, error: Exception) -> None:
        """What nobody could handle stops the engine by name."""
        log.error("the engine stops applying", exc_info=error)
        self._coordinator.fail(named(error))

    def _replace(self, shard: int, link: Link) -> None:
        self.off_link(shard, link.fileno())
        pid = self._workers.pid(shard)
        self._workers.reap(shard)
        if self.reads is not None:
            self.reads.worker_ended(shard)
        if self._coordinator.on_link_end(shard):
            why = self._coordinator.lives.why_ended(shard)
            log.warning("the worker of shard %d (process %s) died (%s); starting another", shard, pid, why)
            if self._in_place():
                self.start(shard)

    def tick(self) -> None:
        """Time has passed: send what a full link kept back, and start those that could not be started."""
        self._workers.flush()
        self._workers.trim_log()
        if self.reads is not None:
            self.reads.look_after()
            self.reads.take_back()
        missing = [shard for shard, link in enumerate(self._workers.links) if link is None]
        if missing and self._coordinator.failure is None and self._in_place():
            for shard in missing:
                self.start(shard)

    def watched(self) -> dict[int, int]:
        """The shard of every link's descriptor."""
        return {link.fileno(): shard for shard, link in enumerate(self._workers.links) if link is not None}

    def let_go(self) -> None:
        """Nobody watches the links any more."""
        for descriptor, shard in self.watched().items():
            self.off_link(shard, descriptor)

    def wait(self, timeout_ms: int) -> None:
        """Wait until a link has something, or the time is up. Any thread, while this one waits for it."""
        poller = select.poll()
        for descriptor in self.watched():
            poller.register(descriptor, select.POLLIN)
        poller.poll(timeout_ms)

    def poll(self, timeout_ms: int) -> None:
        """Wait until a link has something, or the time is up, and take it."""
        poller, shards = select.poll(), self.watched()
        for descriptor, shard in shards.items():
            link = self._workers.links[shard]
            wants_write = link is not None and link.wants_write
            poller.register(descriptor, select.POLLIN | (select.POLLOUT if wants_write else 0))
        for descriptor, _ in poller.poll(timeout_ms):
            self.on_readable(shards[descriptor])
