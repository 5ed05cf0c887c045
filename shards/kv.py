"""The built-in machine: a map from bytes to bytes."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from shardengine.shards.machine import Context, Machine, Rejected
from shardengine.shards.transaction import Tx
from shardengine.shards.types import Limits


class _Command(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    pass


PUT_TAG = 1


class Put(_Command, frozen=True, tag=PUT_TAG):
    """Set `key` to `value`."""

    key: bytes
    value: bytes


class Delete(_Command, frozen=True, tag=2):
    """Remove `key`; it succeeds whether or not the key is there."""

    key: bytes


class CompareAndSwap(_Command, frozen=True, tag=3):
    """Set `key` to `value` if its value is `expected` (None: if it is absent), else `succeeded=False`."""

    key: bytes
    expected: bytes | None
    value: bytes


class KeyValue(Machine):
    """`Put`, `Delete` and `CompareAndSwap` on single keys; results carry no value."""

    name: ClassVar[str] = "shardengine.kv"
    version: ClassVar[int] = 1
    command: ClassVar[Any] = Put | Delete | CompareAndSwap

    def keys(self, command: Put | Delete | CompareAndSwap) -> tuple[bytes]:
        return (command.key,)

    def check(self, command: Put | Delete | CompareAndSwap, limits: Limits) -> str | None:
        value = b"" if isinstance(command, Delete) else command.value
        if len(value) > limits.value_bytes_max:
            return f"a value of {len(value)} bytes, over value_bytes_max={limits.value_bytes_max}"
        return None

    def apply(self, tx: Tx, command: Put | Delete | CompareAndSwap, context: Context) -> None:
        match command:
            case Put(key, value):
                tx.put(key, value)
            case Delete(key):
                tx.delete(key)
            case CompareAndSwap(key, expected, value):
                if tx.get(key) != expected:
                    raise Rejected("compare failed")
                tx.put(key, value)


def plain_put_of(machine: Machine) -> int | None:
    """The tag of commands that are puts and nothing else (see `shards/fast/`): of exactly this machine's; None for any
    other machine, whatever it derives from."""
    return PUT_TAG if type(machine) is KeyValue else None
