"""A generation in one process: the coordinator, its rings, and shards over dicts. Messages go as bytes, in an order
that can be chosen, and nothing waits."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardengine.engine.commit.coordinator import Coordinator
from shardengine.engine.commit.decision import DecisionFile, Record, Recovery, create_decision
from shardengine.engine.commit.host import OvertimeError
from shardengine.engine.commit.inflight import Batch
from shardengine.engine.commit.packing import Packing
from shardengine.engine.commit.table import Commit
from shardengine.engine.errors import EngineError
from shardengine.engine.intake.chunks import Delivery
from shardengine.engine.intake.split import Splitter
from shardengine.ipc.ring import RingReader, RingWriter, create_ring
from shardengine.shards import wire
from shardengine.shards.machine import Machine
from shardengine.shards.shard import Shard
from shardengine.shards.types import Entry, Limits, Position
from tests.test_shard import DictStore

HALF_BYTES = 1 << 16


class Indoors:
    """Host and worker processes of a coordinator."""

    def __init__(
        self,
        path: Path,
        machine: type[Machine],
        shards: int,
        *,
        half_bytes: int = HALF_BYTES,
        choose: Callable[[int], int] = lambda count: 0,
    ) -> None:
        """`choose`: of so many shards that have something to do, which goes on."""
        self.choose = choose
        self.patience = 1 << 32
        self.sent: list[tuple[int, wire.Order]] = []
        self.stores = [DictStore() for _ in range(shards)]
        self._mail: list[deque[bytes]] = [deque() for _ in range(shards)]
        files = [path / f"ring-{shard}" for shard in range(shards)]
        for file in files:
            create_ring(file, half_bytes)
        self._writers = [RingWriter(file) for file in files]
        self._readers = [RingReader(file) for file in files]
        splitter = Splitter(machine(), shards, Limits(), reject_bad=False, part_bytes_max=half_bytes // 2)
        create_decision(path / "decision", Record(Position(), [], {}, 1))
        self._decision = DecisionFile(path / "decision")
        self._shards = [
            Shard(store, machine(), Limits(), reader.view, half_bytes)
            for store, reader in zip(self.stores, self._readers, strict=True)
        ]
        self.coordinator = Coordinator(
            host=self,
            workers=self,
            splitter=splitter,
            packing=Packing(self._writers, splitter, half_bytes),
            decision=self._decision,
            recovery=Recovery(Position(), [], None, frozenset()),
            commit=Commit(shards),
        )
        for shard in range(shards):
            self.coordinator.on_answer(shard, wire.Hello(shard, Position(), wire.PartResults({}, {})))
        self.place = splitter.place

    def close(self) -> None:
        self._decision.close()
        for writer, reader in zip(self._writers, self._readers, strict=True):
            writer.close()
            reader.close()

    # What the coordinator needs

    def before_write(self) -> None: ...
    @contextmanager
    def watched(self) -> Iterator[Callable[[], BaseException | None]]:
        """Interrupts what is more than `patience` commands."""
        ran = itertools.count(1)
        yield lambda: OvertimeError() if next(ran) > self.patience else None

    def published(self, batch: Batch) -> None: ...
    def wake(self, waiter: Any) -> None: ...
    def moved(self) -> None: ...
    def failed(self, error: EngineError) -> None:
        raise error

    def send(self, shard: int, order: wire.Order) -> None:
        self.sent.append((shard, order))
        self._mail[shard].append(wire.encode(order))

    def kill(self, shard: int) -> None:
        raise AssertionError("nobody is late here")

    def pid(self, shard: int) -> int | None:
        return None

    # What a test does

    def accept(self, chunks: Sequence[Sequence[Entry]]) -> list[Delivery]:
        """Have chunks accepted one behind the other, and do nothing yet but what the first of them give rise to."""
        return [self.coordinator.accept(chunk) for chunk in chunks]

    def run(self) -> None:
        """Go on until nobody has anything to do."""
        while busy := [shard for shard, mail in enumerate(self._mail) if mail]:
            shard = busy[self.choose(len(busy))]
            order = wire.decode_order(self._mail[shard].popleft())
            assert not isinstance(order, (wire.Stop, wire.Pin, wire.Copy, wire.Unpin))
            for answer in self._shards[shard].handle(order):
                self.coordinator.on_answer(shard, wire.decode_answer(wire.encode(answer)))

    def apply(self, entries: Sequence[Entry]) -> list[Any]:
        """The outcomes of one chunk."""
        (delivery,) = self.accept([entries])
        self.run()
        return outcomes(delivery)

    @property
    def records(self) -> dict[bytes, bytes]:
        """What all shards hold."""
        return {key: value for store in self.stores for key, value in store.data.items()}


def outcomes(delivery: Delivery) -> list[Any]:
    """A value, or why it was rejected, for each entry."""
    return [result.value if result.succeeded else result.reason for result in delivery.results()]
