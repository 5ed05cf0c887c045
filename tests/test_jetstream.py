"""A log on JetStream among others: its life, who else uses it, and when it is full, cut, damaged or gone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest

from shardengine import (
    ConfigError,
    EngineStateError,
    FrameTooLargeError,
    LogDamagedError,
    LogFullError,
    LogRegressedError,
    LogReplacedError,
    LogTruncatedError,
    LogUnreachableError,
    WrongLoopError,
    run,
)
from shardengine.engine.cluster.servers import Servers
from shardengine.engine.node.arrivals import Arrivals
from shardengine.engine.node.jetstream import guarding, reading, session
from shardengine.node import JetStreamLog, Logged, SharedLog
from tests.jetstream import config, frames_up_to, make, new_name, opened, stream_of
from tests.killing import ROOT, WATCHDOG_S, environment

# ---- before it is opened ---------------------------------------------------------------------------------------------


def test_without_nats_py_the_name_is_there_and_a_log_is_refused_with_what_to_install() -> None:
    program = (
        "import sys\nsys.modules['nats'] = None\n"
        "from shardengine import EngineError\nfrom shardengine.node import JetStreamLog, Node\n"
        "try:\n    JetStreamLog('nats://a', 'orders')\nexcept EngineError as error:\n    print(error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=WATCHDOG_S,
    )
    assert done.stdout == "pip install 'shardengine[nats]'\n"


@pytest.mark.parametrize(
    ("servers", "each"),
    [
        ("nats://a", ["nats://a"]),
        ("nats://a,b:4223, c", ["nats://a", "nats://b:4223", "nats://c"]),
        ("a,tls://b,c", ["nats://a", "tls://b", "tls://c"]),
        (["nats://a,b", "c:1"], ["nats://a", "nats://b", "nats://c:1"]),
    ],
)
def test_servers_are_named_in_one_line_or_several(servers: Any, each: list[str]) -> None:
    assert JetStreamLog(servers, "orders")._servers == each


@pytest.mark.parametrize(
    ("stream", "more", "said"),
    [
        ("", {}, "stream is ''"),
        ("a.b", {}, "stream is 'a.b'"),
        ("_a", {}, "stream is '_a'"),
        ("a" * 65, {}, "stream is"),
        ("orders", {"replicas": 0}, "replicas is 0"),
        ("orders", {"replicas": True}, "replicas is True"),
        (7, {}, "stream is 7"),
        ("orders", {"member_timeout": 0.5}, "member_timeout is 0.5"),
        ("orders", {"member_timeout": "30"}, "member_timeout is '30'"),
        ("orders", {"connect": {"usr": "me"}}, "no option 'usr'"),
        ("orders", {"connect": {"allow_reconnect": True}}, "no option 'allow_reconnect'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(stream: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JetStreamLog("nats://a", stream, **more)


@pytest.mark.parametrize("servers", [" ", "nats://", [], None, b"nats://a", ["nats://a", 1]])
def test_what_names_no_servers_is_refused(servers: Any) -> None:
    with pytest.raises(ConfigError, match="servers"):
        JetStreamLog(servers, "orders")


async def test_what_was_heard_takes_no_more_memory_than_it_may_however_short_the_frames_are() -> None:
    nothing: Any = None
    reader = reading.Reader(nothing, nothing, Arrivals())
    tracemalloc.start()
    try:
        for position in range(1, 80_000):
            reader.heard(Logged(1 << 40 | position, 1 << 40 | position, position.to_bytes(4)))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reading.HEARD_BYTES / 2 < kept < reading.HEARD_BYTES


async def test_no_message_holds_what_one_signs_in_with(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "OPEN_S", 0.3)
    log = JetStreamLog("nats://me:a/s@cret@127.0.0.1:1,tok%40en@127.0.0.1:2", "orders")
    with pytest.raises(LogUnreachableError) as refused:
        await log.open()
    assert sorted(refused.value.servers) == ["nats://127.0.0.1:1", "nats://127.0.0.1:2"]
    for secret in ("me:", "cret", "tok"):
        assert secret not in str(refused.value) + caplog.text


# ---- its life --------------------------------------------------------------------------------------------------------


async def test_servers_that_cannot_be_reached_are_named_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "OPEN_S", 0.5)
    log = JetStreamLog("nats://127.0.0.1:1,127.0.0.1:2", "orders")
    with pytest.raises(LogUnreachableError, match="could not be opened in") as refused:
        await log.open()
    assert sorted(refused.value.servers) == ["nats://127.0.0.1:1", "nats://127.0.0.1:2"]
    await log.aclose()
    assert capfd.readouterr() == ("", "")


async def test_a_log_is_opened_once_at_a_time_and_can_be_opened_again(servers: Servers) -> None:
    name = new_name()
    async with opened(servers.urls, name, replicas=1) as log:
        assert isinstance(log, SharedLog)
        with pytest.raises(EngineStateError, match="open already"):
            await log.open()
        await log.append([b"one"])
    state = await log.open()
    assert [logged.frame for logged in await frames_up_to(log, state.last)] == [b"one"]
    await log.aclose()


def test_a_log_whose_loop_has_ended_can_be_opened_in_another_one(servers: Servers) -> None:
    log = JetStreamLog(servers.urls, new_name())

    async def leave_open() -> None:
        await log.open()
        await log.append([b"one"])

    async def again() -> None:
        for call in (log.append([b"lost"]), log.last(), anext(log.read(0))):
            with pytest.raises(WrongLoopError):
                await call
        await log.aclose()
        state = await log.open()
        assert [logged.frame for logged in await frames_up_to(log, state.last)] == [b"one"]
        await log.aclose()

    run(leave_open)
    run(again)


async def test_a_cut_beyond_the_end_leaves_the_newest_frame_and_moves_no_position(servers: Servers) -> None:
    async with opened(servers.urls, new_name(), replicas=1) as log:
        positions = await log.append([b"one", b"two"])
        await log.truncate_before(10_000)
        assert await log.append([b"three"]) == [positions[-1] + 1]
        read = await frames_up_to(log, positions[-1] + 1, positions[0])
        assert [logged.frame for logged in read] == [b"two", b"three"]


async def test_two_who_make_a_log_at_the_same_moment_have_the_same_one(servers: Servers) -> None:
    name = new_name()
    logs = [JetStreamLog(servers.urls, name) for _ in range(4)]
    states = await asyncio.gather(*(log.open() for log in logs))
    assert len({state.identity for state in states}) == 1
    assert sorted(state.last for state in states) == [1, 2, 3, 4]
    for log in logs:
        await log.aclose()


async def test_many_who_append_at_once_all_read_the_same_in_the_same_order(servers: Servers) -> None:
    name = new_name()
    logs = [JetStreamLog(servers.urls, name) for _ in range(3)]
    for log in logs:
        await log.open()
    sent = {
        log: [[b"%d %d %d" % (at, call, n) for n in range(1 + call % 4)] for call in range(40)]
        for at, log in enumerate(logs)
    }
    given = {log: await asyncio.gather(*(log.append(frames) for frames in sent[log])) for log in logs}
    last = await logs[0].last()
    read = [await frames_up_to(log, last) for log in logs]
    assert read[0] == read[1] == read[2]
    where = {logged.position: logged.frame for logged in read[0]}
    for log in logs:
        for positions, frames in zip(given[log], sent[log], strict=True):
            assert [where.pop(position) for position in positions] == frames
            assert positions == list(range(positions[0], positions[0] + len(frames)))
        flat = [position for positions in given[log] for position in positions]
        assert flat == sorted(flat)
    assert not where
    for log in logs:
        await log.aclose()


async def test_the_end_is_behind_what_anybody_was_told_of_before(servers: Servers) -> None:
    name = new_name()
    async with opened(servers.urls, name) as one, opened(servers.urls, name) as other:
        for number in range(20):
            (position,) = await one.append([b"%d" % number])
            assert await other.last() > position
        calls = [asyncio.create_task(other.last()) for _ in range(10)]
        assert len(set(await asyncio.gather(*calls))) <= 2, "calls that wait share a frame"


async def test_more_than_the_servers_take_at_once_is_refused_and_nothing_of_it_is_in_the_log(servers: Servers) -> None:
    async with opened(servers.urls, new_name(), replicas=1) as log:
        with pytest.raises(FrameTooLargeError, match="1001 frames"):
            await log.append([b"x"] * 1001)
        positions = await log.append([b"y"] * 1000)
        assert len(await frames_up_to(log, positions[-1])) == 1000


async def test_the_longest_frame_is_what_the_stream_takes_and_a_longer_one_is_refused_even_if_that_has_changed(
    servers: Servers,
) -> None:
    name = new_name()
    async with stream_of(servers.urls, name) as stream:
        await make(stream, config(name, max_msg_size=100_000))
        log = JetStreamLog(servers.urls, name, replicas=1)
        most = (await log.open()).frame_bytes_max
        assert 99_000 < most < 100_000
        with pytest.raises(FrameTooLargeError, match=f"this log takes {most}"):
            await log.append([bytes(most + 1)])
        await log.append([bytes(most)])
        await stream._api(f"STREAM.UPDATE.{name}", {**(await stream.info()).config, "max_msg_size": 70_000})
        for frames in ([bytes(most)], [b"small", bytes(most)]):
            with pytest.raises(FrameTooLargeError, match="more than the stream takes"):
                await log.append(frames)
        (position,) = await log.append([b"small"])
        assert [len(logged.frame) for logged in await frames_up_to(log, position)] == [most, 5]
        await log.aclose()


async def append_until_refused(log: JetStreamLog, frames: list[bytes], positions: list[int]) -> None:
    while True:
        positions += await log.append(frames)


async def test_a_full_log_refuses_frames_can_be_opened_read_and_cut_and_takes_frames_again(servers: Servers) -> None:
    name = new_name()
    async with stream_of(servers.urls, name) as stream:
        await make(stream, config(name, 3, max_bytes=256 << 10))
    async with opened(servers.urls, name) as log:
        positions = list[int]()
        with pytest.raises(LogFullError) as refused:
            await append_until_refused(log, [bytes(20 << 10)] * 2, positions)
        assert refused.value.size == 40 << 10 and len(positions) >= 8
        for frames in ([bytes(1000)], [b""]):
            with pytest.raises(LogFullError):
                await append_until_refused(log, frames, positions)
        with pytest.raises(LogFullError):
            await log.last()
    async with opened(servers.urls, name) as log:
        assert [logged.position for logged in await frames_up_to(log, positions[-1])] == positions
        with pytest.raises(LogFullError):
            await log.append([b"one"])
        await log.truncate_before(positions[5])
        (position,) = await log.append([b"two"])
        assert (await frames_up_to(log, position, positions[5] - 1))[-1].frame == b"two"


# ---- when it is not what it was --------------------------------------------------------------------------------------


async def test_who_was_cut_away_goes_on_appending_and_is_told_when_it_reads(servers: Servers) -> None:
    name = new_name()
    async with opened(servers.urls, name) as one, opened(servers.urls, name) as other:
        await one.append([b"one"])
        began = one.read(0)
        await anext(began)
        positions = await other.append([b"more"] * 300)
        await other.truncate_before(positions[-1])
        (position,) = await one.append([b"two"])
        assert position > positions[-1]
        with pytest.raises(LogTruncatedError) as refused:
            await frames_up_to(one, position)
        assert (refused.value.first, refused.value.after) == (positions[-1], 0)
        read = await frames_up_to(one, position, positions[-1] - 1)
        assert [logged.frame for logged in read] == [b"more", b"two"]
        await began.aclose()


async def test_a_hole_that_stays_is_damage_and_named_and_what_is_around_it_is_read(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "HOLE_S", 0.5)
    name = new_name()
    async with opened(servers.urls, name) as log, stream_of(servers.urls, name) as stream:
        before = await log.append([b"before"])
        async with opened(servers.urls, name) as other:
            gone = await other.append([b"gone"] * 2)
            subject = other._usable().appender._subject
        behind = await log.append([b"behind"])
        await stream._api(f"STREAM.PURGE.{name}", {"filter": subject})
        read = list[Logged]()
        async with opened(servers.urls, name) as late:  # to which nothing of that was sent on
            with pytest.raises(LogDamagedError, match="are missing") as damaged:
                await read_on(late, 0, read)
            assert (damaged.value.first, damaged.value.last) == (gone[0] - 1, gone[-1])
            assert read[-1].position == before[0] == gone[0] - 2
            assert (await frames_up_to(late, behind[0], gone[-1]))[-1].frame == b"behind"


async def read_on(log: JetStreamLog, after: int, read: list[Logged]) -> None:
    async for logged in log.read(after):
        read.append(logged)


async def test_who_waits_at_the_end_of_a_log_that_is_cut_away_whole_is_told(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "LOOK_S", 0.05)
    name = new_name()
    async with opened(servers.urls, name) as log, stream_of(servers.urls, name) as stream:
        last = await log.last()
        waiting = asyncio.create_task(frames_up_to(log, last + 9, last - 1))
        await frames_up_to(log, last)
        await stream.purge(last + 5)
        with pytest.raises(LogTruncatedError):
            await asyncio.wait_for(waiting, WATCHDOG_S)


def test_what_servers_say_is_believed_when_they_go_on_saying_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(f"{guarding.__name__}.monotonic", lambda: now)
    regressed, replaced = LogRegressedError("it ends early"), LogReplacedError("it is another one")
    doubt = guarding.Doubt()
    for error in (regressed, replaced, regressed):  # each begins anew
        doubt.heard(error)
        for _ in range(14):
            now += 1
            doubt.heard(error)
    doubt.settled()
    for _ in range(8):  # of a pause without an answer two seconds count
        doubt.heard(regressed)
        now += 1000
    with pytest.raises(LogRegressedError):
        doubt.heard(regressed)
    with pytest.raises(LogReplacedError):
        doubt.heard(LogReplacedError("it was made later", certain=True))


@pytest.mark.parametrize("made_anew", [False, True])
async def test_a_stream_that_is_deleted_under_an_open_log_is_told_to_all_who_wait(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, made_anew: bool
) -> None:
    monkeypatch.setattr(guarding, "BELIEVE_S", 1000.0 if made_anew else 0.5)
    monkeypatch.setattr(guarding, "LOOK_S", 0.05)
    name = new_name()
    async with opened(servers.urls, name) as log, stream_of(servers.urls, name) as stream:
        await log.append([b"one"])
        waiting = asyncio.create_task(frames_up_to(log, 9))
        await stream._api(f"STREAM.DELETE.{name}")
        if made_anew:
            await make(stream, config(name, 3))
        calls = [waiting, asyncio.create_task(log.append([b"two"])), asyncio.create_task(log.last())]
        done, _ = await asyncio.wait(calls, timeout=WATCHDOG_S)
        assert len(done) == 3
        for call in calls:
            error = call.exception()
            assert isinstance(error, LogReplacedError), error
            assert name in error.expected and (error.got is None) == (not made_anew)
        with pytest.raises(LogReplacedError):
            await log.truncate_before(2)
        if made_anew:
            assert (await stream.info()).state.last_seq == 0, "nothing was appended to the other one"


async def test_a_stream_that_is_made_anew_while_the_log_is_closed_has_another_identity(servers: Servers) -> None:
    name = new_name()
    log = JetStreamLog(servers.urls, name)
    before = await log.open()
    await log.aclose()
    async with stream_of(servers.urls, name) as stream:
        await stream._api(f"STREAM.DELETE.{name}")
    after = await log.open()
    await log.aclose()
    assert before.identity != after.identity and len(before.identity) <= 128
