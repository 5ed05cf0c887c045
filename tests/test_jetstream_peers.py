"""Nodes of one log on JetStream: where each stands, and what they ask each other."""

from __future__ import annotations

import asyncio
import json
import os
import random
from typing import Any

import msgspec
import pytest

from shardengine import LogClosedError, LogUnreachableError, PeerError, StoreFullError
from shardengine.engine.cluster.servers import Servers
from shardengine.engine.node.jetstream import asking, connection, members
from shardengine.engine.node.jetstream.link import Message, Outgoing
from shardengine.node import JetStreamLog, Member
from shardengine.shards.types import LogId
from tests.jetstream import config, make, new_name, opened, stream_of
from tests.killing import WATCHDOG_S
from tests.proxy import Proxy


def member(number: int, applied: int = 0) -> Member:
    none = LogId(0, 0)
    return Member(
        node=f"{number:032x}",
        host="here",
        pid=os.getpid(),
        applied=LogId(applied, applied),
        durable=none,
        snapshot=none,
        needs=1,
        run=f"run{number}",
        beat=applied,
        digest=bytes(range(16)),
    )


async def test_nodes_hear_of_each_other_and_of_what_each_said_last(servers: Servers) -> None:
    name = new_name()
    async with opened(servers.urls, name) as one, opened(servers.urls, name) as other:
        assert await one.meet(member(2)) == [member(2)]
        async with asyncio.timeout(WATCHDOG_S):
            while await other.meet(member(1)) != [member(1), member(2)]:
                pass
            while await other.meet(member(1)) != [member(1), member(2, 7)]:
                assert member(2, 7) in await one.meet(member(2, 7))
    async with opened(servers.urls, new_name()) as elsewhere:
        assert await elsewhere.meet(member(3)) == [member(3)]


async def test_who_says_nothing_any_more_is_forgotten(servers: Servers) -> None:
    name = new_name()
    async with opened(servers.urls, name, member_timeout=1) as one, opened(servers.urls, name) as other:
        await one.meet(member(1))
        async with asyncio.timeout(WATCHDOG_S):
            while len(await other.meet(member(2))) != 2:
                pass
            while await other.meet(member(2)) != [member(2)]:
                pass
        async with stream_of(servers.urls, f"KV_{name}-nodes") as bucket:
            found = (await bucket.info()).config
        assert (found["num_replicas"], found["max_age"], found["max_msgs_per_subject"]) == (3, 1_000_000_000, 1)


async def test_who_does_not_hear_all_is_told_so_and_not_that_it_is_alone(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "PAUSES_S", (0.0,))
    name = new_name()
    async with opened(servers.urls, name) as log, stream_of(servers.urls, f"KV_{name}-nodes") as bucket:
        subjects = [f"$KV.{name}-nodes.>"]
        await make(bucket, config(bucket.name, 3, subjects=subjects, max_msgs_per_subject=1, allow_direct=False))
        async with asyncio.timeout(WATCHDOG_S):
            while not (await bucket.info()).state.last_seq:
                with pytest.raises(LogUnreachableError, match=r"allow_direct|where this node stands"):
                    await log.meet(member(1))
        with pytest.raises(LogUnreachableError, match="allow_direct"):
            await log.meet(member(1, 1))


@pytest.mark.parametrize("lacking", ["nothing that was said", "the end", "the newest word"])
async def test_an_answer_that_is_not_whole_is_asked_for_again(
    lacking: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_name()
    async with opened(servers.urls, name) as one, opened(servers.urls, name) as other:
        await one.meet(member(2))
        await one.meet(member(1))
        asked, spoilt = connection.Connection.ask_for_many, 0

        async def ask_for_many(self: connection.Connection, *messages: Outgoing, **more: Any) -> list[Message]:
            nonlocal spoilt
            answers = await asked(self, *messages, **more)
            if messages[0].subject != f"$JS.API.DIRECT.GET.KV_{name}-nodes" or spoilt:
                return answers
            spoilt += 1
            newest = [answer for answer in answers if b'"beat":7' in answer.data]
            older = [answer for answer in answers if answer not in newest]
            return {"the end": newest, "the newest word": older}.get(lacking, [])

        monkeypatch.setattr(connection.Connection, "ask_for_many", ask_for_many)
        assert await other.meet(member(3, 7)) == [member(1), member(2), member(3, 7)]
        assert spoilt == 1


async def test_what_another_version_says_of_itself_is_passed_over(servers: Servers) -> None:
    name = new_name()
    async with opened(servers.urls, name) as log, stream_of(servers.urls, name) as stream:
        await log.meet(member(1))
        for key, said in (("new", {"node": "new", "colour": "red"}), ("bad", 7)):
            await stream.connection.ask(Outgoing(f"$KV.{name}-nodes.{key}", json.dumps(said).encode()))
        assert await log.meet(member(1)) == [member(1)]


async def test_nodes_that_cannot_be_reached_are_said_to_be(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 0.3)
    monkeypatch.setattr(asking, "ASK_S", 0.3)
    async with Proxy(servers.all[0].port) as proxy, opened(proxy.url, new_name()) as log:
        await log.meet(member(1))
        proxy.shut = True
        proxy.cut()
        with pytest.raises(LogUnreachableError):
            await log.meet(member(1))
        with pytest.raises(PeerError, match="does not answer"):
            await log.ask(member(2).node, b"?")
        proxy.shut = False
        async with asyncio.timeout(WATCHDOG_S):
            while True:
                try:
                    assert await log.meet(member(1)) == [member(1)]
                    break
                except LogUnreachableError:
                    await asyncio.sleep(0.02)


async def test_where_a_node_stands_is_said_again_until_there_is_one_who_answers(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 2 * WATCHDOG_S)
    monkeypatch.setattr(members, "AGAIN_S", 0.01)
    name, heard = new_name(), list[Message]()
    async with stream_of(servers.urls, name) as stream:
        stream.mark = "mark"

        def hear(message: Message) -> None:
            heard.append(message)
            if len(heard) == 3:
                told = {"error": {"code": 500, "description": "told to be full"}}
                stream.connection.send(Outgoing(message.reply, json.dumps(told).encode()))

        await stream.connection.listen(f"$KV.{name}-nodes.>", hear)
        async with asyncio.timeout(WATCHDOG_S):
            with pytest.raises(LogUnreachableError, match="told to be full"):
                await members.Members(stream, 3, 30.0).meet(member(1))
    assert {message.data for message in heard} == {msgspec.json.encode(member(1))}


async def test_a_node_that_is_asked_answers_whatever_the_length_or_says_why_not(servers: Servers) -> None:
    name = new_name()
    async with opened(servers.urls, name) as one, opened(servers.urls, name) as other:
        longest = (await _state(servers, name)) * b"x"

        async def answer(request: bytes) -> bytes:
            if request == b"full":
                raise StoreFullError("no room\nat all", hint="none")
            if request == b"defect":
                raise ZeroDivisionError
            return request + b"!" if request != b"much" else longest + b"x"

        node = member(1).node
        with pytest.raises(PeerError, match="is not there"):
            await other.ask(node, b"?")
        await one.meet(member(1))
        await settled(one)
        with pytest.raises(PeerError, match="answers nobody"):
            await other.ask(node, b"?")
        one.answer(answer)
        assert await other.ask(node, b"") == b"!"
        assert await other.ask(node, longest[1:]) == longest[1:] + b"!"
        for request, said in ((b"full", "no room at all"), (b"defect", "ZeroDivisionError"), (b"much", "is the most")):
            with pytest.raises(PeerError, match=said):
                await other.ask(node, request)
        one.answer(None)
        with pytest.raises(PeerError, match="answers nobody"):
            await other.ask(node, b"?")


async def settled(log: JetStreamLog) -> None:
    """The server has heard what the log listens to: it answers in order."""
    await log.last()


async def _state(servers: Servers, name: str) -> int:
    log = JetStreamLog(servers.urls, name)
    state = await log.open()
    await log.aclose()
    return state.frame_bytes_max


async def test_many_are_answered_a_few_at_a_time_and_each_gets_its_own_answer(servers: Servers) -> None:
    at_once = most = 0
    chance = random.Random(1)

    async def answer(request: bytes) -> bytes:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)
        at_once -= 1
        return request[::-1]

    name = new_name()
    async with opened(servers.urls, name) as one, opened(servers.urls, name) as other:
        one.answer(answer)
        await one.meet(member(1))
        await settled(one)
        asked = [b"%d" % number for number in range(1000, 1100)]
        answers = await asyncio.gather(*(other.ask(member(1).node, request) for request in asked))
        assert answers == [request[::-1] for request in asked] and 1 < most <= 8


async def test_a_node_is_found_again_after_its_connection_was_cut(servers: Servers) -> None:
    async def answer(request: bytes) -> bytes:
        return b"here"

    name = new_name()
    async with (
        Proxy(servers.all[0].port) as proxy,
        opened(servers.urls, name) as other,
        opened(proxy.url, name) as one,
    ):
        one.answer(answer)
        await one.meet(member(1))
        proxy.cut()
        await one.last()
        assert proxy.connections == 2
        assert await other.ask(member(1).node, b"?") == b"here"


async def test_a_log_that_is_closed_neither_meets_nor_asks_and_ends_what_it_answers(servers: Servers) -> None:
    begun = asyncio.Event()
    ended = asyncio.Event()

    async def answer(request: bytes) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    name = new_name()
    async with opened(servers.urls, name) as other:
        async with opened(servers.urls, name) as one:
            one.answer(answer)
            await one.meet(member(1))
            await settled(one)
            asking = asyncio.create_task(other.ask(member(1).node, b"?"))
            await begun.wait()
        assert ended.is_set()
        for call in (one.meet(member(1)), one.ask(member(1).node, b"?")):
            with pytest.raises(LogClosedError):
                await call
        asking.cancel()
        await asyncio.wait([asking])


async def test_what_was_said_of_another_log_of_that_name_is_not_heard(servers: Servers) -> None:
    name = new_name()
    async with opened(servers.urls, name) as before:
        await before.meet(member(1))
    async with stream_of(servers.urls, name) as stream:
        await stream._api(f"STREAM.DELETE.{name}")
    async with opened(servers.urls, name) as after:
        assert await after.meet(member(2)) == [member(2)]


async def test_words_of_a_later_version_are_heard_as_far_as_they_are_understood() -> None:
    said = msgspec.json.decode(msgspec.json.encode(member(3)))
    assert msgspec.json.decode(msgspec.json.encode({**said, "mood": "good"}), type=Member) == member(3)
