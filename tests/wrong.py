"""Machines that do what a machine must not, as their commands say. Workers import them from here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from shardengine import Context, Machine, Rejected, Tx


class Do(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Name `a` and `b`, and do `what`."""

    a: bytes
    b: bytes
    what: str


def _exit() -> None:
    sys.exit(4)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _recurse() -> None:
    _recurse()


def _cycle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


RESULTS: dict[str, Callable[[], Any]] = {
    "object": object,
    "deep": lambda: {"a": [object()]},
    "huge": lambda: 1 << 64,
    "low": lambda: -(1 << 63) - 1,
    "lambda": lambda: _exit,
    "cycle": _cycle,
    "surrogate": lambda: "\udcff",
    "exit": _exit,
    "interrupt": _interrupt,
    "recurse": _recurse,
}
TOUCHES: dict[str, Callable[[Any], Any]] = {
    "put str": lambda tx: tx.put(b"a/1", "x"),
    "put None": lambda tx: tx.put(b"a/1", None),
    "put bytearray": lambda tx: tx.put(b"a/1", bytearray(b"x")),
    "put long": lambda tx: tx.put(b"a/1", bytes((1 << 20) + 1)),
    "get str": lambda tx: tx.get("a/1"),
    "get None": lambda tx: tx.get(None),
    "get long": lambda tx: tx.get(b"a/" + bytes(479)),
    "get empty": lambda tx: tx.get(b""),
    "get other": lambda tx: tx.get(b"other/1"),
    "put other": lambda tx: tx.put(b"other/1", b""),
    "delete other": lambda tx: tx.delete(b"other/1"),
    "misplaced": lambda tx: tx.get(b"a/misplaced"),
    "scan str": lambda tx: tx.scan("a"),
    "scan -1": lambda tx: tx.scan(b"a", -1),
    "scan True": lambda tx: tx.scan(b"a", True),
}


class Doer(Machine):
    """Places keys by what stands before their "/"."""

    name: ClassVar[str] = "test.doer"
    command: ClassVar[Any] = Do
    children: ClassVar[list[int]] = []
    """Of this process, that `apply` forked."""

    def keys(self, command: Do) -> list[bytes]:
        return [command.a, command.b]

    def partition_key(self, key: bytes) -> Any:
        return "a" if key.endswith(b"misplaced") else key.partition(b"/")[0]

    def apply(self, tx: Tx, command: Do, context: Context) -> Any:
        how, _, what = command.what.partition(": ")
        tx.put(command.a, b"a trace")
        if how == "fork":
            self.children.append(os.fork())
        elif how == "answer":
            return RESULTS[what]()
        elif how == "touch":
            TOUCHES[what](tx)
        elif how == "pass over":
            try:
                TOUCHES[what](tx)
            except:  # noqa: E722
                pass
        elif how == "refuse":
            try:
                TOUCHES[what](tx)
            except Exception as error:
                raise Rejected("no") from error
        return None


NAMES: dict[str, Callable[[], Any]] = {
    "none": list,
    "None": lambda: None,
    "str": lambda: "ab",
    "bytes": lambda: b"ab",
    "strs": lambda: ["a"],
    "long": lambda: [b"a", bytes(481)],
    "empty": lambda: [b""],
    "raises": lambda: [1 // 0],
    "str partition": lambda: [b"str"],
    "None partition": lambda: [b"None"],
    "partition raises": lambda: [b"raises"],
    "generator": lambda: (key for key in (b"a", b"b")),
    "set": lambda: {b"a", b"b"},
}


class Namer(Machine):
    """Names what `what` says."""

    name: ClassVar[str] = "test.namer"
    command: ClassVar[Any] = Do

    def keys(self, command: Do) -> Any:
        return NAMES[command.what]()

    def partition_key(self, key: bytes) -> Any:
        return {b"str": "a", b"None": None}[key] if key in (b"str", b"None") else key[: 1 // (key != b"raises")]

    def apply(self, tx: Tx, command: Do, context: Context) -> Any:
        return sorted(key for key in (b"a", b"b") if tx.get(key) is None)


class WithArguments(Doer):
    def __init__(self, what: str) -> None:
        pass


class One(msgspec.Struct):
    key: bytes


class Two(msgspec.Struct):
    key: bytes


class Untagged(Doer):
    command: ClassVar[Any] = One | Two
