"""Keys that a machine places elsewhere than it did: found by a start that samples, and by `verify`, which reads all."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardengine import Engine, Machine, MachineMismatchError, SnapshotDamagedError, encode
from shardengine.engine.storage.placing import samples
from shardengine.engine.verify import verify_directory, verify_snapshot
from shardengine.shards.placement import shard_table, slot_of
from shardengine.shards.store import Identity, ReadStore, Store
from shardengine.shards.types import Position
from tests.machines import Add, Ledger, Other, Partless, Rekeyed
from tests.model import log_of
from tests.taking import CONFIG


async def ledger(path: Path, *keys: bytes) -> None:
    """A directory of two shards that holds `keys`, and a snapshot of it."""
    async with Engine(path, shards=2, machine=Ledger, config=CONFIG) as db:
        await db.apply_chunk(log_of([encode(Add(key, 1)) for key in keys]))
        await db.generate_snapshot_data(path.with_name("snapshot"))


KEYS = [b"%d/%d" % (group, number) for group in range(20) for number in range(20)]


@pytest.mark.parametrize("machine", [Rekeyed, Partless])
async def test_a_changed_partition_key_is_found_by_a_start_by_an_install_and_by_verify(
    tmp_path: Path, machine: type[Machine]
) -> None:
    await ledger(tmp_path / "data", *KEYS)
    with pytest.raises(MachineMismatchError, match="partition_key is not the one that placed them") as caught:
        Engine(tmp_path / "data", machine=machine, config=CONFIG).start()
    assert caught.value.shard == 0 and caught.value.hint
    assert verify_directory(tmp_path / "data", Ledger) == []
    findings = verify_directory(tmp_path / "data", machine)
    assert [finding.shard for finding in findings] == [0, 1]
    assert all("partition_key" in finding.problem for finding in findings)
    with pytest.raises(SnapshotDamagedError, match="partition_key"):
        verify_snapshot(tmp_path / "snapshot", deep=True, machine=machine)
    async with Engine(tmp_path / "other", shards=2, machine=machine, config=CONFIG) as db:
        with pytest.raises(SnapshotDamagedError, match="partition_key"):
            await db.restore(tmp_path / "snapshot")
    async with Engine(tmp_path / "data", machine=Ledger, config=CONFIG) as db:
        assert len(db) == 400


async def test_a_single_key_in_the_wrong_place_is_found_by_verify(tmp_path: Path) -> None:
    keys = [b"%d" % number for number in range(400)]
    await ledger(tmp_path / "data", *keys)
    stray = next(b"%d/x" % number for number in range(400, 999) if shard_table(2)[slot_of(b"%d" % number)] == 1)
    async with Engine(tmp_path / "data", machine=Ledger, config=CONFIG) as db:
        identity = db._running()._generation.identity(0)
        path = db._running()._generation.shard(0)
    put_by_hand(path, identity, stray)
    async with Engine(tmp_path / "data", machine=Ledger, config=CONFIG):
        pass
    (finding,) = verify_directory(tmp_path / "data", Ledger)
    assert finding.shard == 0 and f"the key {stray!r} belongs to shard 1, not 0" in finding.problem


def put_by_hand(path: Path, identity: Identity, *keys: bytes) -> None:
    store = Store(path, identity, map_bytes=CONFIG.map_bytes, readers_max=8, sync=True)
    store.begin()
    store.write(dict.fromkeys(keys, b"1"))
    store.commit(store.position)
    store.close()


async def test_without_the_machine_placement_is_not_checked_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await ledger(tmp_path / "data", *KEYS)
    assert verify_directory(tmp_path / "data") == []
    assert "was not checked: that takes the machine 'test.ledger'" in caplog.text
    with pytest.raises(MachineMismatchError, match=r"test\.ledger"):
        verify_directory(tmp_path / "data", Other)


@pytest.mark.parametrize("keys", [[], [b"a"], [b"a", b"a\0"], [b"\xff" * 480], [b"user/%06d" % n for n in range(3000)]])
def test_the_samples_are_keys_that_are_there_from_the_first_to_the_last(tmp_path: Path, keys: list[bytes]) -> None:
    identity = Identity("g", 0, 1, 1 << 14, "m")
    Store(tmp_path, identity, map_bytes=16 << 20, readers_max=8, sync=False).close()
    put_by_hand(tmp_path, identity, *keys)
    store = ReadStore(tmp_path, identity, map_bytes=16 << 20, readers_max=8)
    transaction = store.begin()
    found = set(samples(transaction))
    transaction.close()
    store.close()
    assert found <= set(keys) and {*keys[:1], *keys[-1:]} <= found
    assert len(found) >= min(10, len(keys))
    assert Position() == Position(0, 0, 0, 0)
