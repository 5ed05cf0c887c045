"""A log on JetStream whose connections lose, hold back and cut off what is said over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from shardengine import LogClosedError, LogFailedError, LogReplacedError, LogUnreachableError
from shardengine.engine.cluster.servers import Servers
from shardengine.engine.node.jetstream import connection, guarding, link, session, stream
from shardengine.engine.node.jetstream.stream import Stream
from shardengine.node import JetStreamLog, Logged
from tests.jetstream import frames_up_to, new_name, opened, stream_of
from tests.killing import WATCHDOG_S, seeded
from tests.proxy import Proxy


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing is given up sooner."""
    monkeypatch.setattr(connection, "ANSWER_S", 1.0)
    monkeypatch.setattr(link, "PING_S", 0.1)
    monkeypatch.setattr(link, "PONG_S", 0.5)


@asynccontextmanager
async def proxied(servers: Servers) -> AsyncIterator[tuple[Proxy, JetStreamLog, JetStreamLog]]:
    """A log of two, one of which is connected by a proxy."""
    name = new_name()
    async with (
        Proxy(servers.all[0].port) as proxy,
        opened(servers.urls, name) as other,
        opened(proxy.url, name) as log,
    ):
        yield proxy, log, other


async def check(log: JetStreamLog, given: list[int], sent: list[bytes]) -> None:
    """What was sent is in the log, once each, in that order, where it was said to be, and nothing else."""
    read = await frames_up_to(log, await log.last())
    assert [logged.frame for logged in read] == sent
    assert [logged.position for logged in read] == given


async def test_an_append_whose_acknowledgement_is_lost_is_acknowledged_where_it_is(servers: Servers) -> None:
    async with proxied(servers) as (proxy, log, other):
        given = await log.append([b"zero"])
        for frames in ([b"one"], [b"two", b"three"]):
            passed = proxy.passed
            proxy.mute()
            call = asyncio.create_task(log.append(frames))
            given += await asyncio.wait_for(call, WATCHDOG_S)
            assert proxy.passed != passed
        await check(other, given, [b"zero", b"one", b"two", b"three"])
        await check(log, given, [b"zero", b"one", b"two", b"three"])


@pytest.mark.parametrize("frames", [[b"stuck"], [b"stuck", b"as well"]])
async def test_what_was_stuck_is_refused_when_it_arrives_behind_what_came_later(
    servers: Servers, frames: list[bytes]
) -> None:
    async with proxied(servers) as (proxy, log, other):
        proxy.hold()
        given = await asyncio.wait_for(log.append(frames), WATCHDOG_S)
        given += await log.append([b"later"])
        passed = proxy.held
        assert passed > sum(map(len, frames)), "the first try is still on its way"
        proxy.release()
        await proxy.arrived()
        given += await log.append([b"last"])
        await check(other, given, [*frames, b"later", b"last"])


async def test_a_batch_that_is_cut_anywhere_is_in_the_log_whole_and_once(servers: Servers) -> None:
    chance = seeded()
    async with proxied(servers) as (proxy, log, other):
        given, sent = list[int](), list[bytes]()
        for number in range(20):
            frames = [b"%d %d %s" % (number, each, bytes(100)) for each in range(5)]
            proxy.cut_after(chance.randrange(1, 1600))
            given += await asyncio.wait_for(log.append(frames), WATCHDOG_S)
            sent += frames
        assert proxy.connections > 10
        await check(other, given, sent)


async def test_a_reader_whose_connection_is_cut_again_and_again_misses_nothing(servers: Servers) -> None:
    async with proxied(servers) as (proxy, log, other):
        sent = [b"%d" % number + bytes(10_000) for number in range(600)]
        given = [position for at in range(0, 600, 50) for position in await other.append(sent[at : at + 50])]
        read = list[Logged]()
        reading = log.read(given[0] - 1)
        proxy.cut()
        await log.last()  # over a new connection: nothing that was sent on before is kept
        proxy.back_bytes_max = 1 << 20
        proxy.cut()
        while len(read) < 600:
            read.append(await anext(reading))
        assert proxy.connections > 4
        assert [logged.position for logged in read] == given and [logged.frame for logged in read] == sent
        await reading.aclose()


async def test_who_waits_for_frames_gets_those_that_came_while_it_was_cut_off(servers: Servers) -> None:
    async with proxied(servers) as (proxy, log, other):
        waiting = asyncio.create_task(frames_up_to(log, await log.last() + 2))
        proxy.shut = True
        proxy.cut()
        await other.append([b"one", b"two"])
        proxy.shut = False
        assert [logged.frame for logged in await asyncio.wait_for(waiting, WATCHDOG_S)] == [b"one", b"two"]


async def test_what_the_servers_send_on_is_not_asked_for(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxied(servers) as (_, log, other):
        last = await log.last()
        reading = log.read(last - 1)
        assert (await anext(reading)).position == last
        await other.append([b"heard of"])
        assert (await anext(reading)).frame == b"heard of"
        monkeypatch.setattr(Stream, "read", None)
        given = await other.append([b"%d" % number for number in range(300)])
        assert [(await anext(reading)).position for _ in given] == given
        await reading.aclose()


async def test_a_reader_that_is_told_of_nothing_asks_by_itself(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.Session, "_on_news", lambda self, message: None)
    async with proxied(servers) as (_, log, other):
        last = await log.last()
        waiting = asyncio.create_task(frames_up_to(log, last + 1, last))
        await asyncio.sleep(0)
        await other.append([b"one"])
        assert [logged.frame for logged in await asyncio.wait_for(waiting, WATCHDOG_S)] == [b"one"]


async def test_a_call_that_is_cancelled_comes_before_those_that_begin_later_or_never(servers: Servers) -> None:
    async with proxied(servers) as (proxy, log, other):
        proxy.hold()
        under_way = asyncio.create_task(log.append([b"under way"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        queued = asyncio.create_task(log.append([b"queued"]))
        await asyncio.sleep(0)
        for call in (under_way, queued):
            call.cancel()
        later = await asyncio.wait_for(log.append([b"later"]), WATCHDOG_S)
        proxy.release()
        read = await frames_up_to(other, await other.last())
        assert [logged.frame for logged in read] in ([b"under way", b"later"], [b"later"])
        assert read[-1].position == later[0]


async def test_an_append_that_was_cut_away_unacknowledged_is_not_made_again_and_says_what_is_not_known(
    servers: Servers,
) -> None:
    async with proxied(servers) as (proxy, log, other):
        (zero,) = await log.append([b"zero"])
        proxy.mute()
        proxy.shut = True
        call, asked = asyncio.create_task(log.append([b"once"])), asyncio.create_task(log.last())
        assert [logged.frame for logged in await frames_up_to(other, zero + 1, zero)] == [b"once"]
        (position,) = await other.append([b"kept"])
        await other.truncate_before(position)
        proxy.shut = False
        with pytest.raises(LogUnreachableError, match="not known") as lost:
            await asyncio.wait_for(call, WATCHDOG_S)
        assert (lost.value.position, lost.value.first) == (zero, position)
        assert await asyncio.wait_for(asked, WATCHDOG_S) > position, "who only asks is told by the next try"
        given = await log.append([b"next"])
        read = await frames_up_to(other, given[0], position - 1)
        assert [logged.frame for logged in read] == [b"kept", b"next"]


async def test_an_append_that_no_server_took_is_made_again_though_the_log_was_cut_before_it(servers: Servers) -> None:
    async with proxied(servers) as (proxy, log, other):
        await log.append([b"zero"])
        position = (await other.append([b"known", b"kept"]))[-1]
        await frames_up_to(log, position)
        proxy.hold()
        proxy.shut = True
        call = asyncio.create_task(log.append([b"once"]))
        await other.truncate_before(position)
        proxy.shut = False
        given = await asyncio.wait_for(call, WATCHDOG_S)
        assert [logged.frame for logged in await frames_up_to(other, given[0], position - 1)] == [b"kept", b"once"]


async def test_a_frame_that_began_an_opening_and_was_stuck_is_not_taken_for_one_that_was_appended_later(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, stuck = Stream.add, list[tuple[Stream, str, Sequence[bytes], int]]()

    async def stick(asked: Stream, subject: str, frames: Sequence[bytes], expected: int) -> stream.Outcome:
        if stuck:
            return await add(asked, subject, frames, expected)
        stuck.append((asked, subject, frames, expected))
        return stream.Later("it is stuck")

    name = new_name()
    async with opened(servers.urls, name) as other:
        monkeypatch.setattr(Stream, "add", stick)
        async with opened(servers.urls, name) as log:
            (kept,) = await other.append([b"kept"])
            await other.truncate_before(kept)
            assert isinstance(await add(*stuck[0]), stream.Added)
            given = await asyncio.wait_for(log.append([b"once"]), WATCHDOG_S)
            read = await frames_up_to(other, await other.last(), kept - 1)
            assert [(one.position, one.frame) for one in read] == [(kept, b"kept"), (given[0], b"once")]


async def test_what_was_under_way_as_a_log_was_closed_comes_before_what_its_next_opening_appends_or_never(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CLOSE_S", 0.1)
    monkeypatch.setattr(link, "PONG_S", WATCHDOG_S)  # it is not sent again
    async with proxied(servers) as (proxy, log, other):
        (first,) = await log.append([b"first"])
        proxy.hold()
        stuck = asyncio.create_task(log.append([b"stuck"]))
        await asyncio.sleep(0)
        await log.aclose()
        with pytest.raises(LogFailedError):
            await stuck
        await log.open()
        (later,) = await log.append([b"later"])
        assert proxy.held > len(b"stuck")
        proxy.release()
        await proxy.arrived()
        read = await frames_up_to(other, await log.last())  # by the server to which it was stuck
        assert [(logged.position, logged.frame) for logged in read] == [(first, b"first"), (later, b"later")]


async def test_a_log_that_is_closed_while_nobody_answers_says_what_is_not_known(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CLOSE_S", 0.2)
    async with proxied(servers) as (proxy, log, _):
        proxy.shut = True
        proxy.cut()
        calls = [asyncio.create_task(log.append([b"%d" % number])) for number in range(2)]
        await asyncio.sleep(0)
        waiting = asyncio.create_task(frames_up_to(log, 99))
        await asyncio.sleep(0)
        await log.aclose()
        with pytest.raises(LogFailedError, match="only reading on tells"):
            await calls[0]
        with pytest.raises((LogFailedError, LogClosedError)):
            await calls[1]
        with pytest.raises(LogClosedError):
            await waiting


async def test_a_connection_whose_end_fails_half_way_leaves_no_task_behind(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asyncio.all_tasks()
    ended = link.Link()
    await ended.connect(servers.all[0].url, {})
    await ended.listen("anything", lambda message: None)
    client = ended._client
    monkeypatch.setattr(client, "_pending_data_size", 1)
    monkeypatch.setattr(client._transport, "writelines", None)
    with pytest.raises(TypeError):
        await client._close(client.CLOSED, True)
    await ended.close()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before


async def test_a_cut_that_no_server_took_is_made_when_there_is_one_again(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_API_S", 0.2)
    monkeypatch.setattr(session, "CUT_AGAIN_S", 0.05)
    name = new_name()
    async with Proxy(servers.all[0].port) as proxy, opened(proxy.url, name) as log:
        positions = await log.append([b"frame"] * 5)
        proxy.shut = True
        proxy.cut()
        await log.truncate_before(positions[1])
        await log.truncate_before(positions[3])
        await log.truncate_before(positions[2])
        proxy.shut = False
        async with asyncio.timeout(WATCHDOG_S), stream_of(servers.urls, name) as asked:
            while (await asked.info()).state.first_seq != positions[3]:
                pass


async def test_frames_of_a_stream_that_took_the_place_of_the_log_are_not_read(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "LOOK_S", 60.0)
    name, read = new_name(), list[Logged]()
    async with opened(servers.urls, name) as log, stream_of(servers.urls, name) as asked:
        await log.append([b"ours"])
        reading = log.read(0)
        while not read or read[-1].frame != b"ours":
            read.append(await anext(reading))
        await asked._api(f"STREAM.DELETE.{name}")
        async with opened(servers.urls, name) as other:
            await other.append([b"theirs"] * 5)
            with pytest.raises(LogReplacedError):
                await asyncio.wait_for(anext(reading), WATCHDOG_S)


async def test_what_is_asked_of_the_leader_of_a_stream_is_asked_again_until_there_is_one_who_answers(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_API_S", 2 * WATCHDOG_S)
    monkeypatch.setattr(stream, "AGAIN_S", 0.01)
    heard = list[link.Message]()
    async with stream_of(servers.urls, new_name()) as asked:

        def hear(message: link.Message) -> None:
            heard.append(message)
            if len(heard) == 3:
                asked.connection.send(link.Outgoing(message.reply, b"{}"))

        await asked.connection.listen("$JS.API.NOBODY.ANSWERS", hear)
        async with asyncio.timeout(WATCHDOG_S):
            assert await asked._api("NOBODY.ANSWERS") == b"{}"
    assert len({message.reply for message in heard}) == 1
