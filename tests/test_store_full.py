"""A store without room, in its map or on its disk: what is refused before a page is touched, and what goes on."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from shardengine.shards.errors import StoreFullError
from shardengine.shards.store import PAGE_BYTES, Store, damage_in
from shardengine.shards.store.env import used_bytes
from shardengine.shards.types import Position
from tests.stores import commit, random_writes, records, store_at


def refusal(store: Store, writes: Mapping[bytes, bytes | None], group: int) -> StoreFullError | None:
    """Commit the writes, unless the store is full. What it has let in can always be committed."""
    store.begin()
    try:
        store.write(writes)
    except StoreFullError as error:
        store.abort()
        return error
    store.commit(Position(group, group, 1, 0))
    return None


@pytest.mark.parametrize("value_bytes", [0, 700, 1_900, 2_100, 9_000, 300_000])
def test_a_full_map_is_refused_before_a_page_is_touched_and_smaller_groups_go_on(
    tmp_path: Path, value_bytes: int
) -> None:
    map_bytes = 8 << 20
    store = store_at(tmp_path / "s", map_bytes=map_bytes)
    group, kept = 0, dict[bytes, bytes]()
    for count in (20_000, 3_000, 200, 10):  # ever smaller groups, each until it does not fit
        while True:
            keys = [b"%d-%d" % (group, number) for number in range(count)]
            error = refusal(store, dict.fromkeys(keys, bytes(value_bytes)), group + 1)
            if error is not None:
                break
            group += 1
            kept.update(dict.fromkeys(keys, bytes(value_bytes)))
        assert error.used <= error.limit == map_bytes < error.needed
        assert all(str(number) in error.message for number in (error.used, error.needed, error.limit))
        assert error.hint.startswith("raise map_bytes")
    assert group > 0
    assert records(store) == kept
    assert store.position.group == group
    store.close()
    with closing(store_at(tmp_path / "s", map_bytes=2 * map_bytes)) as larger:
        commit(larger, {b"more": bytes(value_bytes)}, group + 1)
    assert not damage_in(tmp_path / "s")


def no_room(descriptor: int, offset: int, length: int) -> None:
    """What `posix_fallocate` does where the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_refused_before_a_page_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(store_at(tmp_path / "s")) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", no_room)
            store.begin()
            with pytest.raises(StoreFullError, match=r"No space left on device.*free disk space"):
                store.write({b"k": b"v"})
            store.abort()
        assert records(store) == {}
        commit(store, {b"k": b"v"}, 1)
        assert records(store) == {b"k": b"v"}


@pytest.mark.parametrize("seed", range(4))
def test_no_commit_takes_more_than_was_reserved_for_it(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    with closing(store_at(tmp_path / "s", map_bytes=1 << 30)) as store:
        for group in range(1, 60):
            writes = random_writes(draw, {})
            before = used_bytes(store._env)
            if draw.random() < 0.2:
                store.begin()
                store.write(writes)
                store.abort()
            else:
                commit(store, writes, group, draw.choice([None, b"", bytes(100), bytes(9_000), bytes(3 << 20)]))
            used = used_bytes(store._env)
            assert used - before <= store._reserve._taken
            assert used <= store._reserve._needed <= store._reserve.end


def fill(store: Store, value_bytes: int) -> tuple[int, dict[bytes, bytes]]:
    """Put ever smaller groups until the smallest does not fit. Returns the number of groups, and what is in."""
    group, kept = store.position.group, records(store)
    for count in (1_000, 100, 20):
        while True:
            fresh = {b"%d-%d" % (group, number): bytes(value_bytes) for number in range(count)}
            if refusal(store, fresh, group + 1) is not None:
                break
            group += 1
            kept.update(fresh)
    return group, kept


@pytest.mark.parametrize("value_bytes", [130, 2_100, 9_000])
def test_a_map_that_was_full_once_has_room_again_for_what_is_deleted(tmp_path: Path, value_bytes: int) -> None:
    store = store_at(tmp_path / "s", map_bytes=4 << 20)
    group, kept = fill(store, value_bytes)
    for _ in range(2):
        gone = sorted(kept)[: len(kept) // 2]  # neighbours: a page comes free with its last record
        for at in range(0, len(gone), 100):
            assert refusal(store, dict.fromkeys(gone[at : at + 100]), group + 1) is None, "a full map still deletes"
            group += 1
        for key in gone:
            del kept[key]
        commit(store, {}, group + 1)
        store.close()
        store = store_at(tmp_path / "s", map_bytes=4 << 20)
        before = len(kept)
        group, kept = fill(store, value_bytes)
        assert len(kept) - before > len(gone) // 2, "what was deleted is room"
        assert records(store) == kept and store.position.group == group
    store.close()
    assert not damage_in(tmp_path / "s")


class _DiskOf:
    """A disk with so many bytes left."""

    def __init__(self, left: int) -> None:
        self.left = left
        self._really = os.posix_fallocate

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        if length > self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= length
        self._really(descriptor, offset, length)


@pytest.mark.parametrize("value_bytes", [130, 2_100, 9_000])
def test_on_a_full_disk_nothing_is_touched_that_was_not_reserved_and_free_pages_are_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value_bytes: int
) -> None:
    with closing(store_at(tmp_path / "s")) as store:
        disk = _DiskOf(3 << 20)
        monkeypatch.setattr(os, "posix_fallocate", disk.posix_fallocate)
        group, kept = fill(store, value_bytes)
        assert store._reserve.confined
        assert (store._env.info()["last_pgno"] + 1) * PAGE_BYTES <= store._reserve.end <= 4 << 20
        gone = sorted(kept)[: len(kept) // 2]
        for at in range(0, len(gone), 100):
            assert refusal(store, dict.fromkeys(gone[at : at + 100]), group + 1) is None
            group += 1
        for key in gone:
            del kept[key]
        before = len(kept)
        group, kept = fill(store, value_bytes)
        assert len(kept) - before > len(gone) // 3
        assert store._reserve.end <= 4 << 20
        pinned = store.pin()
        disk.left = 64 << 20
        assert refusal(store, {b"big": bytes(2 << 20)}, group + 1) is not None, "the map stays while it is read here"
        pinned.close()
        commit(store, {b"big": bytes(2 << 20)}, group + 1)
        assert not store._reserve.confined
        assert records(store) == {**kept, b"big": bytes(2 << 20)}
    assert not damage_in(tmp_path / "s")


def test_the_results_of_a_solo_need_room_too(tmp_path: Path) -> None:
    with closing(store_at(tmp_path / "s", map_bytes=8 << 20)) as store:
        store.begin()
        store.write({b"k": b"v"})
        with pytest.raises(StoreFullError, match="the map is full"):
            store.commit(Position(1, 1, 1, 0), bytes(8 << 20))
        assert records(store) == {}
        commit(store, {b"k": b"w"}, 1, b"results")
        assert records(store) == {b"k": b"w"}
