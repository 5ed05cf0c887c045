"""Several nodes on one log: one order, one state, and a log that is cut by what all of them need."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import LogId, NameTakenError, OutcomeUnknownError, Put
from shardengine.conformance import History
from shardengine.engine.conformance.recorded import RecordedNode
from shardengine.engine.node import members, sharing
from shardengine.engine.node.members import Members
from shardengine.engine.node.trimming import cut_at
from shardengine.engine.storage.files import write_checked
from shardengine.node import Member, MemoryLog, Node, SharedLog, SharedMemoryLog, SyncNode, entries_of
from tests.killing import WATCHDOG_S
from tests.nodes import CONFIG, node_at, soon
from tests.sharers import POLICY, ToldEnd, cut_by, fill, hurry, like, sharer, sharers
from tests.test_history_nodes import KEYS, crowd, judged


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def first_of(end: ToldEnd) -> int:
    return end._held.first


async def test_three_nodes_propose_apply_and_hold_the_same(tmp_path: Path) -> None:
    async with sharers(tmp_path, 3) as (nodes, ends):
        assert isinstance(ends[0], SharedLog)
        calls = [node.propose(Put(b"%d-%d" % (i, j), b"")) for i, node in enumerate(nodes) for j in range(50)]
        results = await asyncio.gather(*calls)
        assert sorted(result.index for result in results) == list(range(1, 151))
        for node in nodes:
            assert (await node.barrier()).index == 150
        assert len({await node.engine.digest() for node in nodes}) == 1
        await soon(lambda: all(node.status().members == 3 for node in nodes))
        assert {member.node for member in nodes[0].members()} == {node.status().node for node in nodes}


async def test_a_node_keeps_its_name_and_tells_where_it_stands(tmp_path: Path) -> None:
    async with sharers(tmp_path, 1) as (nodes, ends):
        name = nodes[0].status().node
        assert len(bytes.fromhex(name)) == 16
        await fill(nodes[0], 3)
        taken = (await nodes[0].snapshot()).last_included
        await soon(lambda: nodes[0].members()[0].snapshot == nodes[0].members()[0].durable == taken)
        (me,) = nodes[0].members()
        assert me.applied == me.durable == LogId(3, 3) and me.node == name and me.needs == 1
    async with sharer(tmp_path / "0", ToldEnd(ends[0])) as again:
        assert again.status().node == name
    write_checked(tmp_path / "0" / "node", {"log": ends[0]._held.identity})  # as it was before nodes had names
    later = set[str]()
    for _ in range(2):
        async with sharer(tmp_path / "0", ToldEnd(ends[0])) as renamed:
            assert renamed.last_applied().index == 3
            later.add(renamed.status().node)
    assert len(later) == 1 and later != {name}


def test_a_node_for_code_without_a_loop_tells_its_members_too(tmp_path: Path) -> None:
    with SyncNode(tmp_path, log=SharedMemoryLog(), shards=1, config=CONFIG) as node:
        node.propose(Put(b"k", b"v"))
        while not node.members():
            node.barrier()
        assert [one.node for one in node.members()] == [node.status().node]


# ---- the cut ---------------------------------------------------------------------------------------------------------


def member(needs: int, snapshot: int) -> Member:
    place = LogId(snapshot, snapshot)
    return Member(node="", host="", pid=1, applied=place, durable=place, snapshot=place, needs=needs, run="", beat=1)


def test_a_log_is_cut_by_what_the_slowest_needs_and_where_a_snapshot_reaches() -> None:
    assert cut_at(10, [member(10, 20), member(12, 12)]) == 10
    assert cut_at(10, [member(10, 20), member(5, 7)]) == 5
    assert cut_at(10, [member(10, 3), member(12, 4)]) == 4
    assert cut_at(10, [member(10, 0), member(12, 0)]) == 0
    assert cut_at(10, []) == 0, "who heard nobody cuts nothing"
    assert cut_at(10, [member(10, 20), member(1, 0)]) == 1, "one that starts needs all"


@given(st.integers(0, 50), st.lists(st.builds(member, st.integers(1, 50), st.integers(0, 50)), max_size=6))
def test_whatever_members_say_what_one_needs_is_never_cut(needed: int, members: list[Member]) -> None:
    cut = cut_at(needed, members)
    assert cut <= needed and all(cut <= one.needs for one in members)
    assert cut == 0 or any(one.snapshot.term + 1 >= cut for one in members)


async def test_one_snapshot_of_each_is_enough_for_a_cut_that_all_are_asked_for(tmp_path: Path) -> None:
    async with sharers(tmp_path, 2) as (nodes, ends):
        await fill(nodes[0], 5)
        for node in nodes:
            await node.barrier()
            await node.snapshot()
            assert await node.compact(0) <= 1, "not before the other one was asked, and has said so"
        await soon(lambda: first_of(ends[0]) == 5)


async def test_the_slowest_decides_and_one_that_is_gone_stops_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharers(tmp_path, 3) as (nodes, ends):
        await fill(nodes[0], 5)
        await cut_by(nodes[:2])
        slow = nodes[2].status().node
        await soon(lambda: [m.needs > 1 for m in nodes[0].members() if m.node != slow] == [True, True])
        for node in nodes[:2]:
            assert await node.compact(0) in (0, 1)
        assert first_of(ends[0]) == 1
        await cut_by([nodes[2]])
        await soon(lambda: first_of(ends[0]) > 5)
        await nodes[2].aclose()
        await cut_by(nodes[:2])
        (needs,) = [one.needs for one in nodes[0].members() if one.node == slow]
        await soon(lambda: first_of(ends[0]) == needs)
        monkeypatch.setattr(sharing, "LATELY_S", 0.2)
        await soon(lambda: first_of(ends[0]) > needs)
        await soon(lambda: nodes[0].status().members == 2)


async def test_who_does_not_hear_the_others_cuts_nothing(tmp_path: Path) -> None:
    async with sharers(tmp_path, 2) as (nodes, ends):
        members = members_of(nodes[0])
        assert members.lately() is None, "one round is not enough"
        await soon(lambda: members.lately() is not None)
        ends[0].deaf = True
        await soon(lambda: members.lately() is None)
        for end in ends:
            end.deaf = True
        await cut_by(nodes, 3)
        for node in nodes:
            await node.compact(0)
        assert first_of(ends[0]) == 1
        for end in ends:
            end.deaf = False
        await soon(lambda: first_of(ends[0]) > 1)


def members_of(node: Node) -> Members:
    assert node._run is not None and node._run.peers is not None
    return node._run.peers.members


async def test_in_mode_power_the_cut_waits_for_a_snapshot_that_others_can_have(tmp_path: Path) -> None:
    power = like(CONFIG, durability="power", snapshots_keep=1)
    async with sharers(tmp_path, 2, config=power) as (nodes, ends):
        await fill(nodes[0], 20)
        for node in nodes:
            await node.barrier()
        await soon(lambda: [one.needs for one in nodes[0].members()] == [20, 20])
        assert await nodes[0].compact(0) <= 1 == first_of(ends[0])
        await nodes[1].snapshot()
        await soon(lambda: first_of(ends[0]) == 20)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", ["as it is", "behind", "ahead"])
async def test_a_copied_directory_is_refused_and_the_first_one_goes_on(
    clock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharers(tmp_path, 1) as (nodes, ends):
        await fill(nodes[0], 3)
        await nodes[0].aclose()
        shutil.copytree(tmp_path / "0", tmp_path / "copy")
        async with sharer(tmp_path / "0", ToldEnd(ends[0])) as first:
            await soon(lambda: first.status().members == 1)
            copy = sharer(tmp_path / "copy", ToldEnd(ends[0]))
            with monkeypatch.context() as patch:
                if clock != "as it is":
                    patch.setattr(members, "_new_run", lambda: ("0" if clock == "behind" else "f") * 28)
                await copy.start()
            await soon(lambda: copy.failure is not None)
            assert isinstance(copy.failure, NameTakenError) and copy.failure.node == first.status().node
            await copy.aclose()
            assert (await first.propose(Put(b"k", b"v"))).succeeded
            (tmp_path / "copy" / "node").unlink()
            async with sharer(tmp_path / "copy", ToldEnd(ends[0])) as renamed:
                await soon(lambda: {first.status().node, renamed.status().node} <= names(first.members()))
                assert await renamed.get(b"k") == b"v"


def names(members: Sequence[Member]) -> set[str]:
    return {one.node for one in members}


async def test_a_node_that_was_just_stopped_may_start_again_at_once(tmp_path: Path) -> None:
    async with sharers(tmp_path, 1) as (nodes, ends):
        for _ in range(3):
            await nodes[0].aclose()
            await nodes[0].start()
            rounds = nodes[0].members
            seen = rounds()[0].beat if rounds() else 0
            await soon(lambda: bool(rounds()) and rounds()[0].beat > seen + 3)  # noqa: B023
        assert nodes[0].failure is None and nodes[0].status().members == 1 < len(ends[0]._said)


async def test_a_node_whose_log_is_its_own_has_no_name_and_no_members(tmp_path: Path) -> None:
    async with node_at(tmp_path, MemoryLog()) as node:
        assert node.members() == [] and node.status().node == "" and node.status().members == 0
        assert b"node" not in (tmp_path / "data" / "node").read_bytes()


# ---- what callers saw ------------------------------------------------------------------------------------------------


async def test_callers_of_three_nodes_see_one_order_while_workers_die_and_one_node_bootstraps(tmp_path: Path) -> None:
    history = History()
    async with sharers(tmp_path, 3, policy=like(POLICY, compare_entries=20)) as (nodes, ends):
        first, second, sleeper = (history.node(node, str(i)) for i, node in enumerate(nodes))

        def kill(number: int) -> None:
            if number in (60, 160):
                os.kill(nodes[number // 100].engine.stats()["workers"][0]["pid"], signal.SIGKILL)

        await crowd([first, second, sleeper], 5, kill)
        ends[2].reading.clear()
        await first.propose(Put(b"e", b""))  # the one that it was about to read
        calls = [asyncio.ensure_future(seeing(sleeper, b"%d" % i)) for i in range(10)]
        await crowd([first, second], 6)
        await cut_by([first])
        await ends[0].truncate_before(nodes[0].engine.snapshots()[-1].last_included.term)
        ends[2].reading.set()
        await asyncio.gather(*calls)
        await crowd([first, second, sleeper], 7)
        judged(history, ends[0].entries())
        assert {one.outcome for one in history.operations} == {"ok", "info"}
        assert ends[2].asked and all(node.failure is None for node in nodes)


async def seeing(node: RecordedNode, value: bytes) -> None:
    """Propose, and look."""
    with suppress(OutcomeUnknownError):
        await node.propose(Put(b"a", value))
    await node.get_multi(KEYS)


async def test_a_stale_read_of_one_node_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    async with sharers(tmp_path, 2) as (nodes, ends):
        first, second = (history.node(node, str(i)) for i, node in enumerate(nodes))
        await first.propose(Put(b"k", b"1"))
        assert await second.get(b"k") == b"1"
        ends[1].reading.clear()
        await first.propose(Put(b"j", b""))  # the one that it was about to read
        await first.propose(Put(b"k", b"2"))

        async def nothing_new() -> int:
            return 0

        monkeypatch.setattr(ends[1], "last", nothing_new)
        assert await second.get(b"k") == b"1"
        verdict = history.check(await entries_of(ends[0]))
        assert not verdict.valid and {finding.rule for finding in verdict.findings} == {"stale"}, verdict


async def test_a_write_that_the_log_lost_is_caught(tmp_path: Path) -> None:
    history = History()
    async with sharers(tmp_path, 2) as (nodes, ends):
        first, second = (history.node(node, str(i)) for i, node in enumerate(nodes))
        await first.propose(Put(b"k", b"1"))
        assert await second.get(b"k") == b"1"
        ends[1].reading.clear()
        await first.propose(Put(b"j", b""))
        await first.propose(Put(b"k", b"2"))
        del ends[0]._held.kept[-1]
        ends[0]._held.last -= 1
        ends[1].reading.set()
        await second.propose(Put(b"l", b""))
        assert await second.get(b"k") == b"1"
        assert not history.check(await entries_of(ends[1])).valid


class Deaf(ToldEnd):
    """Once it is asked to, it loses the cancellation that comes while the others are being heard."""

    def __init__(self) -> None:
        super().__init__()
        self.hearing, self.lost = asyncio.Event(), False

    async def meet(self, me: Member) -> Sequence[Member]:
        if not self.lost:
            self.hearing.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            self.lost = True
        return await super().meet(me)


async def test_a_cancellation_that_is_lost_does_not_keep_a_node_from_closing(tmp_path: Path) -> None:
    log = Deaf()
    async with asyncio.timeout(WATCHDOG_S):
        async with sharer(tmp_path / "0", log):
            await log.hearing.wait()
        assert log.lost
