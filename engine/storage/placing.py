"""Whether keys lie where the machine places them. A machine whose `partition_key` has changed would not find them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardengine.engine.errors import MachineImportError, MachineMismatchError
from shardengine.shards.machine import Machine
from shardengine.shards.placement import shard_table, slot_of
from shardengine.shards.store import ReadStore, ReadTx

SAMPLES = 16
"""Keys of each shard that a start looks at."""

Owner = Callable[[bytes], int]


def made(machine: type[Machine]) -> Machine:
    """One of them. MachineImportError: its class cannot make any."""
    try:
        return machine()
    except Exception as error:
        raise MachineImportError(
            f"{machine.__module__}.{machine.__qualname__} cannot be made: {type(error).__name__}: {error}",
            hint="its class takes no arguments",
            machine=machine.__qualname__,
        ) from error


def owner_of(machine: Machine, shards: int) -> Owner:
    """From a key to the shard, among `shards`, that `machine` places it on."""
    table, partition_key = shard_table(shards), machine.partition_key
    if type(machine).partition_key is Machine.partition_key:
        return lambda key: table[slot_of(key)]
    return lambda key: table[slot_of(partition_key(key))]


def misplaced(key: bytes, shard: int, owner: Owner) -> str:
    """Why `key` has no business on `shard`, or ""."""
    try:
        belongs = owner(key)
    except Exception as error:
        return f"the machine's partition_key fails on the key {key!r}: {type(error).__name__}: {error}"
    return "" if belongs == shard else f"the key {key!r} belongs to shard {belongs}"


def check_samples(stores: Sequence[ReadStore], machine: Machine) -> None:
    """Look at a few keys of every shard, from the first to the last. Raises MachineMismatchError when one lies where
    `machine` does not place it."""
    owner = owner_of(machine, len(stores))
    for shard, store in enumerate(stores):
        transaction = store.begin()
        try:
            faults = [fault for key in samples(transaction) if (fault := misplaced(key, shard, owner))]
        finally:
            transaction.close()
        if faults:
            raise _mismatch(shard, len(stores), faults, type(machine))


def _mismatch(shard: int, shards: int, faults: list[str], kind: type[Machine]) -> MachineMismatchError:
    """The files are that shard's: they say so themselves, and were asked. So it is the machine that has changed."""
    return MachineMismatchError(
        f"shard {shard} of {shards} holds keys that machine {kind.name!r} version {kind.version} places elsewhere: "
        f"{faults[0]}. Its partition_key is not the one that placed them",
        hint="open it with the partition_key of before; a new one needs a new directory, fed from the log",
        shard=shard,
        misplaced=len(faults),
    )


def samples(transaction: ReadTx) -> list[bytes]:
    """Up to SAMPLES keys: the first, the last, and some from all over what lies between them."""

    def beyond(key: bytes | None, *, reverse: bool = False) -> bytes:
        return next(transaction.scan(b"", key, reverse=reverse), (b"", b""))[0]

    found = [key for key in (beyond(None), beyond(None, reverse=True)) if key]
    gaps = [(found[0], found[1])] if found and found[0] != found[1] else []
    while gaps and len(found) < SAMPLES:
        low, high = gaps.pop(0)
        key = beyond(_between(low, high))
        if key >= high:
            key = beyond(high, reverse=True)
        if key > low:
            found.append(key)
            gaps += [(low, key), (key, high)]
    return found


def _between(low: bytes, high: bytes) -> bytes:
    """A string of bytes about half way from `low` to `high`."""
    common = next((place for place, byte in enumerate(low) if high[place] != byte), len(low))
    ends = [int.from_bytes(key[common : common + 8].ljust(8, b"\0")) for key in (low, high)]
    return low[:common] + (sum(ends) // 2).to_bytes(8)
