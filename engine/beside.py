"""The same work on many things, on this thread and on a few more, as far as the system gives any."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Thread
from typing import TypeVar

_THREADS = 4
T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """What `work` makes of each, in their order. Blocks.

    Once one has failed none is begun any more; its error is raised when those that were have ended.
    """
    left = deque(enumerate(things))
    made: dict[int, R] = {}
    errors: list[BaseException] = []

    def labour() -> None:
        while left and not errors:
            with suppress(IndexError):  # another took the last one
                at, thing = left.popleft()
                try:
                    made[at] = work(thing)
                except BaseException as error:
                    errors.append(error)

    helpers = [Thread(target=labour) for _ in range(min(_THREADS, len(left)) - 1)]
    with suppress(RuntimeError):  # no thread can be had: then it takes longer
        for helper in helpers:
            helper.start()
    labour()
    for helper in helpers:
        if helper.ident is not None:
            helper.join()
    if errors:
        raise errors[0]
    return [made[at] for at in sorted(made)]
