"""Three nodes on three real servers, while several things happen at once, at random moments: what all saw is true.

With HYPOTHESIS_PROFILE=deep for many minutes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from shardengine.engine.cluster.servers import Servers
from shardengine.node import JetStreamLog
from tests.company import Company, company, impatient
from tests.killing import DEEP, note, seeded
from tests.mishaps import cut_off, held_back, killed, parted, paused, stopped, unanswered

ROUNDS = 60 if DEEP else 2
LASTS_S = 3.0
"""What happens lasts up to so long, and begins up to a tenth of it after what happened before."""


@pytest.fixture(autouse=True)
def impatiently(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)


def forgetful(urls: list[str], stream: str) -> JetStreamLog:
    """Nodes that are not heard for a second are not waited for when the log is cut."""
    return JetStreamLog(urls, stream, member_timeout=1.0)


def drawn(all: Company, rng: random.Random) -> Sequence[tuple[str, AbstractAsyncContextManager[None]]]:
    """What happens next, to different servers and nodes. What ends it comes in the opposite order: a node that starts
    needs servers."""
    servers, stations = list(all.servers.all), list(all.stations)
    rng.shuffle(servers)
    rng.shuffle(stations)
    first, second, third = stations
    to_nodes = [
        (f"stopped {first.name}", stopped(first)),
        (f"cut off {second.name}", cut_off(second)),
        (f"held back {second.name}", held_back(second)),
        (f"unanswered {third.name}", unanswered(third)),
    ]
    to_servers = [
        (f"killed {servers[0].name}", killed(servers[0])),
        (f"paused {servers[1].name}", paused(servers[1])),
        (f"killed {servers[2].name}", killed(servers[2])),
        (f"parted {second.name} with {servers[1].name}", parted(all.servers, servers[1], second, first, third)),
    ]
    chosen = [to_nodes[number] for number in sorted(rng.sample(range(4), rng.randrange(3)))]
    return chosen + rng.sample(to_servers, rng.randrange(0 if chosen else 1, 4))


async def cut(all: Company, rng: random.Random) -> None:
    """Most nodes give up what a snapshot holds; who is away then needs one."""
    assert all.scribe is not None
    for node in all.nodes:
        if rng.random() < 0.8 and (await node.snapshot()).last_included.term <= all.scribe.position:
            await node.compact(0)


async def happen(all: Company, rng: random.Random) -> str:
    things = drawn(all, rng)
    async with AsyncExitStack() as stack:
        for _, thing in things:
            await stack.enter_async_context(thing)
            await asyncio.sleep(rng.random() * LASTS_S / 10)
        await asyncio.sleep(rng.random() * LASTS_S)
        await cut(all, rng)
    return ", ".join(name for name, _ in things)


@pytest.mark.timeout(1800 if DEEP else 240)
async def test_what_is_acknowledged_stays_and_no_read_is_stale_whatever_happens_at_once(tmp_path: Path) -> None:
    rng = seeded()
    with Servers(tmp_path / "servers") as own:
        async with company(
            tmp_path, own, "orders", scribe=True, make_log=forgetful, seed=rng.randrange(1 << 30)
        ) as all:
            for number in range(ROUNDS):
                await all.more()
                note(f"{number} of {ROUNDS}: {await happen(all, rng)}")
                await all.more()
                await all.entries()
            await all.judged()
            note(f"{len(all.history.operations)} operations; refused: {dict(all.refused)}")
