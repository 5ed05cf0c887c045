"""A group that is decided: it kills worker after worker, and is done all the same."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from shardengine import Engine, Entry, LogId, Put, StartReport, WorkerFailedError, encode
from shardengine.engine.commit.coordinator import DECIDED_KILLS_MAX
from shardengine.engine.run.processes import Workers
from shardengine.shards import wire
from shardengine.shards.placement import shard_of, slot_of


def key(shard: int) -> bytes:
    return next(name for name in (b"%d" % n for n in range(1_000)) if shard_of(slot_of(name), 2) == shard)


@pytest.mark.parametrize("shards", [2, 3])
async def test_a_decided_group_that_kills_its_workers_stops_the_engine_and_is_redone_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    both = encode(Put(key(0), b"v")), encode(Put(key(1), b"v"))
    send = Workers.send

    def murderous(self: Workers, shard: int, order: wire.Order) -> None:
        decided = isinstance(order, wire.Commit) or (isinstance(order, wire.Part) and order.decided)
        if decided and shard == 1:
            self.kill(1)
        send(self, shard, order)

    with suppress(WorkerFailedError):
        async with Engine(tmp_path, shards=2) as db:
            await db.apply_chunk([Entry(index, 1, data) for index, data in enumerate(both, 1)])
            with monkeypatch.context() as patch:
                patch.setattr(Workers, "send", murderous)
                with pytest.raises(WorkerFailedError, match="entries 3 to 4 killed the worker of shard 1") as caught:
                    await db.apply_chunk([Entry(index, 1, data) for index, data in enumerate(both, 3)])
            assert caught.value.shard == 1
            assert db.last_applied().index == 2 and db.get(key(1)) == b"v" and not db.is_running()
            assert db.stats()["workers"][1]["restarts"] == DECIDED_KILLS_MAX - 1
    db = Engine(tmp_path, shards=shards, reshard=True)
    try:
        assert db.start() == StartReport("redone", LogId(4, 1))
    finally:
        await db.aclose()
