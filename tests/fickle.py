"""Machines that change their minds about an entry: between two calls, or two clocks."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import msgspec

from shardengine import Put
from shardengine.shards.types import Limits
from tests.unruly import Kept


class KeysFail(Kept):
    """Its `keys` fails from a call on, of whatever machine of its class."""

    calls_left: ClassVar[int] = 0

    def keys(self, command: Any) -> Any:
        KeysFail.calls_left -= 1
        if KeysFail.calls_left < 0:
            raise LookupError("no keys any more")
        return (command.key,)


class PartitionsFail(KeysFail):
    """So does its `partition_key`."""

    def keys(self, command: Any) -> Any:
        return (command.key,)

    def partition_key(self, key: bytes) -> bytes:
        KeysFail.keys(self, Put(key, b""))
        return key


class Brittle(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A command that cannot be made from a call on."""

    key: bytes

    def __post_init__(self) -> None:
        KeysFail.keys(DecodingFails(), self)


class DecodingFails(KeysFail):
    """Its commands fail as they are decoded."""

    command: ClassVar[Any] = Brittle

    def keys(self, command: Any) -> Any:
        return (command.key,)


class ChecksByTheClock(Kept):
    """Its `check` asks a clock that seems to stand: one of two that are years apart says no."""

    def check(self, command: Any, limits: Limits) -> str | None:
        return "too late" if time.time() // 100_000_000 % 2 else None


class ChecksOnce(Kept):
    """Its `check` lets through what it has seen before."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def check(self, command: Any, limits: Limits) -> str | None:
        new = command.key not in self._seen
        self._seen.add(command.key)
        return "never seen" if new else None
