"""Nodes of one log that do not hold the same notice it, and the odd one stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardengine import LogId, StateDivergedError
from shardengine.engine.node.comparing import PATIENCE, Comparing, odd_ones
from shardengine.node import Member, NodePolicy
from tests.machines import Astray
from tests.nodes import soon
from tests.sharers import POLICY, ToldEnd, fill, hurry, like, sharer, sharers

OFTEN: NodePolicy = like(POLICY, compare_entries=10)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


async def test_nodes_that_hold_the_same_tell_the_same_digest_of_the_same_entry(tmp_path: Path) -> None:
    async with sharers(tmp_path, 3, policy=OFTEN) as (nodes, _):
        for entry, more in ((10, 12), (20, 13)):
            await fill(nodes[0], more)
            await soon(lambda: {member.digest_at.index for member in nodes[0].members()} == {entry})  # noqa: B023
        told = {member.digest for member in nodes[0].members()}
        assert len(told) == 1 and told != {b""}
        assert all(node.failure is None for node in nodes)


async def test_the_odd_one_stops_by_name_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with sharers(tmp_path, 2, policy=OFTEN, machine=Astray) as (nodes, ends):
        monkeypatch.setenv(Astray.VARIABLE, "1")
        odd = sharer(tmp_path / "odd", ToldEnd(ends[0]), policy=OFTEN, machine=Astray)
        await odd.start()
        monkeypatch.delenv(Astray.VARIABLE)
        name = odd.status().node
        await soon(lambda: len(nodes[0].members()) == 3)
        await fill(nodes[0], 10)
        await soon(lambda: odd.failure is not None)
        failure = odd.failure
        assert isinstance(failure, StateDivergedError) and failure.at == LogId(10, 10)
        digests = {(await node.engine.digest()).hex() for node in nodes}
        assert set(failure.others) == digests and all(one in str(failure) for one in (*digests, failure.digest.hex()))
        await soon(lambda: f"hold something else than the others: {name}" in caplog.text)
        await fill(nodes[1], 3)
        assert all(node.failure is None for node in nodes)
        await odd.aclose()


def test_the_odd_ones_are_the_few_or_all_where_nobody_is_more() -> None:
    assert odd_ones({"a": b"1", "b": b"1", "c": b"2"}) == {"c"}
    assert odd_ones({"a": b"1", "b": b"2"}) == {"a", "b"}
    assert odd_ones({"a": b"1", "b": b"2", "c": b"3"}) == {"a", "b", "c"}
    assert odd_ones({"a": b"1", "b": b"1", "c": b"2", "d": b"2", "e": b"3"}) == {"a", "b", "c", "d", "e"}
    assert odd_ones({"a": b"1", "b": b"1", "c": b"1", "d": b"2", "e": b"3"}) == {"d", "e"}
    assert odd_ones({"a": b"1", "b": b"1"}) == set()


def told(node: str, digest: bytes, at: int) -> Member:
    place = LogId(at, at)
    return Member(
        node=node,
        host="",
        pid=1,
        applied=place,
        durable=place,
        snapshot=place,
        needs=1,
        run="",
        beat=1,
        digest=digest,
        digest_at=place if digest else LogId(0, 0),
    )


def comparing() -> Comparing:
    return Comparing(None, 10)  # type: ignore[arg-type]


def test_a_difference_waits_for_who_has_not_told_yet() -> None:
    early = [told("a", b"1", 10), told("b", b"2", 10), told("c", b"", 0)]
    one = comparing()
    one.judge(early, "a")
    one.judge([*early[:2], told("c", b"1", 10)], "a")
    with pytest.raises(StateDivergedError):
        comparing().judge([*early[:2], told("c", b"2", 10)], "a")
    two = comparing()
    for _ in range(PATIENCE):
        two.judge(early, "a")
    with pytest.raises(StateDivergedError):
        two.judge(early, "a")


def test_who_comes_later_to_an_entry_is_compared_with_what_others_told_then() -> None:
    for own in ("a", "b"):
        one = comparing()
        one.judge([told("a", b"1", 10), told("b", b"", 0), told("c", b"1", 10)], own)
        one.judge([told("a", b"2", 20), told("b", b"", 0), told("c", b"2", 20)], own)
        late = [told("a", b"2", 20), told("b", b"x", 10), told("c", b"2", 20)]
        if own == "a":
            one.judge(late, own)
        else:
            with pytest.raises(StateDivergedError):
                one.judge(late, own)


def test_the_entry_is_the_logs_choice() -> None:
    one = comparing()
    assert [last for last in range(1, 40) if one.due(last, last)] == [10, 20, 30]
    assert one.due(8, 13) and one.due(8, 45) and not one.due(11, 19) and one.due(20, 20)
    assert not Comparing(None, 0).due(1, 100)  # type: ignore[arg-type]
