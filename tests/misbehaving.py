"""Machines that misbehave in a worker, as the key of a command says. Workers import them from here.

`MISBEHAVING` in the environment names a directory: whether a file lies there decides whether a fault strikes.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

from shardengine import Context, KeyValue, Rejected, Tx
from shardengine.shards.errors import StoreError, StoreFullError
from shardengine.shards.store import Store
from shardengine.shards.worker import Process

ENVIRONMENT = "MISBEHAVING"


def present(name: str) -> bool:
    return (Path(os.environ[ENVIRONMENT]) / name).exists()


def taken(name: str) -> bool:
    """True once for each time a file of that name was put there."""
    try:
        (Path(os.environ[ENVIRONMENT]) / name).unlink()
    except FileNotFoundError:
        return False
    return True


def waits_for(name: str) -> None:
    """Wait until the FIFO of that name, if it is there, is opened at its other end, and let go."""
    if present(name):
        gate = os.open(Path(os.environ[ENVIRONMENT]) / name, os.O_RDONLY)
        select.select([gate], [], [])
        os.close(gate)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even this")


class Unspeakable(Rejected):
    def __init__(self) -> None:
        Exception.__init__(self)

    @property
    def reason(self) -> str:  # type: ignore[override]
        raise KeyError("no reason")


class Wild(KeyValue):
    """The built-in machine, but for some keys."""

    name: ClassVar[str] = "test.wild"

    def apply(self, tx: Tx, command: Any, context: Context) -> Any:
        act = getattr(self, command.key.decode(), None)
        tx.put(command.key, command.value)
        return act() if act is not None else None

    def exits(self) -> None:
        sys.exit(3)

    def interrupts(self) -> None:
        raise KeyboardInterrupt

    def raises_what_cannot_be_printed(self) -> None:
        raise Unprintable

    def rejects_without_a_reason(self) -> None:
        raise Unspeakable

    def recurses(self) -> None:
        self.recurses()

    def answers_with_itself(self) -> Any:
        answer: list[Any] = []
        answer.append(answer)
        return answer

    def forks(self) -> None:
        """The child comes back from here, too."""
        os.fork()

    def forks_and_fails(self) -> None:
        if os.fork() == 0:
            raise ValueError("the child fails")

    def leaves_a_child(self) -> None:
        """The child lives until the directory is gone, and lets it be known."""
        if os.fork() == 0:
            (Path(os.environ[ENVIRONMENT]) / "child").write_text(str(os.getpid()))
            while True:
                signal.pause()

    def hangs(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def talks(self) -> None:
        sys.stdout.write("a line\nand another\n" + "x" * 3_000_000 + "\n")


class Breaking(KeyValue):
    """The built-in machine in a worker whose commits fail while a file says so: `before` LMDB does it, `after`, or for
    want of room (`full`); and whose sync, or LMDB's in a commit, waits while the FIFO `sync` or `slow` is there."""

    name: ClassVar[str] = "test.breaking"

    def __init__(self) -> None:
        if not Process.is_worker:
            return
        commit, sync = Store.commit, Store.sync

        def fails(store: Store, *arguments: Any) -> None:
            if present("full"):
                store.abort()
                raise StoreFullError("told to be full")
            if taken("before"):
                store.abort()
                raise StoreError("told to fail before")
            waits_for("slow")
            commit(store, *arguments)
            if taken("after"):
                raise StoreError("told to fail after")

        def waits(store: Store) -> None:
            waits_for("sync")
            sync(store)

        Store.commit, Store.sync = fails, waits  # type: ignore[method-assign, assignment]
