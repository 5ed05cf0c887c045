"""A command of a machine that runs in this process, in the thread of the engine, has to come to an end: a loop in it
would stop the host's. Where a worker would be killed, an exception is raised in the thread.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shardengine.engine.commit.host import OvertimeError

_LOOKS = 8  # at the time, while a limit runs
_RAISED_MAX = 5  # times, should `apply` pass over it
_STEPS = 1_000_000  # more than it takes until what is raised comes


class Overtime:
    """Watches one thread at a time, from another one that is started when it is first needed.

    Invariant: `_since` is set while somebody is watched; nothing is raised in a thread that is not.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._error = type("OvertimeError", (OvertimeError,), {"limit_ms": round(limit_s * 1000)})
        self._changing = threading.Lock()
        self._watching = threading.Event()
        self._closed = threading.Event()
        self._since: float | None = None
        self._raised = 0
        self._thread = 0
        self._watcher: threading.Thread | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What runs inside may take the limit, and gets an OvertimeError then, as often as it passes over it. Where
        the interpreter does not come by, in a call that does not return, nothing helps."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="shardengine overtime", daemon=True)
            self._watcher.start()
        with self._changing:
            self._thread, self._since, self._raised = threading.get_ident(), time.monotonic(), 0
        self._watching.set()
        try:
            yield
        finally:
            while self._since is not None:
                try:  # here, and not in a function: it may be raised at the first step of any
                    self._end()
                except OvertimeError:
                    pass

    def _end(self) -> None:
        """Nobody is watched any more. What was raised and did not come yet comes here: to take it back would leave the
        thread with a mark that something is to come, at which Python 3.11 stands still as soon as it is profiled."""
        with self._changing:
            self._since = None
        if self._raised:
            _raise_in(self._thread, self._error)
            for _ in range(_STEPS):
                pass

    def _watch(self) -> None:
        while self._watching.wait() and not self._closed.wait(self._limit_s / _LOOKS):
            with self._changing:
                if self._since is None:
                    self._watching.clear()
                elif time.monotonic() - self._since > self._limit_s and self._raised < _RAISED_MAX:
                    self._raised += 1
                    _raise_in(self._thread, self._error)

    def close(self) -> None:
        """The thread ends, soon."""
        self._closed.set()
        self._watching.set()


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Have `error` raised in a thread at its next step, instead of what is to be raised there already."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
