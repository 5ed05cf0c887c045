"""What every log of a node does, whatever it is made of."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shardengine import FrameTooLargeError, LogClosedError, LogTruncatedError
from shardengine.engine.cluster.servers import Servers
from shardengine.node import JetStreamLog, LocalLog, Log, Logged, LogState, MemoryLog
from tests.jetstream import is_own
from tests.killing import WATCHDOG_S, seeded

SEGMENT = 8 << 10


class Place:
    """Where one log lives: `log` is it. `again()`: as another process finds it, if it can. `dense`: it has no frames
    but those that are appended, and no holes."""

    def __init__(self, make: Callable[[], Log]) -> None:
        self.log = make()
        self.dense = not isinstance(self.log, JetStreamLog)
        self._make = make

    def check_positions(self, positions: list[int], count: int, after: int) -> None:
        """They are those of `count` frames that were appended by one call, when `after` was the last one."""
        assert len(positions) == count
        first = positions[0]
        assert positions == list(range(first, first + count))
        assert first == after + 1 if self.dense else first > after

    def check_last(self, last: int, expected: int) -> None:
        """The frame at `expected` is the last one that was appended."""
        assert last == expected if self.dense else last >= expected

    def again(self) -> Log:
        if not isinstance(self.log, MemoryLog):
            self.log = self._make()
        return self.log


def jetstream(path: Path, request: pytest.FixtureRequest) -> JetStreamLog:
    """A stream for each directory, on servers that all tests share."""
    servers: Servers = request.getfixturevalue("servers")
    return JetStreamLog(servers.urls, hashlib.sha256(bytes(path)).hexdigest()[:16])


LOGS: dict[str, Callable[[Path, pytest.FixtureRequest], Log]] = {
    "memory": lambda path, request: MemoryLog(),
    "local": lambda path, request: LocalLog(path / "log", segment_bytes=SEGMENT),
    "jetstream": jetstream,
}


@pytest.fixture(params=LOGS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(lambda: LOGS[request.param](tmp_path, request))


@asynccontextmanager
async def opened(log: Log) -> AsyncIterator[LogState]:
    state = await log.open()
    try:
        yield state
    finally:
        await log.aclose()


async def frames_of(log: Log, after: int, count: int) -> list[Logged]:
    """The first `count` frames behind `after`, of those that were appended."""
    found = list[Logged]()
    if count:
        async for logged in log.read(after):
            if not is_own(logged):
                found.append(logged)
            if len(found) == count:
                break
    return found


async def read_on(reading: AsyncIterator[Logged], read: list[Logged]) -> None:
    async for logged in reading:
        read.append(logged)


async def frames_up_to(log: Log, last: int) -> list[Logged]:
    """Those that were appended, of the frames up to position `last`."""
    found = list[Logged]()
    if last:
        async for logged in log.read(0):
            found.append(logged)
            if logged.position >= last:
                break
    return [logged for logged in found if not is_own(logged)]


def named(start: int, count: int) -> list[bytes]:
    return [b"frame %d" % number for number in range(start, start + count)]


async def test_what_is_appended_is_read_in_order_with_rising_positions_and_times(place: Place) -> None:
    async with opened(place.log) as state:
        assert isinstance(place.log, Log)
        assert state.first == 1
        place.check_last(state.last, 0)
        positions = await place.log.append(named(0, 3))
        place.check_positions(positions, 3, state.last)
        more = await place.log.append([b"", bytes(500)])
        place.check_positions(more, 2, positions[-1])
        positions += more
        read = await frames_of(place.log, 0, 5)
        assert [logged.position for logged in read] == positions
        assert [logged.frame for logged in read] == [*named(0, 3), b"", bytes(500)]
        times = [logged.time_ms for logged in read]
        assert times == sorted(times) and times[0] > 1_600_000_000_000
        place.check_last(await place.log.last(), positions[-1])


async def test_calls_that_overlap_keep_their_frames_together_and_no_position_twice(place: Place) -> None:
    async with opened(place.log):
        sent = [named(1000 * call, 1 + call % 7) for call in range(200)]
        given = await asyncio.gather(*(place.log.append(frames) for frames in sent))
        for positions, frames in zip(given, sent, strict=True):
            assert positions == list(range(positions[0], positions[0] + len(frames)))
        flat = dict(zip(itertools.chain(*given), itertools.chain(*sent), strict=True))
        assert len(flat) == sum(map(len, sent))
        assert {logged.position: logged.frame for logged in await frames_of(place.log, 0, len(flat))} == flat


async def test_what_was_acknowledged_is_there_after_closing_and_opening_again(place: Place) -> None:
    async with opened(place.log) as before:
        positions = await place.log.append(named(0, 400))
        read = await frames_of(place.log, 0, 400)
    async with opened(place.again()) as state:
        assert (state.identity, state.first) == (before.identity, 1)
        place.check_last(state.last, positions[-1])
        assert await frames_of(place.log, 0, 400) == read
        more = await place.log.append([b"more"])
        place.check_positions(more, 1, state.last)
    async with opened(place.again()) as state:
        place.check_last(state.last, more[0])
        place.check_last(await place.log.last(), state.last)
        behind = await frames_of(place.log, positions[398], 2)
        assert [logged.frame for logged in behind] == [b"frame 399", b"more"]


async def test_two_logs_have_two_identities(place: Place, tmp_path: Path) -> None:
    async with (
        opened(place.log) as one,
        opened(LocalLog(tmp_path / "other", segment_bytes=SEGMENT)) as other,
        opened(MemoryLog()) as third,
    ):
        assert len({one.identity, other.identity, third.identity}) == 3
        assert 0 < len(one.identity) <= 128


async def test_a_reader_at_the_end_waits_for_the_next_frame_and_many_read_at_once(place: Place) -> None:
    async with opened(place.log) as state:
        readers = [
            asyncio.create_task(frames_of(place.log, state.last + after, 300 - after)) for after in (0, 0, 0, 150, 299)
        ]
        for start in range(0, 300, 10):
            await place.log.append(named(start, 10))
            await asyncio.sleep(0)
        for reader, after in zip(readers, (0, 0, 0, 150, 299), strict=True):
            assert [logged.frame for logged in await reader] == named(after, 300 - after)


async def test_a_reader_that_is_cancelled_takes_nobody_along(place: Place) -> None:
    async with opened(place.log):
        gone, stays = (asyncio.create_task(frames_of(place.log, 0, 1)) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        await place.log.append([b"one"])
        assert [logged.frame for logged in await stays] == [b"one"] and gone.cancelled()


@pytest.mark.parametrize("after", [0, 1, 57, 250, 398, 399])
async def test_reading_begins_behind_any_position(place: Place, after: int) -> None:
    async with opened(place.log):
        positions = [0, *await place.log.append(named(0, 400))]
    async with opened(place.again()):
        read = await frames_of(place.log, positions[after], 400 - after)
        assert [logged.frame for logged in read] == named(after, 400 - after)


async def test_what_was_cut_away_is_refused_with_the_numbers_and_the_rest_stays(place: Place) -> None:
    async with opened(place.log):
        positions = await place.log.append(named(0, 1000))
        await place.log.truncate_before(positions[900])
    async with opened(place.again()) as state:
        assert 1 < state.first <= positions[900]
        place.check_last(state.last, positions[-1])
        with pytest.raises(LogTruncatedError) as refused:
            await frames_of(place.log, state.first - 2, 1)
        assert refused.value.facts == {"first": state.first, "after": state.first - 2}
        kept = sum(position >= state.first for position in positions)
        read = await frames_of(place.log, state.first - 1, kept)
        assert [logged.frame for logged in read] == named(1000 - kept, kept)
        await place.log.truncate_before(5)
        await place.log.truncate_before(10_000)
        place.check_positions(await place.log.append([b"more"]), 1, state.last)


async def test_a_reader_whose_place_is_cut_away_is_told(place: Place) -> None:
    async with opened(place.log):
        positions = await place.log.append(named(0, 1000))
        reading = place.log.read(0)
        assert (await anext(reading)).position == 1
        await place.log.truncate_before(positions[-1])
        with pytest.raises(LogTruncatedError):
            async for _ in reading:
                pass


async def test_who_waits_for_a_frame_is_told_when_the_log_is_closed(place: Place) -> None:
    async with opened(place.log):
        await place.log.append(named(0, 3))
        waiting = [asyncio.create_task(frames_of(place.log, after, 4)) for after in (0, 2)]
        in_the_middle = place.log.read(0)
        read = [await anext(in_the_middle)]
        await asyncio.sleep(0)
    for reader in waiting:
        with pytest.raises(LogClosedError):
            await reader
    with pytest.raises(LogClosedError):
        await read_on(in_the_middle, read)
    assert [logged.frame for logged in read if not is_own(logged)] == named(0, len(read) - is_own(read[0]))
    await place.log.aclose()


async def test_appends_under_way_end_before_the_log_is_closed(place: Place) -> None:
    async with opened(place.log):
        calls = [asyncio.create_task(place.log.append(named(number, 2))) for number in range(50)]
        await asyncio.sleep(0)
    positions = sorted(itertools.chain(*[call.result() for call in calls]))
    assert len(set(positions)) == 100
    assert not place.dense or positions == list(range(1, 101))
    async with opened(place.again()) as state:
        place.check_last(state.last, positions[-1])
        assert [logged.position for logged in await frames_of(place.log, 0, 100)] == positions


async def test_a_cut_under_way_ends_before_the_log_is_closed(place: Place) -> None:
    async with opened(place.log):
        positions = await place.log.append(named(0, 1000))
        cutting = asyncio.create_task(place.log.truncate_before(positions[899]))
        await asyncio.sleep(0)
    await asyncio.wait_for(cutting, WATCHDOG_S)


async def test_a_log_that_is_not_open_is_refused_by_name(place: Place) -> None:
    async def refused() -> None:
        for call in (
            place.log.append([b"x"]),
            place.log.last(),
            place.log.truncate_before(1),
            anext(place.log.read(0)),
        ):
            with pytest.raises(LogClosedError):
                await call

    await refused()
    await place.log.aclose()
    async with opened(place.log):
        pass
    await refused()


async def test_no_frames_are_appended_at_once_and_a_frame_too_long_is_refused_whole(place: Place) -> None:
    async with opened(place.log) as state:
        assert await place.log.append([]) == []
        longest = bytes(state.frame_bytes_max)
        with pytest.raises(FrameTooLargeError) as refused:
            await place.log.append([b"small", longest + b"x"])
        assert (refused.value.size, refused.value.limit) == (len(longest) + 1, len(longest))
        last = await place.log.last()
        place.check_last(last, 0)
        place.check_positions(await place.log.append([longest] * 9), 9, last)
    async with opened(place.again()):
        assert [logged.frame for logged in await frames_of(place.log, 0, 9)] == [longest] * 9


async def test_a_call_that_is_cancelled_harms_nobody_else(place: Place) -> None:
    async with opened(place.log):
        cancelled = [asyncio.create_task(place.log.append([b"cancelled %d" % number])) for number in range(20)]
        others = [asyncio.create_task(place.log.append([b"other %d" % number])) for number in range(20)]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        positions = [position for each in await asyncio.gather(*others) for position in each]
        last = await place.log.last()
        found = {logged.position: logged.frame for logged in await frames_up_to(place.log, last)}
        assert [found[position] for position in positions] == [b"other %d" % number for number in range(20)]


class Model:
    """A dumb log: a dict."""

    def __init__(self) -> None:
        self.frames: dict[int, bytes] = {}
        self.first, self.last = 1, 0

    def append(self, frames: list[bytes], positions: list[int]) -> None:
        self.frames |= dict(zip(positions, frames, strict=True))
        self.last = positions[-1]


async def step(place: Place, model: Model, chance: random.Random, state: LogState) -> None:
    """Do something to both, and compare."""
    what = chance.random()
    if what < 0.6:
        sizes = chance.choices([0, 1, 7, 8, 9, 300, SEGMENT // 4], k=chance.choice([1, 1, 2, 20]))
        frames = [chance.randbytes(size) for size in sizes]
        positions = await place.log.append(frames)
        place.check_positions(positions, len(frames), model.last)
        model.append(frames, positions)
    elif what < 0.7:
        position = chance.randint(0, model.last + 1)
        await place.log.truncate_before(position)
        await place.log.aclose()
        first = (await place.again().open()).first
        assert model.first <= first <= max(position, model.first)
        model.first = first
        model.frames = {place: frame for place, frame in model.frames.items() if place >= first}
    elif what < 0.8:
        await place.log.aclose()
        again = await place.again().open()
        assert again.identity == state.identity
        place.check_last(again.last, model.last)
    else:
        after = chance.randint(model.first - 1, model.last)
        kept = {place: frame for place, frame in model.frames.items() if place > after}
        read = {logged.position: logged.frame for logged in await frames_of(place.log, after, len(kept))}
        assert read == kept


async def test_random_operations_give_what_a_dict_gives(place: Place) -> None:
    chance, model = seeded(), Model()
    state = await place.log.open()
    for _ in range(150):
        await step(place, model, chance, state)
    await place.log.aclose()
