"""Commands beside the built-in ones: one over two keys, one that fails its chunk; and a machine that takes all."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from shardengine import CompareAndSwap, Context, Delete, KeyValue, Machine, Put, Rejected, Tx


class Relocate(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The value of `source` goes to `target`; refused where it is absent."""

    source: bytes
    target: bytes


class Explode(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """`apply` fails."""

    key: bytes


class Moving(Machine):
    """As `KeyValue`, with those two more."""

    name: ClassVar[str] = "tests.moving"
    command: ClassVar[Any] = Put | Delete | CompareAndSwap | Relocate | Explode

    def __init__(self) -> None:
        self._plain = KeyValue()

    def keys(self, command: Any) -> tuple[bytes, ...]:
        return (command.source, command.target) if isinstance(command, Relocate) else (command.key,)

    def apply(self, tx: Tx, command: Any, context: Context) -> None:
        if isinstance(command, Explode):
            raise RuntimeError("a command that fails")
        if not isinstance(command, Relocate):
            self._plain.apply(tx, command, context)
            return
        value = tx.get(command.source)
        if value is None:
            raise Rejected("nothing to move")
        tx.delete(command.source)
        tx.put(command.target, value)
