"""A command of a machine that runs in this process, in the thread of the engine, has to come to an end: a loop in it
would stop the host's. Where a worker would be killed, an exception is raised in the thread.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from shardengine.engine.commit.host import OvertimeError

_LOOKS = 8  # while a limit runs
_STEPS = 1_000_000  # more than it takes until what is raised comes


class Overtime:
    """Watches one thread at a time, from another one that is started when it is first needed.

    Time is counted in looks of the watching thread: what lies between two of them, as while the whole process was
    stopped, is not the command's. Invariant: nothing is raised in a thread that is not `_watched`.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._error = type("OvertimeError", (OvertimeError,), {"limit_ms": round(limit_s * 1000)})
        self._changing = threading.Lock()
        self._watching = threading.Event()
        self._closed = threading.Event()
        self._watched = False
        self._looks = 0
        self._raised = 0
        self._thread = 0
        self._watcher: threading.Thread | None = None

    @contextmanager
    def watched(self) -> Iterator[Callable[[], BaseException | None]]:
        """What runs inside may take the limit, and gets an OvertimeError then, as often as it passes over it. Where
        the interpreter does not come by, in a call that does not return, nothing helps; nor where no thread can be
        had. What is entered returns the error that was raised since it was asked last."""
        if self._watcher is None:
            watcher = threading.Thread(target=self._watch, name="shardengine overtime", daemon=True)
            with suppress(RuntimeError):
                watcher.start()
                self._watcher = watcher
        with self._changing:
            self._thread, self._watched, self._looks, self._raised = threading.get_ident(), True, 0, 0
        self._watching.set()
        try:
            yield self._interruption
        finally:
            while self._watched:
                try:  # here, and not in a function: it may be raised at the first step of any
                    self._end()
                except OvertimeError:
                    pass

    def _end(self) -> None:
        """Nobody is watched any more. What was raised and did not come yet comes here: to take it back would leave the
        thread with a mark that something is to come, at which Python 3.11 stands still as soon as it is profiled."""
        with self._changing:
            self._watched = False
            raised = self._looks > _LOOKS
        if raised:
            _raise_in(self._thread, self._error)
            for _ in range(_STEPS):
                pass

    def _interruption(self) -> BaseException | None:
        raised, self._raised = self._raised, 0
        return self._error() if raised else None

    def _watch(self) -> None:
        while self._watching.wait() and not self._closed.wait(self._limit_s / _LOOKS):
            with self._changing:
                self._looks += 1
                if not self._watched:
                    self._watching.clear()
                elif self._looks > _LOOKS:
                    self._raised += 1
                    _raise_in(self._thread, self._error)

    def close(self) -> None:
        """The thread ends, soon."""
        self._closed.set()
        self._watching.set()


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Have `error` raised in a thread at its next step, instead of what is to be raised there already."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
