"""Three nodes on three real servers, used all the time while everything fails that can: what all saw is true.

So is what two are told who append to a log beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardengine import ClusterError
from shardengine.engine.cluster.servers import Servers
from shardengine.engine.node.jetstream import guarding, link
from tests.appends import appends
from tests.company import Wire, company, impatient
from tests.jetstream import new_name
from tests.killing import WATCHDOG_S
from tests.mishaps import cut_off, held_back, killed, lead, leader_of, parted, paused, stopped, unanswered
from tests.told_node import FarStation


@pytest.fixture(autouse=True)
def impatiently(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Servers]:
    """Three servers to be killed."""
    with Servers(tmp_path / "servers") as servers:
        yield servers


async def test_what_is_acknowledged_stays_and_no_read_is_stale_whatever_happens_to_the_servers(
    own: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "LOOK_S", 2 * WATCHDOG_S)  # nobody waits for the next look, where one has failed
    async with company(tmp_path, own, "orders") as all, appends(own, "frames") as frames:
        await all.more()
        one, *others = all.stations
        with monkeypatch.context() as patient:  # a connection outlives the pause
            patient.setattr(link, "PONG_S", WATCHDOG_S)
            leader = await leader_of(own, "orders")
            async with parted(own, leader, one, *others):
                await all.more()
                async with paused(leader):
                    await all.more(10, but=[one])
                await all.more()
        leader = await leader_of(own, "orders")
        await lead(own, "frames", leader)
        await frames.more()
        async with killed(leader):
            await asyncio.gather(all.more(), frames.more())
        await all.more()
        leader = await leader_of(own, "orders")
        follower, other = (server for server in own.all if server is not leader)
        async with killed(follower):
            await all.more()
        async with paused(other):
            await all.more()
        await all.more()
        async with killed(*own.all):
            pass
        await asyncio.gather(all.more(), frames.more())
        await all.judged()


async def test_what_is_acknowledged_stays_and_no_read_is_stale_whatever_happens_to_a_node(
    servers: Servers, tmp_path: Path
) -> None:
    async with company(tmp_path, servers, new_name()) as all:
        await all.more()
        one, two, three = all.stations
        async with cut_off(one):
            await all.more(10, but=[one])
        await all.more()
        async with unanswered(two):
            await all.more()
        async with held_back(three):
            await all.more(10)
        await all.more()
        async with stopped(one):
            await all.more()
        await all.more()
        await all.judged()


async def test_a_node_that_is_killed_again_and_again_loses_nothing_and_repeats_nothing(
    servers: Servers, tmp_path: Path
) -> None:
    async with company(tmp_path, servers, new_name(), nodes=2) as all, Wire(servers) as wire:
        far = FarStation(all, "far", wire)
        all.stations.append(far)
        for _ in range(2):
            await far.start()
            await all.more(20)
            await far.kill()
            await all.more()
        await far.start()
        await all.more()
        await all.judged()
        state = await far.state()
        assert state["digest"] == await all.nodes[0].engine.digest()
        await far.stop()
        assert all.refused.keys() == {ClusterError}
