"""Another time, in a process of its own: what `time` and `datetime` tell there is years ahead.

A clock that is read otherwise goes on as it does: by an extension in C, from a file's times, by another program.
"""

from __future__ import annotations

import datetime
import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

AHEAD_S = 100_000_000
"""By how much: three years and some."""
_CLOCKS = ("time", "monotonic", "perf_counter", "process_time", "thread_time")


def move_clocks() -> None:
    """From now on all clocks of this process are ahead, for every caller who looks them up; for one that holds a
    function of `time` already, that one is not. The classes of `datetime` stay the ones they are."""
    for name, second in [*((name, 1) for name in _CLOCKS), *((f"{name}_ns", 10**9) for name in _CLOCKS)]:
        _move(name, AHEAD_S * second)
    for name, second in (("clock_gettime", 1), ("clock_gettime_ns", 10**9)):
        _move(name, AHEAD_S * second)
    for name in ("gmtime", "localtime", "ctime"):
        _at_now(name, 0, time.time)
    _at_now("asctime", 0, time.localtime)
    _at_now("strftime", 1, time.localtime)
    _move_datetime()


def _move(name: str, ahead: int) -> None:
    clock: Callable[..., Any] = getattr(time, name)
    setattr(time, name, lambda *which: clock(*which) + ahead)


def _at_now(name: str, place: int, now: Callable[[], Any]) -> None:
    """A function of `time` that is given, at that place, a moment, or none, which means now."""
    told: Callable[..., Any] = getattr(time, name)

    def tell(*given: Any) -> Any:
        return told(*given) if given[place : place + 1] not in ((), (None,)) else told(*given[:place], now())

    setattr(time, name, tell)


def _now(kind: type[datetime.datetime], tz: datetime.tzinfo | None = None) -> datetime.datetime:
    return kind.fromtimestamp(time.time(), tz)


def _utcnow(kind: type[datetime.datetime]) -> datetime.datetime:
    return kind.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)


_kept: list[dict[str, Any]] = []  # what was replaced: the interpreter may remember it without holding it


def _move_datetime() -> None:
    """`now` and `utcnow` are all that look at a clock of their own; `today` asks `time.time`.

    They are replaced in the class itself, which takes no attributes, hence in its dict. A subclass in its place would
    not be what decoders know, nor what makes new moments of old ones.
    """
    if sys.implementation.name != "cpython":
        return  # there it is written in Python, and asks `time.time`
    (own,) = gc.get_referents(vars(datetime.datetime))
    _kept.append(dict(own))
    own |= {"now": classmethod(_now), "utcnow": classmethod(_utcnow)}
    with suppress(ImportError):
        import ctypes

        ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))  # forget what was looked up before
