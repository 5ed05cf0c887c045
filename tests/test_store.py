"""One shard's store against a dict: commits, aborts, scans, limits, whose files they are.

LMDB lets a process open an environment once, so what others see of an open store is read through `pin`, and the
readers' side is opened when the store is closed. Across processes both are at work in every test of the engine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.shards.errors import StoreError, StoreMismatchError
from shardengine.shards.placement import SLOTS
from shardengine.shards.snapshot import copy_pinned
from shardengine.shards.store import PAGE_BYTES, BadKey, ReadStore, Store, check_library, damage_in
from shardengine.shards.store.env import SoloRecord, decode_solo, encode
from shardengine.shards.types import Position, Standing
from tests.stores import MAP_BYTES, OURS, commit, random_writes, reader_at, records, store_at


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


def test_the_runs_of_a_solo_are_told_while_it_is_the_last_commit(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s")

    def standing() -> Standing:
        with closing(store.pin()) as transaction:
            return transaction.standing()

    assert standing() == Standing(Position())
    store.begin()
    store.commit(Position(7, 70, 3, 0), b"results", b"runs")
    assert standing() == Standing(Position(7, 70, 3, 0), b"runs") and store.solo_results() == b"results"
    store.begin()
    store.commit(Position(8, 80, 3, 0), b"")
    assert standing() == Standing(Position(8, 80, 3, 0), b"")
    store.begin()
    store.commit(Position(9, 90, 5, 0), b"", b"runs")
    commit(store, {}, 10)
    assert standing() == Standing(Position(10, 100, 1, 0))
    store.close()


def test_what_a_solo_left_before_there_were_runs_is_read_as_one_that_left_none() -> None:
    assert decode_solo(encode((7, b"results"))) == SoloRecord(7, b"results", b"")


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
