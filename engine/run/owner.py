"""The thread, and the process, that an engine belongs to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from shardengine.engine.errors import ForkedError, WrongThreadError

_NOBODY = -1


class Owner:
    """`thread` is the one that made it, or has settled last, and the only one that may use the engine; no thread of a
    forked child is."""

    def __init__(self) -> None:
        self.forked = False
        self.settle()

    def settle(self) -> None:
        """This thread is the owner from now on. For who sees to it that no other one is in the engine, or will be."""
        self._thread = threading.current_thread()
        self.thread = threading.get_ident()

    def depart(self) -> None:
        """No thread is the owner, until one does `settle`."""
        self.thread = _NOBODY

    @contextmanager
    def here(self) -> Iterator[None]:
        """This thread is the owner inside the block. As `settle`."""
        self.settle()
        try:
            yield
        finally:
            self.depart()

    @property
    def name(self) -> str:
        """Of its thread."""
        return self._thread.name

    def check(self) -> None:
        """Raises WrongThreadError in any other thread, ForkedError in a forked child."""
        if threading.get_ident() == self.thread:
            return
        if self.forked:
            raise ForkedError(
                "the engine was made before a fork, in the parent process",
                hint="make one per process, after the fork: in gunicorn's post_fork, or at first use in each worker",
            )
        raise WrongThreadError(
            "the engine belongs to the thread that made it", hint="hand the call over with loop.call_soon_threadsafe"
        )

    def take_over(self) -> bool:
        """The interpreter ends: this thread is the owner from now on, if that one has ended. False: it lives."""
        if threading.get_ident() != self.thread and self._thread.is_alive():
            return False
        self.settle()
        return True

    def leave_to_the_parent(self) -> None:
        """This is a forked child: nothing here is ours."""
        self.forked = True
        self.thread = _NOBODY
