"""The way of a chunk, as CONTRIBUTING prints it, is the way that a chunk takes."""

from __future__ import annotations

import asyncio
import re
from itertools import groupby
from pathlib import Path

import pytest

from shardengine import Engine, Entry, Put, encode
from tests import way
from tests.way import Chain

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
DEPTH_MAX = 20


def printed() -> list[Chain]:
    """The chains on the page, one for each line."""
    block = re.search(r"## The way of a chunk\n.*?```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    chains: list[Chain] = []
    above: list[str] = []
    for line in block[1].splitlines():
        call = line.strip()
        if not call:
            continue
        depth, odd = divmod(len(line) - len(call), 2)
        assert not odd and depth <= len(above), line
        above[depth:] = [call]
        chains.append(tuple(above))
    return chains


def room(call: str) -> str:
    """The room, or rank, of a call."""
    return call.partition(" ")[0].rpartition("/")[0]


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> set[Chain]:
    """The chains of calls that applying a chunk over two shards came to, here and in the workers."""
    place = tmp_path_factory.mktemp("way")
    found: set[Chain] = set()

    async def main() -> None:
        async with Engine(place / "data", shards=2, machine=way.Traced) as db:
            with way.followed() as seen:
                results = await db.apply_chunk([Entry(at, 1, encode(Put(b"key %d" % at, b"v"))) for at in range(1, 65)])
            assert all(result.succeeded for result in results) and len(db) == 64
            found.update(seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(way.FILE, str(place / "chains"))
        asyncio.run(main())
    return found | way.read(place / "chains")


def test_every_call_on_the_page_is_made_and_by_whom_it_says(taken: set[Chain]) -> None:
    assert [chain for chain in printed() if chain not in taken] == []


def test_the_page_names_what_begins_ends_and_decides(taken: set[Chain]) -> None:
    last = {chain[-1] for chain in printed()}
    assert {"lmdb putmulti", "lmdb commit", "ipc/link.py send", "engine/commit/decision.py write"} <= last
    assert {chain[0] for chain in printed()} == {
        "engine/engine.py apply_chunk",
        "engine/run/crew.py on_readable",
        "shards/worker.py main",
    }


def test_the_way_there_and_back_is_at_most_20_calls_deep(taken: set[Chain]) -> None:
    def depth(first: str, last: str) -> int:
        return max(len(chain) for chain in taken if chain[0].endswith(first) and chain[-1].endswith(last))

    assert depth("apply_chunk", "link.py send") + depth("main", "putmulti") <= DEPTH_MAX
    assert depth("main", "link.py send") + depth("on_readable", "cut.py publish") <= DEPTH_MAX
    assert depth("main", "link.py send") + depth("on_readable", "runtime.py wake") <= DEPTH_MAX


def test_no_call_comes_back_to_a_room_but_to_the_host_that_runs_the_coordinator(taken: set[Chain]) -> None:
    for chain in taken:
        rooms = [name for name, _ in groupby(room(call) for call in chain)]
        again = {name for name in rooms if rooms.count(name) > 1}
        assert again <= {"engine/run"} and rooms.count("engine/run") <= 2, " > ".join(chain)
