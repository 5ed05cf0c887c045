"""A real SIGKILL of a process that feeds a machine, at random moments; then a look at what is left."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from shardengine.engine.conformance.base import Hooks, MachineUnderTest, broken, check, demand, expect_records
from shardengine.engine.conformance.child import LARGEST, VOTE, Orders, ends
from shardengine.engine.conformance.log import Log

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
    "from shardengine.engine.conformance.child import main; main()"
)
_WORDS = 12  # a process says so many, at most, before it is killed
UNSEEN = 3  # after one kill in so many nobody looks: the next process finds what was left


class Victim:
    """One process that feeds, in a process group of its own. Leaving the block kills what is left of it."""

    def __init__(self, orders: Orders, errors: Path) -> None:
        self.word = ""
        self._errors = errors
        self._said = b""
        self._watchdog_s = orders.watchdog_s
        with errors.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, _encoded(sys.path), _encoded(orders)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._process.wait()
        self._pipe.close()

    def words(self) -> Iterator[tuple[str, int]]:
        """What it says, until it is dead: a word and a number. A word that its death has cut off is left out."""
        while data := self._more():
            *lines, self._said = (self._said + data).split(b"\n")
            for line in lines:
                word, _, number = line.decode().partition(" ")
                yield word, int(number or 0)

    def _more(self) -> bytes:
        if not select.select([self._pipe], [], [], self._watchdog_s)[0]:
            broken(f"a machine applies chunks; this one has said nothing for {self._watchdog_s} s{self.errors()}")
        return os.read(self._pipe.fileno(), 1 << 16)

    def kill(self) -> None:
        """Its group, with whatever processes the machine has."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def was_killed(self) -> bool:
        """Rather than ended by itself. Waits until it is dead."""
        return self._process.wait(self._watchdog_s) == -signal.SIGKILL

    def errors(self) -> str:
        said = self._errors.read_text(errors="replace")[-4000:]
        return f"; its standard error says:\n{said}" if said else ""


def _encoded(value: object) -> str:
    return msgspec.json.encode(value).decode()


class Judge:
    """What must be left in one directory, whatever was killed.

    Invariant: the state stands at one of `_allowed`, none of which is below what was acknowledged. `voted` is the
    newest term whose vote was saved.
    """

    def __init__(self, suite: Hooks, directory: Path, log: Log, seed: str) -> None:
        self.suite = suite
        self.log = log
        self.directory = directory
        self.voted = 0
        self._seed = seed
        self._allowed = [0]

    def opened(self, index: int, kill: int) -> None:
        """The machine stands there now, after so many kills."""
        acknowledged = self._allowed[0]
        when = f"behind kill {kill} (seed {self._seed})"
        demand(
            index >= acknowledged,
            f"a chunk that was acknowledged survives SIGKILL; {when}, entry {acknowledged} was, and the machine "
            f"reopens at {index}",
        )
        demand(
            index in self._allowed,
            f"a chunk is there whole or not at all after SIGKILL; {when}, chunks ended at {self._allowed}, and the "
            f"machine reopens at {index}",
        )
        self._allowed = [index]

    def fed(self, start: int, acknowledged: int) -> None:
        """From `start` on the log was fed, and acknowledged up to there: one more chunk may be applied."""
        following = next(end for end in ends(self._seed, start) if end > acknowledged)
        self._allowed = [acknowledged, following]

    def look(self, machine: MachineUnderTest, kill: int) -> None:
        """Fail unless the machine is exactly what the log comes to at its index."""
        index = machine.last_applied().index
        self.opened(index, kill)
        when = f"behind kill {kill} (seed {self._seed})"
        found = self.suite.found(machine)
        if found != self.log.contents(index):
            sentence = f"{when}, the records are those of last_applied(), {index}{self._whose(found, index)}"
            expect_records(found, self.log.contents(index), sentence)
        self.suite.expect_state(machine, self.log, index, when)
        if self.voted:
            saved = machine.hard_state()
            held = saved is not None and saved.term >= self.voted and saved.voted_for == VOTE
            demand(
                held, f"a vote that was saved survives SIGKILL; {when}, {VOTE!r} had it in {self.voted}, not {saved}"
            )

    def _whose(self, found: dict[bytes, bytes], index: int) -> str:
        """Of which other entry the records are."""
        near = range(max(0, index - 2 * LARGEST), index + 2 * LARGEST)
        others = [other for other in near if self.log.contents(other) == found]
        if not others:
            return "; they are of no entry near it"
        nearest = min(others, key=lambda other: abs(other - index))
        return f"; the index is {'behind' if nearest > index else 'ahead of'} the data: they are of entry {nearest}"


class Kills(Hooks):
    """The check with real processes."""

    @check("kills", bounded=False)
    async def test_nothing_acknowledged_is_lost_and_nothing_torn_by_sigkill(self, tmp_path: Path) -> None:
        """At each kill: all that was acknowledged is there, and index, records and terms are of one entry."""
        seed = str(random.randrange(1 << 30))
        draw, directory = random.Random(seed), tmp_path / "machine"
        directory.mkdir()
        judge = Judge(self, directory, self.log(), seed)
        pace = Pace()
        for kill in range(1, self.kills + 1):
            with Victim(_orders(self, directory, seed), tmp_path / "errors") as victim:
                _feed_and_kill(victim, judge, draw, pace, kill)
            if kill % UNSEEN and kill < self.kills:
                with self.running(directory) as machine:
                    judge.look(machine, kill)
        with self.running(directory) as machine:
            judge.look(machine, self.kills)
            at = machine.last_applied().index
            async with asyncio.timeout(self.watchdog_s):
                await self.feed(machine, judge.log, at + 1, at + LARGEST)
            self.expect_state(machine, judge.log, at + LARGEST, f"behind kill {self.kills}, and more of the log")


class Pace:
    """How long it usually is from one word to the next, so that a kill may come at any moment between."""

    def __init__(self) -> None:
        self._usual_s = {"opening": 0.1, "chunk": 0.01}
        self._since = time.monotonic()
        self._words = 0

    def heard(self, word: str) -> None:
        now = time.monotonic()
        if word == "opened":
            self._usual_s["opening"] = now - self._since
        if word.startswith("open"):
            self._since, self._words = now, 0
        else:
            self._words += 1
            self._usual_s["chunk"] = (now - self._since) / self._words

    def moment_s(self, word: str, draw: random.Random) -> float:
        """How long to wait behind that word."""
        return draw.uniform(0, 1.5 * self._usual_s["opening" if word == "opening" else "chunk"])


def _feed_and_kill(victim: Victim, judge: Judge, draw: random.Random, pace: Pace, kill: int) -> None:
    """Kill it while it opens, or some chunks later."""
    fatal, start = draw.randint(1, _WORDS), 0
    for number, (word, index) in enumerate(victim.words(), start=1):
        pace.heard(word)
        if word == "opened":
            judge.opened(index, kill - 1)
            start = index
        if word == "voted":
            judge.voted = index
        elif word != "opening":
            judge.fed(start, index)
        if number == fatal:
            time.sleep(pace.moment_s(word, draw))
            victim.kill()
    demand(victim.was_killed(), f"a machine takes chunk after chunk; its process ended by itself{victim.errors()}")


def _orders(suite: Hooks, directory: Path, seed: str) -> Orders:
    kind = type(suite)
    demand(
        "<locals>" not in kind.__qualname__,
        f"the process that is killed must find {kind.__qualname__}, which is made in a function; move it out",
    )
    file = Path(inspect.getfile(kind)).resolve()
    return Orders(str(file), kind.__module__, kind.__qualname__, str(directory), seed, suite.watchdog_s)
