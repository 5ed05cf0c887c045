"""What an engine does beside its loop: in threads, what blocks; in tasks, what nobody awaits. A user of `asyncio`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from shardengine.engine.errors import StoreError, WorkerFailedError

T = TypeVar("T")


class Tasks:
    """The threads and tasks of one engine."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[None]] = set()
        self._working: set[Future[Any]] = set()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do `work`, which blocks, beside the loop. Cancelled, it is waited for all the same. StoreError: there is no
        thread for it."""
        done: Future[T] = Future()

        def worked() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        start(threading.Thread(target=worked))
        self._working.add(done)
        task = asyncio.wrap_future(done)
        task.add_done_callback(lambda _: self._working.discard(done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await _ended(task)
            raise

    def await_threads(self, timeout_ms: int) -> WorkerFailedError | None:
        """Block until no thread works for this engine any more: what it writes lies in a directory we have locked.
        Returns what to raise when one still does after `timeout_ms`, the engine's `stop_timeout_ms`."""
        if not futures.wait(self._working, timeout_ms / 1000).not_done:
            return None
        return WorkerFailedError(
            f"a thread was still at work on the directory after {timeout_ms} ms",
            hint="the directory stays locked until that thread has ended and close_storage() is called; or raise "
            "stop_timeout_ms",
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have the loop do `work` beside everything else."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def start(thread: threading.Thread) -> None:
    """Raises StoreError when the system has no thread for it."""
    try:
        thread.start()
    except RuntimeError as error:
        raise StoreError(f"no thread can be had: {error}", hint="raise the limit of processes (ulimit -u)") from error


async def one_turn() -> None:
    """Let the loop do something else."""
    await asyncio.sleep(0)


async def called_back(start: Callable[[Callable[[T], None]], None], cancel: Callable[[], None]) -> T:
    """Start something that calls back with its outcome, and wait for that. Cancelled, it is told so by `cancel` and
    waited for all the same: it has cleaned up when this returns."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def ended(outcome: T) -> None:
        if not future.done() and not future.get_loop().is_closed():
            future.set_result(outcome)

    start(ended)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancel()
        await _ended(future)
        raise


async def _ended(future: asyncio.Future[Any]) -> None:
    """Wait until `future` is done, however often that is cancelled."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
