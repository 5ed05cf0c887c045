"""The built-in machine: a map from bytes to bytes."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from shards.machine import Context, Machine, Rejected, Tx
from shards.types import Limits


class _Command(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    pass


class Put(_Command, frozen=True, tag=1):
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
    plain_put: ClassVar[int | None] = 1

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
