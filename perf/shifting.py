"""A machine for what is measured: two commands of the built-in one, and one over two keys. Workers import it."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from shardengine import CompareAndSwap, Context, Machine, Put, Tx
from shardengine.shards.kv import KeyValue


class Shift(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag=4):
    """`second` gets what `first` holds, and `first` gets `value`. Done twice it does not come to what it does once."""

    first: bytes
    second: bytes
    value: bytes

    def handed_on(self, held: bytes | None) -> bytes:
        """What `second` gets when `first` holds that: when nothing, `value` from its end."""
        return self.value[::-1] if held is None else held


class Shifting(Machine):
    """`Put` and `CompareAndSwap` as `KeyValue` has them, and `Shift`."""

    name: ClassVar[str] = "perf.shifting"
    command: ClassVar[Any] = Put | CompareAndSwap | Shift

    def __init__(self) -> None:
        self._single = KeyValue()

    def keys(self, command: Put | CompareAndSwap | Shift) -> tuple[bytes, ...]:
        return (command.first, command.second) if isinstance(command, Shift) else (command.key,)

    def apply(self, tx: Tx, command: Put | CompareAndSwap | Shift, context: Context) -> None:
        if isinstance(command, Shift):
            tx.put(command.second, command.handed_on(tx.get(command.first)))
            tx.put(command.first, command.value)
        else:
            self._single.apply(tx, command, context)
