"""The checker of histories over nodes on real servers: what it must catch is planted, and caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardengine import EngineError, LogRegressedError, LogReplacedError, Put
from shardengine.engine.cluster.servers import Servers
from shardengine.node import JetStreamLog
from tests.company import Company, company, impatient
from tests.jetstream import new_name
from tests.planted import HastyLog, StaleLog


@pytest.fixture(autouse=True)
def impatiently(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)


async def rules_broken(all: Company) -> set[str]:
    return {finding.rule for finding in all.history.check(await all.entries()).findings}


@pytest.mark.parametrize(("make_log", "caught"), [(StaleLog, {"stale"}), (JetStreamLog, set[str]())])
async def test_a_read_that_asks_nobody_is_stale_on_a_node_that_is_cut_off(
    servers: Servers, tmp_path: Path, make_log: Any, caught: set[str]
) -> None:
    async with company(tmp_path, servers, new_name(), nodes=2, make_log=make_log) as all:
        await all.more()
        await all.rest()
        alone, other = all.stations
        await alone.seen.barrier()
        alone.wire.leave(())
        await other.seen.propose(Put(b"a", b"new"))
        try:
            await alone.seen.get(b"a", timeout=0.5)
        except TimeoutError:
            assert make_log is JetStreamLog
        alone.wire.mend()
        await alone.seen.barrier()
        assert await rules_broken(all) == caught


async def test_a_write_that_is_acknowledged_before_the_servers_have_it_is_lost_with_its_node(
    servers: Servers, tmp_path: Path
) -> None:
    made = list[HastyLog]()

    def make_log(urls: list[str], stream: str) -> HastyLog:
        made.append(HastyLog(urls, stream))
        return made[-1]

    async with company(tmp_path, servers, new_name(), nodes=2, make_log=make_log) as all:
        await all.more()
        await all.rest()
        hasty, other = all.stations
        for station in all.stations:
            await station.seen.barrier()
        for proxy in hasty.wire.proxies:
            proxy.hold()
        made[0].hasty = True
        assert (await hasty.seen.propose(Put(b"a", b"lost"))).succeeded
        hasty.wire.leave(())
        await hasty.stop()
        assert await other.seen.get(b"a") != b"lost"
        assert "lost" in await rules_broken(all)
        hasty.wire.mend()
        with pytest.raises(EngineError) as refused:
            await hasty.start()
        assert type(refused.value) in (LogRegressedError, LogReplacedError)
