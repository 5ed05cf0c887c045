"""A node that the log has left behind goes on from another node's snapshot, whatever fails on the way."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import msgspec
import pytest

from shardengine import (
    ConfigError,
    Engine,
    LogId,
    LogTruncatedError,
    NodeStoppedError,
    OutcomeUnknownError,
    PeerError,
    Put,
    decode_piece,
    encode,
    stream_snapshot,
)
from shardengine.engine.node import bootstrap, fetching, giving
from shardengine.engine.node.frames import Frame, encode_frame
from shardengine.node import MemoryLog, Node
from tests.nodes import CONFIG, raising, soon
from tests.sharers import POLICY, ToldEnd, cut_by, fill, hurry, like, sharer, sharers
from tests.test_node_life import lose_power


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(bootstrap, "RETRY_S", 0.05)


def first_of(end: ToldEnd) -> int:
    return end._held.first


def newest(node: Node) -> LogId:
    """Of the snapshots that are given, as this node has heard."""
    return max(member.snapshot for member in node.members())


async def same(nodes: list[Node]) -> bool:
    for node in nodes:
        await node.barrier()
    return len({await node.engine.digest() for node in nodes}) == 1


async def test_a_node_that_starts_empty_reaches_the_same_state(tmp_path: Path) -> None:
    async with sharers(tmp_path, 2) as (nodes, ends):
        await fill(nodes[0], 60)
        await cut_by(nodes)
        await soon(lambda: first_of(ends[0]) > 60)
        late = ToldEnd(ends[0])
        async with sharer(tmp_path / "late", late) as third:
            await third.wait_ready()
            assert await same([*nodes, third])
            assert 1 < late.most_under_way <= 4 and len(late.asked) > 10
            assert third.engine.durable().index > 60, "what was fetched counts as a snapshot of its own"
            assert (await third.propose(Put(b"k", b"v"))).succeeded
            assert third.status().stalled is None


async def test_a_node_that_slept_through_two_cuts_goes_on(tmp_path: Path) -> None:
    async with sharers(tmp_path, 2) as (nodes, ends):
        sleeper = sharer(tmp_path / "sleeper", end := ToldEnd(ends[0]))
        await sleeper.start()
        await fill(sleeper, 5)
        await sleeper.aclose()
        ends[0]._said.clear()
        for _ in range(2):
            await fill(nodes[0], 20)
            before = first_of(ends[0])
            await cut_by(nodes)
            await soon(lambda: first_of(ends[0]) > before)  # noqa: B023
        async with sharer(tmp_path / "sleeper", end) as again:
            assert await same([*nodes, again])


async def test_a_node_that_falls_behind_while_it_runs_goes_on_and_its_proposals_keep_their_promises(
    tmp_path: Path,
) -> None:
    async with sharers(tmp_path, 3) as (nodes, ends):
        sleeper, end = nodes[2], ends[2]
        await fill(sleeper, 5)
        await sleeper.barrier()
        end.reading.clear()
        await fill(nodes[0], 1)  # the one that it was about to read
        known = asyncio.ensure_future(sleeper.propose(Put(b"known", b"")))
        await soon(lambda: end._held.last == 7)
        end.after.append(raising(PeerError("no answer")))
        lost = asyncio.ensure_future(sleeper.propose(Put(b"lost", b"")))
        await soon(lambda: end._held.last >= 8)
        await nodes[0].barrier()
        await fill(nodes[0], 30)
        await cut_by(nodes[:2])
        await ends[0].truncate_before(nodes[0].engine.snapshots()[-1].last_included.term)
        late = asyncio.ensure_future(sleeper.propose(Put(b"late", b"")))
        await nodes[0].barrier()
        end.reading.set()
        for call in (known, lost):
            with pytest.raises(OutcomeUnknownError):
                await call
        assert (await late).succeeded
        assert await same(nodes)
        assert sleeper.engine.get(b"known") == b"" == sleeper.engine.get(b"lost")
        assert sleeper.failure is None and sleeper.status().stalled is None


async def test_lost_answers_and_damaged_pieces_are_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "ANSWER_S", 0.5)
    async with sharers(tmp_path, 1) as (nodes, ends):
        await fill(nodes[0], 60)
        await cut_by(nodes)
        await soon(lambda: first_of(ends[0]) > 60)
        late = ToldEnd(ends[0])

        def piece_of(number: int) -> int | None:
            """Which piece that question asks for, if for the first time."""
            asked = late.asked[number - 1]
            piece: int = msgspec.msgpack.decode(asked[1])[1]
            return None if asked in late.asked[: number - 1] else piece

        def spoil(number: int, answer: bytes) -> bytes:
            piece = piece_of(number)
            if piece is None or piece % 3 == 2:
                return answer
            if piece % 3 == 0:
                raise PeerError("lost")
            return answer[:-9] + bytes([answer[-9] ^ 1]) + answer[-8:]

        late.on_answer = spoil
        late.hangs = lambda number: piece_of(number) == 5
        async with sharer(tmp_path / "late", late) as second:
            assert await same([*nodes, second])
            begun = [request for _, request in late.asked if request == giving.wanted(b"", 0)]
            assert len(begun) == 2, "all in one go"
            assert len(set(late.asked)) + 10 < len(late.asked)


async def test_a_giver_that_goes_away_in_the_middle_is_replaced_by_another(tmp_path: Path) -> None:
    async with sharers(tmp_path, 3) as (nodes, ends):
        await fill(nodes[0], 60)
        await cut_by(nodes)
        await fill(nodes[0], 3, b"more")
        await nodes[2].barrier()
        taken = await nodes[2].snapshot()
        await soon(lambda: first_of(ends[0]) > 60 and newest(nodes[0]) == taken.last_included)
        late, victim = ToldEnd(ends[0]), nodes[2].status().node

        def kill(number: int, answer: bytes) -> bytes:
            if number == 5:
                ends[2].go_away()
            return answer

        late.on_answer = kill
        async with sharer(tmp_path / "late", late) as fourth:
            assert {node for node, _ in late.asked[:5]} == {victim} != {late.asked[-1][0]}
            assert await same([*nodes[:2], fourth])
        await soon(lambda: nodes[2].failure is not None)


async def test_workers_that_die_on_both_sides_cost_nothing(tmp_path: Path) -> None:
    async with sharers(tmp_path, 1) as (nodes, ends):
        await fill(nodes[0], 60)
        await cut_by(nodes)
        await soon(lambda: first_of(ends[0]) > 60)
        late = ToldEnd(ends[0])
        second = sharer(tmp_path / "late", late)

        def kill(number: int, answer: bytes) -> bytes:
            if number == 5:
                for node in (nodes[0], second):
                    os.kill(node.engine.stats()["workers"][0]["pid"], signal.SIGKILL)
            return answer

        late.on_answer = kill
        async with second:
            assert len(late.asked) > 5 and await same([*nodes, second])


async def test_where_nobody_gives_a_snapshot_the_start_says_so_in_time(tmp_path: Path) -> None:
    async with sharers(tmp_path, 1) as (nodes, ends):
        await fill(nodes[0], 5)
        await ends[0].truncate_before(4)
        await nodes[0].aclose()
        policy = like(POLICY, bootstrap_timeout_ms=200)
        with pytest.raises(LogTruncatedError, match="begins at position 4"):
            await sharer(tmp_path / "late", ToldEnd(ends[0]), policy=policy).start()


async def test_a_node_that_runs_waits_for_a_snapshot_says_so_and_has_another_one_take_it(tmp_path: Path) -> None:
    async with sharers(tmp_path, 3) as (nodes, ends):
        await fill(nodes[0], 3)
        await nodes[1].barrier()
        ends[1].reading.clear()
        await fill(nodes[0], 5)
        ends[0].answer(None)  # so the other one has to
        await nodes[2].barrier()
        await ends[0].truncate_before(8)
        ends[1].reading.set()
        await soon(lambda: "a snapshot is needed" in (nodes[1].status().stalled or ""))
        assert await same(nodes)
        assert nodes[1].status().stalled is None and [len(node.engine.snapshots()) for node in nodes] == [0, 1, 1]


async def test_what_is_given_is_what_a_stream_gives_and_outlives_its_retention(tmp_path: Path) -> None:
    async with sharers(tmp_path, 1) as (nodes, _):
        await fill(nodes[0], 40)
        path = (await nodes[0].snapshot()).path
        expected = list(stream_snapshot(path, giving.GIVEN_BYTES))
        giver = giving.Giver(tmp_path / "0", nodes[0].engine.create_snapshot)
        source = expected[0].source
        pieces = [decode_piece(await giver.answer(giving.wanted(b"", 0)))]
        await cut_by(nodes, 3)
        assert not Path(path).exists()
        for number in range(1, len(expected)):
            pieces.append(decode_piece(await giver.answer(giving.wanted(source, number))))
        assert pieces == expected
        with pytest.raises(PeerError, match="no piece"):
            await giver.answer(giving.wanted(source, len(expected)))
        await giver.answer(giving.wanted(b"", 0))
        await cut_by(nodes, 3)
        with pytest.raises(PeerError, match="given already"):
            await giver.answer(giving.wanted(b"", 0))
        await giver.answer(giving.wanted(source, len(expected) - 1))
        await giver.answer(giving.wanted(b"", 0))  # that one was given whole, and makes way
        for unknown in (bytes(16), source):
            with pytest.raises(PeerError, match="not here"):
                await giver.answer(giving.wanted(unknown, 1))
        await giver.close()
        with pytest.raises(PeerError, match="the node stops"):
            await giver.answer(giving.wanted(source, 1))
        assert not list((tmp_path / "0" / "snapshots").glob(".*"))


async def test_a_snapshot_that_nobody_goes_on_with_makes_way_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharers(tmp_path, 1) as (nodes, _):
        giver = giving.Giver(tmp_path / "0", nodes[0].engine.create_snapshot)
        for _ in range(giving.GIVEN_MAX):
            await cut_by(nodes, 1)
            await giver.answer(giving.wanted(b"", 0))
        await cut_by(nodes, 1)
        with pytest.raises(PeerError, match="given already"):
            await giver.answer(giving.wanted(b"", 0))
        monkeypatch.setattr(giving, "MAKE_WAY_S", -1.0)
        await giver.answer(giving.wanted(b"", 0))
        await giver.close()
        assert not list((tmp_path / "0" / "snapshots").glob(".*"))


async def test_a_power_loss_leaves_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sharers(tmp_path, 1) as (nodes, ends):
        await fill(nodes[0], 20)
        await cut_by(nodes)
        await soon(lambda: first_of(ends[0]) > 20)
        late = sharer(tmp_path / "late", end := ToldEnd(ends[0]))
        await late.start()
        await fill(nodes[0], 3)
        assert await same([nodes[0], late])
        await lose_power(late, monkeypatch)
        end.asked.clear()
        report = await late.start()
        assert report.outcome == "restored" and report.last_applied.index > 20
        assert await same([nodes[0], late]) and end.asked == []
        await late.aclose()


async def test_a_node_that_is_closed_while_it_bootstraps_lets_go_of_everything(tmp_path: Path) -> None:
    async with sharers(tmp_path, 1) as (nodes, ends):
        await fill(nodes[0], 60)
        await cut_by(nodes)
        await soon(lambda: first_of(ends[0]) > 60)
        late = sharer(tmp_path / "late", end := ToldEnd(ends[0]))
        starting = asyncio.ensure_future(late.start())
        await soon(lambda: len(end.asked) > 5)
        await late.aclose()
        with pytest.raises(NodeStoppedError, match="closed while it started"):
            await starting
        assert not list((tmp_path / "late" / "snapshots").glob(".*"))
        async with late:
            assert await same([nodes[0], late])


async def test_a_snapshot_that_is_damaged_where_it_lies_is_not_installed_and_another_one_is(tmp_path: Path) -> None:
    async with sharers(tmp_path, 2) as (nodes, ends):
        await fill(nodes[0], 60)
        await cut_by(nodes)
        await fill(nodes[0], 2, b"more")
        await nodes[1].barrier()
        taken = await nodes[1].snapshot()
        (part,) = Path(taken.path).glob("*.mdb")
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
        await soon(lambda: first_of(ends[0]) > 60 and newest(nodes[0]) == taken.last_included)
        async with sharer(tmp_path / "late", late := ToldEnd(ends[0])) as third:
            assert await same([*nodes, third])
            assert {node for node, _ in late.asked} == {node.status().node for node in nodes}


async def test_a_snapshot_that_ends_within_a_frame_is_gone_on_from_within_it(tmp_path: Path) -> None:
    """Of a frame that a group cannot take, pieces are applied: a snapshot may lie between them."""
    async with sharers(tmp_path, 1) as (nodes, ends):
        await fill(nodes[0], 3)
        await nodes[0].aclose()
        other = ToldEnd(ends[0])
        await other.open()
        await other.append([encode_frame(Frame(bytes(16), [encode(Put(b"%d" % i, b"v")) for i in range(6)]))])
        async with Engine(tmp_path / "0", config=CONFIG) as engine:
            await engine.apply_chunk(ends[0].entries()[3:7])
            assert (await engine.create_snapshot()).last_included == LogId(7, 4)
        await nodes[0].start()
        await other.truncate_before(4)
        async with sharer(tmp_path / "late", ToldEnd(ends[0])) as late:
            assert late.engine.durable() == LogId(7, 4)
            assert await same([nodes[0], late]) and late.last_applied() == LogId(9, 4)
        await other.aclose()


async def test_a_snapshot_that_is_newer_than_the_log_was_when_it_was_opened_is_no_surprise(tmp_path: Path) -> None:
    async with sharers(tmp_path, 1) as (nodes, ends):
        await fill(nodes[0], 3)
        await ends[0].truncate_before(3)
        late = sharer(tmp_path / "late", end := ToldEnd(ends[0]))
        end.deaf = True
        starting = asyncio.ensure_future(late.start())
        await soon(lambda: end._arrivals is not None)
        await fill(nodes[0], 5)
        await nodes[0].snapshot()
        end.deaf = False
        await starting
        assert late.engine.durable().index == 8 and late.status().ready_at == 8
        assert await same([nodes[0], late])
        await late.aclose()


async def test_what_was_fetched_before_and_is_damaged_since_is_fetched_again(tmp_path: Path) -> None:
    async with sharers(tmp_path, 1) as (nodes, ends):
        late = sharer(tmp_path / "late", end := ToldEnd(ends[0]))
        await late.start()
        await late.aclose()
        ends[0]._said.clear()
        await fill(nodes[0], 60)
        await cut_by(nodes)
        await soon(lambda: first_of(ends[0]) > 60)
        newest = Path(nodes[0].engine.snapshots()[-1].path)
        copy = shutil.copytree(newest, tmp_path / "late" / "snapshots" / newest.name)
        (part,) = copy.glob("*.mdb")
        part.write_bytes(part.read_bytes()[:-1] + b"!")
        async with late:
            assert await same([nodes[0], late]) and len(end.asked) > 10


async def test_a_shared_directory_gives_what_no_member_does(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    async with sharers(tmp_path, 1, shared_snapshots=shelf) as (nodes, ends):
        await fill(nodes[0], 20)
        for _ in range(4):
            await cut_by(nodes, 1)
            label = nodes[0].engine.durable()
            await soon(lambda: any(f"{label.index:020}" in one.name for one in shelf.glob("*/*.snapshot")))  # noqa: B023
        await nodes[0].aclose()
        assert 1 <= len(list(shelf.glob("*/*"))) <= 2
        newest = max(shelf.glob("*/*.snapshot"))
        shutil.copy(newest, newest.with_name(f"{10**19:020}-{10**9:010}.snapshot"))  # which says what it is not
        newest.with_name(f"{10**18:020}-{10**9:010}.snapshot").write_bytes(b"cut off")
        end = ToldEnd(ends[0])
        end.deaf = True
        async with sharer(tmp_path / "late", end, shared_snapshots=shelf) as late:
            assert late.engine.durable().index > 20
            end.deaf = False
            await nodes[0].start()
            assert await same([nodes[0], late])


def test_a_shared_directory_is_for_shared_logs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody shares this log"):
        Node(tmp_path, log=MemoryLog(), shared_snapshots=tmp_path)
