"""Machines that work with dates: one that asks every clock there is, and a sound one."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from shardengine import Context
from tests.unruly import Kept

READINGS: dict[bytes, Callable[[], object]] = {
    b"time": lambda: time.time() // 1_000_000,
    b"time_ns": lambda: time.time_ns() // 10**15,
    b"clock_gettime": lambda: time.clock_gettime(time.CLOCK_REALTIME) // 1_000_000,
    b"clock_gettime_ns": lambda: time.clock_gettime_ns(time.CLOCK_REALTIME) // 10**15,
    b"monotonic": lambda: time.monotonic() // 1_000_000,
    b"monotonic_ns": lambda: time.monotonic_ns() // 10**15,
    b"perf_counter": lambda: time.perf_counter() // 1_000_000,
    b"process_time": lambda: time.process_time() // 1_000_000,
    b"gmtime": lambda: time.gmtime().tm_year,
    b"localtime": lambda: time.localtime(None).tm_year,
    b"ctime": lambda: time.ctime()[-4:],
    b"asctime": lambda: time.asctime()[-4:],
    b"strftime": lambda: time.strftime("%Y"),
    b"now": lambda: datetime.datetime.now().year,
    b"now_utc": lambda: datetime.datetime.now(datetime.UTC).year,
    b"now_tz": lambda: datetime.datetime.now(tz=datetime.UTC).year,
    b"utcnow": lambda: datetime.datetime.utcnow().year,
    b"today": lambda: datetime.datetime.today().year,
    b"date": lambda: datetime.date.today().year,
    b"subclass": lambda: Moment.now().year,
}


class Moment(datetime.datetime):
    """A date of one's own."""


class Watches(Kept):
    """Reads the clock that its command names, so seldom that it seems to stand."""

    def value(self, command: Any, context: Context) -> bytes:
        return str(READINGS[command.key]()).encode()


class Due(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A command with a moment in it."""

    key: bytes
    at: datetime.datetime


class Dues(Kept):
    """Sound: it works with moments that its commands bring along."""

    command: ClassVar[Any] = Due

    def keys(self, command: Any) -> Any:
        return (command.key,)

    def value(self, command: Any, context: Context) -> bytes:
        later = command.at + datetime.timedelta(days=1)
        assert isinstance(later, datetime.datetime) and type(later) is type(command.at)
        return f"{later.isoformat()} {time.strftime('%Y', time.gmtime(0))} {time.asctime(time.gmtime(86_400))}".encode()
