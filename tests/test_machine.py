"""What commands do: the transaction's overlays, the built-in machine, placement, and the hashes under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from shardengine import (
    BadEntryError,
    CompareAndSwap,
    Context,
    Delete,
    KeyValue,
    Put,
    Rejected,
    Tx,
    UndeclaredKeyError,
    encode,
)
from shardengine.shards.digest import DIGEST_MODULUS, records_digest
from shardengine.shards.kv import plain_put_of
from shardengine.shards.placement import SLOTS, shard_of, shard_table, slot_of
from shardengine.shards.transaction import Record
from shardengine.shards.types import Limits
from tests.model import Model, digest_of, log_of

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
VALUES = st.binary(max_size=3)
PUTS = st.builds(Put, KEYS, VALUES)
COMMANDS = PUTS | st.builds(Delete, KEYS) | st.builds(CompareAndSwap, KEYS, st.none() | VALUES, VALUES)


class Records(dict[bytes, bytes]):
    """What a transaction may lie on."""

    def scan(self, prefix: bytes, partitions: Set[bytes], limit: int | None, reverse: bool) -> Iterator[Record]:
        return iter([item for item in sorted(self.items(), reverse=reverse) if item[0].startswith(prefix)])


def one_by_one(commands: list[Any], data: dict[bytes, bytes]) -> tuple[dict[bytes, bytes | None], list[str | None]]:
    """What the commands write, applied each by itself as a worker does, and why each was rejected."""
    machine, tx, reasons = KeyValue(), Tx(Records(data), Limits()), list[str | None]()
    for command in commands:
        tx.declare(machine.keys(command))
        try:
            machine.apply(tx, command, Context())
        except Rejected as rejection:
            tx.drop()
            reasons.append(rejection.reason)
        else:
            tx.settle()
            reasons.append(None)
    return tx.writes, reasons


@given(commands=st.lists(COMMANDS, max_size=30), data=st.dictionaries(KEYS, VALUES))
def test_the_built_in_machine_is_the_dict_model(commands: list[Any], data: dict[bytes, bytes]) -> None:
    writes, reasons = one_by_one(commands, data)
    model = Model()
    model.data = dict(data)
    results = model.apply(log_of(map(encode, commands)))
    assert [result.reason for result in results] == reasons
    assert [result.succeeded for result in results] == [reason is None for reason in reasons]
    assert {key: value for key, value in {**data, **writes}.items() if value is not None} == model.data


class Quiet(KeyValue):
    name = "test.quiet"


def test_only_the_built_in_machine_itself_has_plain_puts() -> None:
    assert plain_put_of(KeyValue()) == encode(Put(b"k", b"v"))[1]
    assert plain_put_of(Quiet()) is None


@given(command=COMMANDS)
def test_a_command_comes_back_from_its_bytes(command: Any) -> None:
    assert msgspec.msgpack.decode(encode(command), type=KeyValue.command) == command


def test_a_transaction_reads_entry_over_group_over_store() -> None:
    tx = Tx(Records({b"a": b"stored", b"b": b"stored"}), Limits())
    tx.declare([b"a", b"b"])
    tx.put(b"a", b"group")
    tx.delete(b"b")
    assert (tx.get(b"a"), tx.get(b"b")) == (b"group", None)
    tx.settle()
    tx.declare([b"a", b"b"])
    tx.put(b"b", b"entry")
    tx.delete(b"a")
    assert (tx.get(b"a"), tx.get(b"b")) == (None, b"entry")
    tx.drop()
    assert (tx.get(b"a"), tx.get(b"b")) == (b"group", None)
    assert tx.writes == {b"a": b"group", b"b": None}


def test_a_transaction_refuses_keys_that_were_not_declared() -> None:
    tx = Tx(Records(), Limits())
    tx.declare([b"a"])
    touches: list[Callable[[], object]] = [lambda: tx.get(b"b"), lambda: tx.put(b"b", b""), lambda: tx.delete(b"b")]
    for touch in touches:
        with pytest.raises(UndeclaredKeyError, match="b'b'") as caught:
            touch()
        assert (caught.value.key, caught.value.declared) == (b"b", [b"a"])
    assert tx.writes == {}


class Bytes(bytes):
    """Bytes, of a class of their own."""


@pytest.mark.parametrize("kind", [memoryview, bytearray, Bytes, str])
def test_what_equals_a_key_and_is_none_is_refused(kind: Any) -> None:
    tx = Tx(Records(), Limits(), lambda key: key[:1])
    tx.declare([b"a"])
    key: Any = "a" if kind is str else kind(b"a")
    touches: list[Callable[[], object]] = [lambda: tx.get(key), lambda: tx.put(key, b""), lambda: tx.delete(key)]
    for touch in touches:
        with pytest.raises(UndeclaredKeyError, match="is no key"):
            touch()
    assert tx.writes == {}


def test_a_value_of_a_class_of_its_own_is_kept_as_bytes() -> None:
    tx = Tx(Records(), Limits())
    tx.declare([b"a"])
    tx.put(b"a", Bytes(b"value"))
    assert type(tx.get(b"a")) is bytes


@pytest.mark.parametrize("value", [bytes(11), "text", None, 7])
def test_a_transaction_refuses_what_is_no_value(value: Any) -> None:
    tx = Tx(Records(), Limits(value_bytes_max=10))
    tx.declare([b"a"])
    tx.put(b"a", bytes(10))
    with pytest.raises(BadEntryError, match="at most 10 bytes"):
        tx.put(b"a", value)
    assert tx.get(b"a") == bytes(10)


@given(key=st.binary(max_size=100))
def test_a_slot_is_the_low_bits_of_the_keys_hash(key: bytes) -> None:
    assert slot_of(key) == xxhash.xxh64_intdigest(key, seed=0) % SLOTS == xxhash.xxh64_intdigest(key) & 16_383


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 8, 255, 256])
def test_shards_own_contiguous_ranges_of_all_slots(shards: int) -> None:
    table = shard_table(shards)
    assert list(table) == sorted(table) == [shard_of(slot, shards) for slot in range(SLOTS)]
    sizes = [table.count(shard) for shard in range(shards)]
    assert sum(sizes) == SLOTS
    assert max(sizes) - min(sizes) <= 1


@given(
    records=st.dictionaries(st.binary(min_size=1, max_size=20), st.binary(max_size=50), max_size=20),
    cut=st.integers(0, 20),
)
def test_a_digest_does_not_depend_on_order_or_shards(records: dict[bytes, bytes], cut: int) -> None:
    items = list(records.items())
    whole = digest_of(items)
    parts = records_digest(items[::-1][:cut]) + records_digest(items[::-1][cut:])
    assert (parts % DIGEST_MODULUS).to_bytes(16, "big") == whole


def test_the_digest_is_the_published_one() -> None:
    assert digest_of([]) == bytes(16)
    expected = xxhash.xxh3_128_intdigest(b"\x01\0\0\0k" + bytes(8) + b"value")
    assert records_digest([(b"k", b"value")]) == expected == int.from_bytes(digest_of([(b"k", b"value")]), "big")
