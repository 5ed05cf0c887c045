"""One shard's store against a dict: commits, aborts, scans, limits, whose files they are.

LMDB lets a process open an environment once, so what others see of an open store is read through `pin`, and the
readers' side is opened when the store is closed. Across processes both are at work in every test of the engine.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.shards.errors import StoreError, StoreFullError, StoreMismatchError
from shardengine.shards.placement import SLOTS
from shardengine.shards.snapshot import copy_pinned
from shardengine.shards.store import PAGE_BYTES, BadKey, Identity, ReadStore, Store, check_library, damage_in
from shardengine.shards.store.env import used_bytes
from shardengine.shards.types import Position

OURS = Identity("gen-1", 1, 3, SLOTS, "test.machine")
MAP_BYTES = 64 << 20


def store_at(path: Path, identity: Identity = OURS, map_bytes: int = MAP_BYTES, sync: bool = False) -> Store:
    path.mkdir(exist_ok=True)
    return Store(path, identity, map_bytes=map_bytes, readers_max=20, sync=sync)


def reader_at(path: Path, identity: Identity = OURS) -> ReadStore:
    return ReadStore(path, identity, map_bytes=MAP_BYTES, readers_max=20)


def records(side: Store | ReadStore) -> dict[bytes, bytes]:
    transaction = side.pin() if isinstance(side, Store) else side.begin()
    try:
        found = dict(transaction.scan(b"", None, reverse=False))
        assert transaction.count() == len(found)
        return found
    finally:
        transaction.close()


def commit(store: Store, writes: dict[bytes, bytes | None], group: int, solo: bytes | None = None) -> None:
    store.begin()
    store.write(writes)
    store.commit(Position(group, 10 * group, 1, 0), solo)


def random_writes(draw: random.Random, data: dict[bytes, bytes]) -> dict[bytes, bytes | None]:
    writes: dict[bytes, bytes | None] = {}
    for _ in range(draw.choice([0, 1, 5, 400])):
        key = b"%d" % draw.randrange(1_500) * draw.choice([1, 1, 30])
        if draw.random() < 0.3:
            key = draw.choice([key, *list(data)[:50]])
            writes[key[:480]] = None
        else:
            writes[key[:480]] = bytes([draw.randrange(256)]) * draw.choice([0, 3, 100, 1_500, 2_100, 5_000, 70_000])
    return writes


@pytest.mark.parametrize("seed", range(4))
def test_a_store_is_a_dict_that_commits_and_aborts(tmp_path: Path, seed: int) -> None:
    draw, data, group = random.Random(seed), dict[bytes, bytes](), 0
    store = store_at(tmp_path / "s")
    for _ in range(40):
        writes = random_writes(draw, data)
        after = {**data, **writes}
        store.begin()
        store.write(writes)
        for key in [*list(writes)[:20], *list(data)[:20], b"absent"]:
            assert store.get(key) == after.get(key)
        assert records(store) == data, "nobody sees what is not committed"
        if draw.random() < 0.25:
            store.abort()
        else:
            group += 1
            store.commit(Position(group, group, 1, draw.randrange(9)), None)
            data = {key: value for key, value in after.items() if value is not None}
            assert store.position.group == group
        if draw.random() < 0.1:
            store.close()
            assert not damage_in(tmp_path / "s")
            with closing(reader_at(tmp_path / "s")) as reader:
                assert records(reader) == data
            store = store_at(tmp_path / "s")
        assert records(store) == data, f"seed {seed}"
    store.close()


def test_a_read_transaction_keeps_what_it_saw(tmp_path: Path) -> None:
    with closing(store_at(tmp_path / "s")) as store:
        commit(store, {b"a": b"1", b"b": b"1"}, 1)
        pinned = store.pin()
        commit(store, {b"a": b"2", b"b": None, b"c": b"2"}, 2)
        assert dict(pinned.scan(b"", None, reverse=False)) == {b"a": b"1", b"b": b"1"}
        assert (pinned.get(b"a"), pinned.get(b"c"), pinned.count()) == (b"1", None, 2)
        assert pinned.position() == Position(1, 10, 1, 0)
        now = store.pin()
        assert (now.position().group, now.get(b"a")) == (2, b"2")
        with pytest.raises(BadKey):
            now.get(b"")
        assert now.get(bytes(512)) is None
        now.close()
        pinned.close()


def test_more_readers_than_there_are_slots_are_refused_by_the_setting(tmp_path: Path) -> None:
    store_at(tmp_path / "s").close()
    with closing(reader_at(tmp_path / "s")) as reader:
        held = [reader.begin() for _ in range(20)]
        with pytest.raises(StoreError, match="raise views_max"):
            reader.begin()
        while held:
            held.pop().close()  # a slot is free when its transaction is forgotten
        reader.begin().close()


def test_what_is_committed_survives_a_close_and_position_goes_with_it(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s", sync=True)
    commit(store, {b"k": b"v"}, 7, b"results")
    store.begin()
    store.write({b"k": b"not committed"})
    store.close()
    store = store_at(tmp_path / "s")
    assert store.position == Position(7, 70, 1, 0)
    assert store.solo_results() == b"results"
    store.begin()
    assert store.get(b"k") == b"v"
    store.abort()
    commit(store, {}, 8)
    assert store.solo_results() is None, "of the last commit only"
    store.sync()
    store.close()


def test_a_close_cuts_the_file_to_the_pages_in_use(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s")
    commit(store, {b"%d" % number: bytes(900) for number in range(1_000)}, 1)
    assert (tmp_path / "s" / "data.mdb").stat().st_size == MAP_BYTES
    store.close()
    size = (tmp_path / "s" / "data.mdb").stat().st_size
    assert 900_000 < size < 3_000_000
    assert size % PAGE_BYTES == 0
    assert not damage_in(tmp_path / "s")
    with closing(reader_at(tmp_path / "s")) as reader:
        assert len(records(reader)) == 1_000


OTHERS: list[dict[str, Any]] = [
    {"generation": "gen-2"},
    {"shard": 2},
    {"shards": 4},
    {"slots": SLOTS // 2},
    {"machine": "another"},
    {"format": 99},
]


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: next(iter(change)))
def test_files_of_another_are_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    store_at(tmp_path / "s").close()
    theirs = msgspec.structs.replace(OURS, **change)
    (name,) = change
    for open_ in (store_at, reader_at):
        with pytest.raises(StoreMismatchError, match=f"belongs to {name}") as caught:
            open_(tmp_path / "s", theirs)
        assert (caught.value.found, caught.value.expected) == (getattr(OURS, name), change[name])
    with closing(store_at(tmp_path / "s")) as store:
        assert store.position == Position()


def test_files_that_are_no_shard_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not an environment" * 1_000)
    for open_ in (store_at, reader_at):
        with pytest.raises(StoreError, match="cannot open"):
            open_(tmp_path)


def test_damage_to_a_page_is_found(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s")
    commit(store, {b"%d" % number: bytes(900) for number in range(1_000)}, 1)
    store.close()
    assert damage_in(tmp_path / "s") == []
    size = (tmp_path / "s" / "data.mdb").stat().st_size
    with (tmp_path / "s" / "data.mdb").open("r+b") as file:
        for page in range(20, size // PAGE_BYTES, 7):
            file.seek(page * PAGE_BYTES + 10)
            file.write(b"\xff" * 16)
    assert damage_in(tmp_path / "s") != []


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
        kept = {key: value for key, value in kept.items() if key not in set(gone)}
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
        kept = {key: value for key, value in kept.items() if key not in set(gone)}
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


ALPHABET = st.sampled_from([b"a", b"b", b"\xff", b"\0", b"ab"])
KEYS = st.lists(ALPHABET, min_size=1, max_size=5).map(b"".join)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(store_at(tmp_path / "s")) as made:
        yield made


@given(
    keys=st.sets(KEYS, max_size=30),
    prefix=st.lists(ALPHABET, max_size=3).map(b"".join),
    start=st.none() | KEYS | st.just(b""),
)
def test_a_scan_is_a_slice_of_the_sorted_keys(
    store: Store, keys: set[bytes], prefix: bytes, start: bytes | None
) -> None:
    commit(store, {**dict.fromkeys(records(store)), **{key: key[::-1] for key in keys}}, store.position.group + 1)
    transaction = store.pin()
    inside = sorted(key for key in keys if key.startswith(prefix))
    above = [key for key in inside if start is None or key > start]
    below = [key for key in inside[::-1] if start is None or key < start]
    assert list(transaction.scan(prefix, start, reverse=False)) == [(key, key[::-1]) for key in above]
    assert list(transaction.scan(prefix, start, reverse=True)) == [(key, key[::-1]) for key in below]
    transaction.close()


def test_a_copy_is_what_was_pinned(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s")
    expected: dict[bytes, bytes] = {b"k%05d" % number: b"v" * (number % 50) for number in range(10_000)}
    store.begin()
    store.write(dict(expected))
    store.commit(Position(1, 1, 1, 0))
    pinned = store.pin()
    store.begin()
    store.write({b"later": b"", b"k00001": None})
    store.commit(Position(2, 2, 1, 0))
    copied = copy_pinned(store, pinned, tmp_path / "part.mdb", 7)
    assert copied.problem is None and copied.entries == len(expected)
    assert copied.size == (tmp_path / "part.mdb").stat().st_size
    store.close()
    part = ReadStore.of_part(tmp_path / "part.mdb")
    transaction = part.begin()
    assert dict(transaction.scan(b"", None, reverse=False)) == expected
    assert transaction.position() == Position(1, 1, 1, 0)
    transaction.close()
    part.close()
    assert damage_in(tmp_path / "part.mdb") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.mdb", "s"]


def test_a_liblmdb_that_cannot_copy_what_is_pinned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_library()
    monkeypatch.setattr(lmdb, "version", lambda *, subpatch=False: (0, 9, 31, 0))
    with pytest.raises(StoreError, match=r"0\.9\.31, cannot copy a pinned transaction.*--force-reinstall lmdb"):
        check_library()
