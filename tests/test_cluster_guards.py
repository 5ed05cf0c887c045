"""Nodes on real servers whose log, or whose directory, is not what it was: each says so by name, or goes on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from shardengine import (
    EngineError,
    LogFullError,
    LogRegressedError,
    LogReplacedError,
    LogTruncatedError,
    NameTakenError,
    Put,
)
from shardengine.engine.cluster.servers import Servers
from shardengine.engine.node.jetstream import guarding
from shardengine.node import JetStreamLog
from tests.company import Company, Station, Wire, company, impatient
from tests.jetstream import config, frames_up_to, make, new_name, opened, stream_of
from tests.killing import WATCHDOG_S
from tests.mishaps import cut_off, killed, paused
from tests.proxy import Proxy
from tests.sharers import like


@pytest.fixture(autouse=True)
def impatiently(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)


@pytest.fixture
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What servers say is believed soon."""
    monkeypatch.setattr(guarding, "BELIEVE_S", 1.0)
    monkeypatch.setattr(guarding, "LOOK_S", 0.2)


async def read_for_ever(station: Station) -> None:
    while True:
        await station.node.barrier()


async def fill_for_ever(station: Station) -> None:
    while True:
        await station.seen.propose(Put(b"large", bytes(8 << 10)))


async def end_of(station: Station) -> EngineError:
    """What a node that runs fails with, and whoever uses it is told of."""
    async with asyncio.timeout(WATCHDOG_S):
        with pytest.raises(EngineError):
            await read_for_ever(station)
        await station.told()
    failure: EngineError = station.node.failure
    return failure


async def refuses_to_start(station: Station) -> EngineError:
    await station.stop()
    with pytest.raises(EngineError) as refused:
        await station.start()
    return refused.value


# ---- another log -----------------------------------------------------------------------------------------------------


async def test_a_stream_that_is_deleted_and_made_anew_is_refused_by_all_that_knew_it(
    servers: Servers, tmp_path: Path, believing: None
) -> None:
    name = new_name()
    async with company(tmp_path, servers, name) as all, stream_of(servers.urls, name) as stream:
        await all.more()
        await all.judged()
        all.go_on()
        await all.more()
        await stream._api(f"STREAM.DELETE.{name}")
        for station in all.stations:
            assert type(await end_of(station)) is LogReplacedError
        for station in all.stations:
            assert type(await refuses_to_start(station)) is LogReplacedError
        async with Wire(servers) as wire:
            new = Station(all, "new", wire)
            await new.start()
            assert (await new.node.propose(Put(b"k", b"v"))).succeeded
            await new.stop()


@asynccontextmanager
async def set_back(servers: Servers) -> AsyncIterator[None]:
    """When the block ends, the servers have what they had when it began: they stand still while that is copied, and
    are killed."""
    async with AsyncExitStack() as stack:
        for server in servers.all:
            await stack.enter_async_context(paused(server))
        for server in servers.all:
            shutil.copytree(server.directory / "store", server.directory / "old")
    yield
    async with killed(*servers.all):
        for server in servers.all:
            shutil.rmtree(server.directory / "store")
            (server.directory / "old").rename(server.directory / "store")


async def test_servers_that_are_set_back_to_an_old_copy_are_told_from_servers_that_lag_by_all_that_had_seen_more(
    tmp_path: Path, believing: None
) -> None:
    with Servers(tmp_path / "servers") as own:
        async with company(tmp_path, own, "orders") as all, set_back_logs(own) as logs:
            await all.more()
            async with set_back(own):
                await asyncio.gather(all.more(), logs.lost())
                await all.judged()
                all.go_on()
            await logs.judged()
            for failure in await asyncio.gather(*map(end_of, all.stations)):
                assert type(failure) in (LogRegressedError, LogReplacedError)
            for refusal in await asyncio.gather(*map(refuses_to_start, all.stations)):
                assert type(refusal) in (LogRegressedError, LogReplacedError)


class Logs:
    """Three ends of one log: `log` appends what is lost; `cut_off` has read it, and hears of nothing more before
    others have gone on; `idle` has seen nothing of it, and is who goes on."""

    def __init__(self, log: JetStreamLog, cut_off: JetStreamLog, idle: JetStreamLog, proxy: Proxy) -> None:
        self._log = log
        self._cut_off = cut_off
        self._idle = idle
        self._proxy = proxy
        self._last = 0

    async def lost(self) -> None:
        self._last = (await self._log.append([b"lost"] * 10))[-1]
        assert len(await frames_up_to(self._cut_off, self._last)) == 20
        self._proxy.shut = True
        self._proxy.cut()

    async def judged(self) -> None:
        with pytest.raises(LogRegressedError) as regressed:
            await asyncio.wait_for(self._log.append([b"more"]), WATCHDOG_S)
        assert regressed.value.last < self._last == regressed.value.seen
        assert len(await frames_up_to(self._idle, 10)) == 7, "who has seen nothing of it goes on"
        await self._idle.append([b"other"] * 30)
        self._proxy.shut = False
        with pytest.raises(LogReplacedError) as replaced:
            await asyncio.wait_for(self._cut_off.last(), WATCHDOG_S)
        assert replaced.value.position == self._last


@asynccontextmanager
async def set_back_logs(servers: Servers) -> AsyncIterator[Logs]:
    async with (
        Proxy(servers.all[0].port) as proxy,
        opened(servers.urls, "frames") as log,
        opened(proxy.url, "frames") as cut_off,
        opened(servers.urls, "frames") as idle,
    ):
        await log.append([b"kept"] * 10)
        yield Logs(log, cut_off, idle, proxy)


# ---- a log that was cut, or is full ----------------------------------------------------------------------------------


async def purge(all: Company, position: int) -> None:
    """As somebody else does it, whom the nodes' promises do not hold."""
    await all.entries()
    async with stream_of(all.servers.urls, all.stream) as stream:
        await stream.purge(position)


async def test_a_node_whose_next_frames_were_purged_goes_on_from_a_snapshot_or_says_that_there_is_none(
    servers: Servers, tmp_path: Path
) -> None:
    async with company(tmp_path, servers, new_name(), scribe=True) as all:
        await all.more()
        giver, _, sleeper = all.stations
        await sleeper.stop()
        await all.more()
        await purge(all, (await giver.node.snapshot()).last_included.term + 1)
        await sleeper.start()
        await all.more()
        async with cut_off(sleeper):
            await all.more(5, but=[sleeper])
            await purge(all, (await giver.node.snapshot()).last_included.term + 1)
        await all.more()
        await sleeper.stop()
        await all.more()
        await purge(all, min(node.last_applied().term for node in all.nodes))
        patient, all.policy = all.policy, like(all.policy, bootstrap_timeout_ms=200)
        with pytest.raises(LogTruncatedError):
            await sleeper.start()
        all.policy = patient
        await giver.node.snapshot()
        await sleeper.start()
        await all.more()
        await all.judged()


async def test_a_full_log_refuses_what_is_proposed_and_takes_it_again_once_it_is_cut(
    servers: Servers, tmp_path: Path
) -> None:
    name = new_name()
    async with stream_of(servers.urls, name) as stream:
        await make(stream, config(name, 3, max_bytes=256 << 10))
    async with company(tmp_path, servers, name, scribe=True) as all:
        await all.more()
        with pytest.raises(LogFullError):
            await fill_for_ever(all.stations[0])
        await all.refusals(LogFullError, 10)
        assert all.refused.keys() == {LogFullError}
        assert all.scribe is not None
        for node in all.nodes:
            await all.scribe.up_to(node.last_applied().term)
            await node.snapshot()
            await node.compact(0)
        await all.more()
        await all.judged()


# ---- two nodes of one name -------------------------------------------------------------------------------------------


async def test_of_a_directory_and_its_copy_only_the_one_that_ran_before_goes_on(
    servers: Servers, tmp_path: Path
) -> None:
    async with company(tmp_path, servers, new_name(), nodes=2) as all, Wire(servers) as wire:
        await all.more()
        original, _ = all.stations
        await original.stop()
        shutil.copytree(original.path, tmp_path / "copy")
        await original.start()
        copy = Station(all, "copy", wire)
        await copy.start()
        assert type(await end_of(copy)) is NameTakenError
        await copy.stop()
        await all.more()
        await all.judged()
