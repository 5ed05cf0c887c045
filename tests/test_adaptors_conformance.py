"""The suite for people's own state machines, on those of ours that outlive their process."""

from __future__ import annotations

from pathlib import Path

from shardengine import encode
from shardengine.adaptors import FileStateMachine, RocksDBStateMachine, SQLiteStateMachine
from shardengine.conformance import StateMachineSuite
from tests.moving import Explode, Moving, Relocate


class OverAll(StateMachineSuite):
    """Of a machine that takes the commands of `Moving`."""

    supports = StateMachineSuite.supports | {"spanning"}
    kills = 3

    def move(self, source: bytes, target: bytes) -> bytes:
        return encode(Relocate(source, target))

    def failing(self) -> bytes:
        return encode(Explode(b"key"))


class TestFile(OverAll):
    def build(self, directory: Path) -> FileStateMachine:
        return FileStateMachine(directory, Moving, checkpoint_bytes=4_000)


class TestRocksDB(OverAll):
    def build(self, directory: Path) -> RocksDBStateMachine:
        return RocksDBStateMachine(directory, Moving)


class TestSQLite(OverAll):
    def build(self, directory: Path) -> SQLiteStateMachine:
        return SQLiteStateMachine(directory, Moving)
