"""A log on JetStream whose servers are paused, or give a node few rights.

What comes of servers that are killed is in tests/test_cluster_faults.py, of such that are set back in
tests/test_cluster_guards.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardengine.engine.cluster.servers import Servers
from shardengine.engine.node.jetstream import link, stream
from tests.conftest import halt
from tests.jetstream import frames_up_to, opened
from tests.killing import WATCHDOG_S
from tests.mishaps import leader_of
from tests.test_jetstream_peers import member


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Servers]:
    """Three servers to be killed."""
    with Servers(tmp_path / "servers") as servers:
        yield servers


async def test_a_leader_that_was_paused_does_not_say_that_the_log_ends_where_it_ended(
    own: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PONG_S", WATCHDOG_S)  # a connection outlives the pause
    monkeypatch.setattr(link, "PING_S", WATCHDOG_S)
    monkeypatch.setattr(stream, "ANSWER_S", 1.0)
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
