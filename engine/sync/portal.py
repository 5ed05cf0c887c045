"""A thread with an event loop, for threads that have none. A user of `asyncio`.

anyio's `start_blocking_portal` does the same, and was tried (4.16): a forked child that ends with it hangs, and so does
an interpreter that ends before it was left.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

from shardengine.engine.errors import EngineStoppedError, StoreError, WrongThreadError, named, not_any_more
from shardengine.engine.run.tasks import start

log = logging.getLogger("shardengine")
_open: set[Portal] = set()


class _Interpreter:
    ends = False


class Portal:
    """A thread with a loop of its own, in which others have things done.

    Its thread is a daemon: the interpreter does not wait for it to end by itself. What it holds is let go of before
    that end, by `finish`.
    """

    def __init__(
        self, name: str, inside: AbstractContextManager[None], finish: Callable[[], Awaitable[None]], patience_s: float
    ) -> None:
        """Start it. `inside` is entered and left in its thread. `finish` is awaited there, for `patience_s`, when the
        interpreter ends and nobody has called `close`. StoreError: there is no thread, or no descriptor, for it."""
        import uvloop

        self._finish = finish
        self._patience_s = patience_s
        self._gate = threading.RLock()  # twice, if a signal's handler calls in the middle of a call
        self.closed = False
        self._calls: set[asyncio.Task[None]] = set()
        self._last = asyncio.Event()
        self._thread = threading.Thread(target=self._main, args=(inside,), name=name, daemon=True)
        try:
            self._loop = uvloop.new_event_loop()
        except OSError as error:
            raise named(error) from error
        try:
            start(self._thread)
        except StoreError:
            self._loop.close()
            raise
        _open.add(self)

    def _main(self, inside: AbstractContextManager[None]) -> None:
        with inside, asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._last.wait()
        while self._calls:
            await asyncio.wait(self._calls)

    def call(self, work: Callable[[], Any], patience_s: float | None = None) -> Any:
        """Have `work` done there, and what it gives awaited if it can be. Waits for its outcome, which is returned or
        raised.

        An exception that a signal's handler raises in the waiting thread ends the wait, and not the work. Raises
        TimeoutError after `patience_s`, where the same holds; EngineStoppedError when it is closed; WrongThreadError in
        its own thread.
        """
        self.check()
        done: Future[Any] = Future()
        with self._gate:
            if self.closed:
                raise not_any_more()
            self._loop.call_soon_threadsafe(self._begin, work, done)
        try:
            return done.result(patience_s)
        finally:
            del done  # which holds what it raises, whose traceback holds this frame

    def _begin(self, work: Callable[[], Any], done: Future[Any]) -> None:
        task = self._loop.create_task(_do(work, done))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def check(self) -> None:
        """Raises WrongThreadError in its own thread."""
        if threading.current_thread() is self._thread:
            raise WrongThreadError(
                "the call comes from the thread of the engine's own loop, and would wait for itself",
                hint="call from any other thread; reads may be made here, too",
            )

    def close(self) -> None:
        """End its thread, once all calls have their outcome. Closing twice does nothing."""
        with self._gate:
            if not self.closed:
                self.closed = True
                self._loop.call_soon_threadsafe(self._last.set)
        self._thread.join()
        _open.discard(self)

    def leave(self) -> None:
        """The interpreter ends. A daemon thread may be within `close`, which it does not get to the end of."""
        try:
            if not self.closed:
                self.call(self._finish, self._patience_s)
        except TimeoutError:
            log.error("%s: still at work as the interpreter ended", self._thread.name)
            return
        except Exception as error:
            if not (self.closed and isinstance(error, EngineStoppedError)):  # closed between the two
                log.error("%s: stopped unclean as the interpreter ended: %s", self._thread.name, error)
        self.close()


async def _do(work: Callable[[], Any], done: Future[Any]) -> None:
    try:
        outcome = work()
        done.set_result(await outcome if inspect.isawaitable(outcome) else outcome)
    except BaseException as error:
        done.set_exception(error)
    finally:
        del done


def end_daemon() -> None:
    """For who finds that all has stopped: where that is because the interpreter ends, a daemon thread ends here, as by
    `sys.exit`. Nobody is left to be told, and what it would raise would be printed."""
    if _Interpreter.ends and threading.current_thread().daemon:
        raise SystemExit


def _at_exit() -> None:
    """Behind all threads that are no daemons, as for engines that are left."""
    _Interpreter.ends = True
    for portal in list(_open):
        portal.leave()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_open.clear)
