"""The side that kills and judges: `Prey` is the process of tests/kill_child.py, `Judge` knows what must be left."""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType

import msgspec

from shardengine import ApplyResult
from shardengine.engine.storage.files import Lock
from shardengine.engine.verify import verify_directory
from tests import banking
from tests.deep import DEEP as DEEP  # noqa: PLC0414  # tests find it here
from tests.forking import fork
from tests.kill_child import Acknowledged, Ended, Frame, Opened, Orders, Viewed
from tests.logs import log_named, model_of, told

ROOT = Path(__file__).resolve().parent.parent
WATCHDOG_S = 60.0
VERIFY_EVERY = 20
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SHARDENGINE_")}
    return {**clean, "PYTHONPATH": str(ROOT), **extra}


def seeded() -> random.Random:
    """A source of randomness with a new seed, which a failing test shows."""
    seed = random.randrange(1, 1 << 30)
    note(f"seed {seed}")
    return random.Random(seed)


def chosen(point: str) -> bool:
    """Whether something that is one of many enumerated is gone through: about half are, by a hash of its name, so
    always the same; all of them with `HYPOTHESIS_PROFILE=deep`."""
    return DEEP or zlib.crc32(point.encode()) % 2 == 0


def workers_forked(number: int) -> bool:
    """Whether the workers of life `number` are forked (tests/nursery.py): those of every fourth one are started, which
    takes a while in which all that there is can be killed too; so are all of them with `HYPOTHESIS_PROFILE=deep`."""
    return not DEEP and number % 4 != 0


def note(text: str) -> None:
    """Shown when the test fails."""
    sys.stdout.write(f"{text}\n")


def _pidfd_of(pid: int) -> list[int]:
    """A pidfd; none when the process has ended already, as it may have before its word is read."""
    try:
        return [os.pidfd_open(pid)]
    except ProcessLookupError:
        return []


class Prey:
    """One run of tests/kill_child.py in a process group of its own. Leaving the block kills what is left of it."""

    def __init__(self, orders: Orders, errors: Path) -> None:
        self._errors = errors
        self._buffer = bytearray()
        self._ended = False
        self.workers: list[int] = []  # pidfds, as soon as their pids were told
        reading, writing = os.pipe()
        self._said = os.fdopen(reading, "rb", buffering=0)
        with errors.open("ab") as log:
            order = msgspec.json.encode(orders).decode()
            self.process = fork("tests.kill_child", [order], environment(), writing, log.fileno())
        os.close(writing)

    def __enter__(self) -> Prey:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.kill_everything()
        self.process.wait(WATCHDOG_S)
        self.process.close()
        self._said.close()
        for descriptor in self.workers:
            os.close(descriptor)

    def frames(self, until: float | None = None) -> Iterator[Frame]:
        """What it says, until it ends, or until the time `until`. A frame cut off by its death is left out."""
        pipe = self._said.fileno()
        deadline = time.monotonic() + WATCHDOG_S if until is None else until
        while True:
            while (frame := self._take()) is not None:
                if isinstance(frame, Opened):
                    self.workers = [descriptor for pid in frame.workers for descriptor in _pidfd_of(pid)]
                yield frame
            if self._ended or not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                assert self._ended or until is not None, f"it says nothing: {self.errors()}"
                return
            data = os.read(pipe, 1 << 16)
            self._ended = not data
            self._buffer += data

    def wait_for_a_word(self, seconds: float) -> None:
        """Return when it says something, or after that time."""
        select.select([self._said], [], [], seconds)

    def _take(self) -> Frame | None:
        size = int.from_bytes(self._buffer[:4], "little")
        if len(self._buffer) < 4 + size or not size:
            return None
        frame = _decoder.decode(bytes(self._buffer[4 : 4 + size]))
        del self._buffer[: 4 + size]
        return frame

    def opened(self) -> Opened:
        """Wait until it has opened the directory."""
        frame = next(self.frames(), None)
        assert isinstance(frame, Opened), f"it did not open the directory: {frame} {self.errors()}"
        return frame

    def acknowledged(self, count: int) -> Iterator[int]:
        """Wait for the next `count` acknowledgements."""
        for _, frame in zip(range(count), self.frames(), strict=False):
            assert isinstance(frame, Acknowledged), frame
            yield frame.index

    def rest(self) -> list[Frame]:
        """What it said until it ended, of which nothing was taken yet."""
        return list(self.frames())

    def kill_everything(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)

    def wait_for_workers(self) -> None:
        """Return when no worker lives any more that was there when the directory was opened."""
        for descriptor in self.workers:
            assert select.select([descriptor], [], [], WATCHDOG_S)[0], "a worker outlived its coordinator"

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")[-4000:]


class Judge:
    """What must be true of one directory, whatever was killed: the model, and where chunks ended.

    Invariant: the model stands where the directory stood when it was last opened; `acknowledged` is the newest entry
    that a caller was told of since, `_told` what they were told; `_ends` tells where the chunks ended that were sent
    since.
    """

    def __init__(self, directory: Path, shards: int, seed: int, log: str = "plain") -> None:
        self.directory = directory
        self.shards = shards
        self.model = model_of(log, seed, shards)
        self.acknowledged = 0
        self.crashes = 0
        self.views = 0
        self.redone = 0
        self._fixed = {"directory": str(directory), "shards": shards, "seed": seed, "log": log, "forked": not DEEP}
        self._log = log_named(log, seed, shards)
        self._told: list[ApplyResult] = []
        self._ends: Callable[[int], Iterator[int]] = lambda last: iter(())

    def orders(self, what: str, **more: object) -> Orders:
        return msgspec.convert({**self._fixed, "what": what, **more}, Orders)

    def prey(self, orders: Orders) -> Prey:
        return Prey(orders, self.directory.with_name("stderr"))

    def check(self, opened: Opened, orders: Orders) -> None:
        """The directory was opened without a re-delivery: is it what it has to be? `orders` say what follows."""
        index = opened.index
        assert index >= self.acknowledged, f"entry {self.acknowledged} was acknowledged, the state ends at {index}"
        assert index == self.model.index or index in self._ends(index), f"{index} is in the middle of a chunk"
        answered = {result.index: result for result in told(self.model.advance(index))}
        wrong_answers = [result for result in self._told if answered.get(result.index) != result]
        assert not wrong_answers, f"not as the model answered: {wrong_answers[:3]}"
        expected = self.model.records
        wrong = {key for key in expected.keys() | opened.records if expected.get(key) != opened.records.get(key)}
        assert not wrong, f"at {index}, {len(wrong)} keys differ from the model, among them {sorted(wrong)[:5]}"
        assert opened.digest == self.model.digest()
        assert opened.count == len(expected)
        entries = self._log.entries(index + 1 - len(opened.terms), index)
        assert opened.terms == [entry.term for entry in entries]
        assert opened.term == (entries[-1].term if entries else 0)
        self.redone += opened.outcome == "redone"
        assert not {"asking Part", "Ask", "Writes"} & set(opened.sent), "a redo asks nobody"
        self.expect(index, orders)

    def expect(self, start: int, orders: Orders) -> None:
        """From `start` on the chunks of `orders` are sent."""
        self.acknowledged = max(self.acknowledged, start)
        self._told = []
        if orders.what == "stream":
            self._ends = lambda last: takewhile(
                lambda end: end <= last, self._log.ends(orders.sizes_seed, start, orders.largest)
            )
        else:
            self._ends = lambda last: (end for ends in self._log.script(start) for end in ends)

    def judge(self, frames: Sequence[Frame], orders: Orders) -> Sequence[Frame]:
        """Check what a process said, from the start to its death."""
        for frame in frames:
            if isinstance(frame, Opened):
                self.check(frame, orders)
            elif isinstance(frame, Acknowledged):
                self.acknowledged = max(self.acknowledged, frame.index)
                self._told += frame.told
            elif isinstance(frame, Viewed):
                banking.check(*msgspec.structs.astuple(frame))
                self.views += 1
        return frames

    def crashed(self) -> None:
        """Count a crash; look at every page and every position after some of them, once nobody uses the files."""
        self.crashes += 1
        if self.crashes % VERIFY_EVERY == 0:
            self.verify()

    def verify(self) -> None:
        for shard in range(self.shards):
            owner = Lock(self.directory / "gen-000001" / f"shard-{shard:03}" / "owner")
            owner.take(int(WATCHDOG_S * 1000))
            owner.close()
        assert verify_directory(self.directory) == []

    def finish(self) -> list[str]:
        """Open the directory a last time, and stop. Returns the points that this took, if any were counted."""
        orders = self.orders("open")
        with self.prey(orders) as prey:
            frames = self.judge(prey.rest(), orders)
            assert prey.process.wait(WATCHDOG_S) == 0, prey.errors()
        self.verify()
        return points_of(frames)


def points_of(frames: Sequence[Frame]) -> list[str]:
    assert isinstance(frames[-1], Ended), frames[-1]
    return frames[-1].points
