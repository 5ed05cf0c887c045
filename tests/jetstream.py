"""What tests of logs on JetStream share: a log on a stream of its own, the stream by itself, and what is in it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from shardengine import FrameDamagedError, LogUnreachableError
from shardengine.engine.node.frames import decode_frame
from shardengine.engine.node.jetstream.connection import Connection
from shardengine.engine.node.jetstream.settings import config_of
from shardengine.engine.node.jetstream.stream import Stream
from shardengine.node import JetStreamLog, Logged


def is_own(logged: Logged) -> bool:
    """Whether the log itself made this frame, which has no entries then: no test appends such a one."""
    try:
        return decode_frame(logged.frame, logged.position).datas == []
    except FrameDamagedError:
        return False


def new_name() -> str:
    return f"t{os.urandom(6).hex()}"


@asynccontextmanager
async def opened(servers: str | Sequence[str], name: str, **more: Any) -> AsyncIterator[JetStreamLog]:
    log = JetStreamLog(servers, name, **more)
    await log.open()
    try:
        yield log
    finally:
        await log.aclose()


@asynccontextmanager
async def stream_of(servers: Sequence[str], name: str) -> AsyncIterator[Stream]:
    """The stream of a log, asked for beside it."""
    connection = Connection(servers, {})
    arrived = asyncio.Event()
    connection.start(arrived.set)
    try:
        await arrived.wait()
        yield Stream(name, connection)
    finally:
        await connection.close()


async def make(stream: Stream, config: dict[str, Any]) -> None:
    """Make a stream, as soon as the servers are ready for that."""
    while True:
        try:
            return await stream.make(config)
        except LogUnreachableError:
            await asyncio.sleep(0.05)


def config(name: str, replicas: int = 1, **more: Any) -> dict[str, Any]:
    return {**config_of(name, replicas, "word"), **more}


async def frames_up_to(log: JetStreamLog, last: int, after: int = 0) -> list[Logged]:
    """What was appended, up to position `last`; each position comes once, and in order."""
    found = list[Logged]()
    async for logged in log.read(after):
        assert logged.position == (found[-1].position if found else after) + 1
        found.append(logged)
        if logged.position >= last:
            return [logged for logged in found if not is_own(logged)]
    raise AssertionError
