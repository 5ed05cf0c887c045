"""What may happen to servers, nodes, and what lies between: each lasts as long as its block."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from shardengine import LogUnreachableError
from shardengine.engine.cluster.servers import Server, Servers
from shardengine.engine.node.jetstream.stream import RefusedError
from tests.company import Station
from tests.conftest import halt
from tests.jetstream import stream_of
from tests.killing import WATCHDOG_S


async def leader_of(servers: Servers, name: str) -> Server:
    """The server that leads the stream, as soon as there is one."""
    async with asyncio.timeout(WATCHDOG_S), stream_of(servers.urls, name) as stream:
        while True:
            try:
                found = json.loads(await stream._api(f"STREAM.INFO.{name}"))["cluster"].get("leader")
            except LogUnreachableError:
                found = None
            for server in servers.all:
                if server.name == found:
                    return server
            await asyncio.sleep(0.05)


async def lead(servers: Servers, name: str, server: Server) -> None:
    """Have the server lead the stream."""
    wish = {"placement": {"preferred": server.name}}
    async with asyncio.timeout(WATCHDOG_S), stream_of(servers.urls, name) as stream:
        while await leader_of(servers, name) is not server:
            with suppress(LogUnreachableError, RefusedError):
                await stream._api(f"STREAM.LEADER.STEPDOWN.{name}", wish)


@asynccontextmanager
async def killed(*servers: Server) -> AsyncIterator[None]:
    for server in servers:
        server.kill()
    try:
        yield
    finally:
        for server in servers:
            server.start()


@asynccontextmanager
async def paused(server: Server) -> AsyncIterator[None]:
    assert server.pid is not None
    halt(server.pid)
    try:
        yield
    finally:
        server.resume()


@asynccontextmanager
async def cut_off(station: Station) -> AsyncIterator[None]:
    station.wire.leave(())
    try:
        yield
    finally:
        station.wire.mend()


@asynccontextmanager
async def held_back(station: Station) -> AsyncIterator[None]:
    """What the node says over the connections that there are gets stuck, and arrives at the end."""
    for proxy in station.wire.proxies:
        proxy.hold()
    try:
        yield
    finally:
        station.wire.mend()


@asynccontextmanager
async def unanswered(station: Station) -> AsyncIterator[None]:
    """What the node says arrives, and what it is answered is lost, over the connections that there are."""
    for proxy in station.wire.proxies:
        proxy.mute()
    yield


@asynccontextmanager
async def stopped(station: Station) -> AsyncIterator[None]:
    await station.stop()
    try:
        yield
    finally:
        await station.start()


@asynccontextmanager
async def parted(servers: Servers, leader: Server, alone: Station, *others: Station) -> AsyncIterator[None]:
    """One node reaches only the leader, and the others all servers but that one."""
    number = servers.all.index(leader)
    alone.wire.leave([number])
    for other in others:
        other.wire.leave([one for one in range(len(servers.all)) if one != number])
    try:
        yield
    finally:
        for station in (alone, *others):
            station.wire.mend()
