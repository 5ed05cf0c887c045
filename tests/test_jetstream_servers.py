"""A log on JetStream whose servers are killed, paused, and set back to an old copy of what they had."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shardengine import LogRegressedError, LogReplacedError
from shardengine.engine.cluster.servers import Servers
from shardengine.engine.node.jetstream import guarding, link
from shardengine.node import JetStreamLog, Logged
from tests.conftest import halt
from tests.jetstream import frames_up_to, is_own, opened
from tests.killing import WATCHDOG_S
from tests.mishaps import leader_of
from tests.proxy import Proxy
from tests.test_jetstream_peers import member


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Servers]:
    """Three servers to be killed."""
    with Servers(tmp_path / "servers") as servers:
        yield servers


class Writing:
    """Appends one call after the other, for as long as the block lasts, and notes what it is told."""

    def __init__(self, log: JetStreamLog, who: bytes) -> None:
        self.who = who
        self.sent = list[bytes]()
        self.given = list[int]()
        self._log = log
        self._told = asyncio.Condition()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while True:
            frames = [b"%s %d %d" % (self.who, number, each) for each in range(1 + number % 3)]
            number += 1
            self.sent += frames
            self.given += await self._log.append(frames)
            async with self._told:
                self._told.notify_all()

    async def more(self, count: int) -> None:
        """Wait until so many more frames are acknowledged."""
        goal = len(self.given) + count
        async with asyncio.timeout(WATCHDOG_S), self._told:
            while len(self.given) < goal:
                await self._told.wait()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        assert self._task.cancelled()


async def check(log: JetStreamLog, writers: Sequence[Writing], seen: Sequence[Logged]) -> None:
    """All that was acknowledged is where it was said to be, what each sent is there in order, once, without a gap, and
    what a reader had seen is the beginning of it."""
    read = await frames_up_to(log, await log.last())
    where = {logged.position: logged.frame for logged in read}
    for writer in writers:
        assert [where[position] for position in writer.given] == writer.sent[: len(writer.given)]
        its = [logged.frame for logged in read if logged.frame.split()[0] == writer.who]
        assert its == writer.sent[: len(its)] and len(its) >= len(writer.given)
    assert list(seen) == read[: len(seen)]


async def follow(log: JetStreamLog, seen: list[Logged]) -> None:
    async for logged in log.read(0):
        if not is_own(logged):
            seen.append(logged)


async def test_nothing_that_was_acknowledged_is_lost_when_the_leader_and_then_all_servers_are_killed(
    own: Servers,
) -> None:
    async with opened(own.urls, "orders") as one, opened(own.urls, "orders") as other:
        writers = [Writing(one, b"one"), Writing(other, b"other")]
        seen = list[Logged]()
        reading = asyncio.create_task(follow(other, seen))
        await writers[0].more(50)
        leader = await leader_of(own, "orders")
        leader.kill()
        for writer in writers:
            await writer.more(50)
        leader.start()
        await writers[0].more(50)
        own.kill()
        own.start()
        for writer in writers:
            await writer.more(50)
            await writer.end()
        reading.cancel()
        await asyncio.wait([reading])
    async with opened(own.urls, "orders") as again:
        await check(again, writers, seen)
        assert len(seen) > 200


async def test_a_leader_that_was_paused_does_not_say_that_the_log_ends_where_it_ended(
    own: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PONG_S", WATCHDOG_S)  # a connection outlives the pause
    monkeypatch.setattr(link, "PING_S", WATCHDOG_S)
    async with opened(own.urls, "orders") as log:
        await log.append([b"one"])
    leader = await leader_of(own, "orders")
    others = [server.url for server in own.all if server is not leader]
    async with opened(others, "orders") as other, opened(leader.url, "orders") as log:
        (position,) = await log.append([b"two"])
        assert leader.pid is not None
        halt(leader.pid)
        stuck = asyncio.create_task(log.append([b"stuck"]))
        (later,) = await asyncio.wait_for(other.append([b"three"]), WATCHDOG_S)
        asked = asyncio.create_task(log.last())
        leader.resume()
        assert await asyncio.wait_for(asked, WATCHDOG_S) > later
        assert (await asyncio.wait_for(stuck, WATCHDOG_S))[0] > position
        frames = [logged.frame for logged in await frames_up_to(log, await log.last())]
        assert frames in ([b"one", b"two", b"three", b"stuck"], [b"one", b"two", b"stuck", b"three"])


async def test_servers_that_are_set_back_are_told_from_servers_that_lag(
    own: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "BELIEVE_S", 1.0)
    monkeypatch.setattr(guarding, "LOOK_S", 0.2)
    async with (
        Proxy(own.all[0].port) as proxy,
        opened(own.urls, "orders") as log,
        opened(proxy.url, "orders") as cut_off,
        opened(own.urls, "orders") as idle,
    ):
        await log.append([b"kept"] * 10)
        own.kill()
        for server in own.all:
            shutil.copytree(server.directory / "store", server.directory / "old")
        own.start()
        given = await log.append([b"lost"] * 10)
        assert len(await frames_up_to(cut_off, given[-1])) == 20
        proxy.shut = True
        proxy.cut()
        own.kill()
        for server in own.all:
            shutil.rmtree(server.directory / "store")
            (server.directory / "old").rename(server.directory / "store")
        own.start()
        with pytest.raises(LogRegressedError) as regressed:
            await asyncio.wait_for(log.append([b"more"]), WATCHDOG_S)
        assert regressed.value.last < given[-1] == regressed.value.seen
        assert len(await frames_up_to(idle, 10)) == 7, "who has seen nothing of it goes on"
        await idle.append([b"other"] * 30)
        proxy.shut = False
        with pytest.raises(LogReplacedError) as replaced:
            await asyncio.wait_for(cut_off.last(), WATCHDOG_S)
        assert replaced.value.position == given[-1]


async def test_a_right_that_a_node_lacks_is_told_once_though_it_can_go_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers = Servers(tmp_path / "servers")
    rights = '{publish: ">", subscribe: {deny: "_shardengine.orders.ask.>"}}'
    for server in servers.all:
        with server.config.open("a") as file:
            file.write(f"authorization {{users: [{{user: me, password: x, permissions: {rights}}}]}}\n")
    with servers:
        async with opened(servers.urls, "orders", connect={"user": "me", "password": "x"}) as log:
            for beat in range(2):
                await log.meet(member(1, beat))
                await log.last()
    said = [text for text in caplog.messages if "permissions violation" in text]
    assert len(said) == 1 and f"_shardengine.orders.ask.{member(1).node}" in said[0]
