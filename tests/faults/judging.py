"""One cell of the matrix of tests/test_faults.py: a life in which calls fail, and what was wrong with it.

Whatever fails, these hold: a step ends, well or with an EngineError; reads give the model's state at the end of a
chunk, with all that was acknowledged; without faults the engine that says that it runs takes chunks, and one that does
not can be started again; nothing is left open; `durable()` never falls, never rises after a failed sync, and a machine
that goes down comes back with at least that.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from shardengine import Engine, run
from shardengine.engine.storage.runmark import read_mark
from shardengine.ipc.errors import LACKING, hint_for
from tests.directories import in_another_process, reboot
from tests.faults.control import CALLS, DISK, EVER, IMAGE, PROCESSES, SHORT, STARTS_MAX, Faults, Rule, Zygote, image_of
from tests.faults.life import (
    DECIDED,
    PREPARED,
    SEED,
    STARTS,
    Acknowledged,
    Ended,
    Frame,
    Left,
    Opened,
    Orders,
    Outcome,
    Seen,
    Sent,
    Wrong,
    config,
)
from tests.killing import DEEP
from tests.streams import Follower, entries

WATCHDOG_S = 40.0
SYNCS = ("fsync", "fdatasync", "msync")
REBOOTED = (*SYNCS, "write", "rename")  # after the others a machine that goes down finds what it ever does
STARTING = ("socketpair", "pipe", "fork", "exec", "thread", "send", "recv")  # of these the start of a worker consists
SYNCED = ("flush", "snapshot", "stop")  # phases that promise what a failed sync cannot keep
ASIDE = ("snapshot", "install", "compact")  # what they sync is given up with its files, unless it is in place already
_decode: Callable[[bytes], Frame] = msgspec.json.Decoder(Frame).decode
Mode = Literal["process", "power"]


@dataclass(frozen=True)
class Cell:
    """A life in mode `durability`, with faults in `phase`. No rule: calls are only counted."""

    durability: Mode
    phase: str
    rule: Rule | None = None

    @property
    def rebooted(self) -> bool:
        """Whether what a power loss leaves is looked at."""
        return self.rule is not None and self.rule.call in REBOOTED

    @property
    def starts(self) -> bool:
        """Whether the workers of the phase are started, not forked."""
        return DEEP or (self.rule.call in STARTING if self.rule is not None else self.phase != "open")

    @property
    def syncs(self) -> bool:
        return self.rule is not None and self.rule.call in SYNCS

    def __str__(self) -> str:
        if self.rule is None:
            return f"{self.durability}: {self.phase}, counted"
        rule = self.rule
        error = "short" if rule.error == SHORT else errno.errorcode[rule.error]
        which = f"{rule.first} and later" if rule.last == EVER else f"{rule.first}"
        return f"{self.durability}, {self.phase}: {rule.process}, {rule.call} {which}: {error} (seed {SEED})"


@dataclass(frozen=True)
class Trace:
    """What a life said, and left. `status`: None when it had to be killed. `failed`: the file of the first call that
    was failed, if it was made on one."""

    frames: list[Frame]
    status: int | None
    errors: str
    fired: int
    failed: str
    stormed: bool
    hits: dict[tuple[str, str], int]


def prepare(directory: Path, durability: Mode, phase: str) -> None:
    """Make the directory that a life begins with: entries, a snapshot of them, a clean stop. Or, for "recover", more
    entries that went down with the machine; for "redo", more that are decided and committed nowhere."""

    async def fill() -> None:
        async with Engine(directory, shards=2, config=config(durability)) as db:
            await db.apply_chunk(entries(SEED, 1, PREPARED))
            await db.create_snapshot()

    if phase == "create":
        return
    run(fill)
    if phase in ("recover", "redo"):
        in_another_process(
            """
            from shardengine.engine.commit.table import Commit
            from tests.faults.life import DECIDED, PREPARED, SEED, config
            from tests.streams import entries

            async def main():
                db = Engine(sys.argv[1], config=config("process"))
                db.start()
                if sys.argv[2] == "redo":
                    Commit.recorded = lambda self, number: os._exit(0)
                await db.apply_chunk(entries(SEED, PREPARED + 1, DECIDED))
                os._exit(0)

            run(main)
            """,
            directory,
            phase,
        )
    if phase == "recover":
        reboot(directory)


def live(cell: Cell, place: Path, zygote: Zygote) -> Trace:
    """Run the life of `cell` in `place`, on whose disk its directory lies."""
    orders = msgspec.json.encode(Orders(cell.phase, cell.durability, cell.syncs, cell.rebooted, cell.starts)).decode()
    with Faults.create(place) as faults:
        if cell.rule is not None:
            faults.arm(cell.rule)
        status = zygote.run(place, orders, WATCHDOG_S)
        hits = {(who, call): faults.hits(cell.phase, who, call) for who in PROCESSES for call in CALLS}
        errors = (place / "stderr").read_text(errors="replace")[-1500:]
        frames = [_decode(line) for line in (place / "said").read_bytes().splitlines() if line.endswith(b"}")]
        return Trace(frames, status, errors, faults.fired, faults.failed, faults.stormed, hits)


@cache
def model_at(index: int) -> tuple[bytes, int]:
    """Digest and count of the model behind entry `index`."""
    follower = Follower(SEED)
    follower.advance(index)
    return follower.digest(), len(follower.records)


class Verdict:
    """Goes through what a life said. `wrong` is what it did that it must not."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        self._cell = cell
        # a start that fails has begun no run
        self._failing = cell.syncs and cell.phase not in STARTS and trace.fired > 0
        self._doubtful = self._failing and cell.phase not in (*ASIDE, "stop")
        # what cannot be read when a start looks for snapshots does not count
        self._unseen = cell.phase in STARTS and "/snapshots/" in trace.failed
        self._running = False
        self._faulted = False
        self.acknowledged = {"create": 0, "redo": DECIDED}.get(cell.phase, PREPARED)
        self._ends = {self.acknowledged}
        self.durable = min(self.acknowledged, PREPARED)
        self._promised = 0  # survives a power loss, until the next write
        self.restarted = False
        self.wrong: list[str] = []
        for frame in trace.frames:
            self._take(frame)
        if trace.stormed:
            self.wrong.append(f"more than {STARTS_MAX} processes were begun")
        if not trace.frames or not isinstance(trace.frames[-1], Ended):
            how = "it had to be killed" if trace.status is None else f"it ended with status {trace.status}"
            self.wrong.append(f"{how}: {trace.errors}")

    def _take(self, frame: Frame) -> None:
        match frame:
            case Sent(last):
                self._ends.add(last)
                self._promised = 0
            case Acknowledged(last):
                self.acknowledged = last
            case Outcome():
                self._judge_outcome(frame)
                self._running = frame.running
                if frame.step in ("flush", "flush after", "stop") and not frame.error:
                    self._promised = self.acknowledged
                self.restarted = self.restarted or frame.step == "another start"
                self._faulted = self._faulted or frame.step == self._cell.phase
            case Seen():
                self.judge_state(f"after {frame.step}", frame.index, frame.count, frame.digest)
                if frame.durable is not None:
                    self._judge_durable(frame.step, frame.durable)
                if frame.sync_failed is not None and self._faulted and not self.restarted:
                    self._judge_told(frame.step, told=frame.sync_failed)
            case Left(step, what) if what:
                self.wrong.append(f"{step} left open: {', '.join(what)}")

    def _judge_outcome(self, outcome: Outcome) -> None:
        step, error = outcome.step, outcome.error
        self._judge_advice(outcome)
        if not outcome.named:
            self.wrong.append(f"{step}: {error}, no EngineError: {outcome.text}")
        elif error and not self._may_fail(outcome):
            self.wrong.append(f"{step}, without faults: {error}: {outcome.text}")
        elif not error and step == self._cell.phase and self._failing and (step in SYNCED or self._power):
            self.wrong.append(f"{step} ended well though a sync failed")

    def _judge_advice(self, outcome: Outcome) -> None:
        """What is advised fits what the system said; what a process lacks is no damage."""
        number = 0 if self._cell.rule is None else self._cell.rule.error
        told = number not in (0, SHORT) and os.strerror(number) in outcome.text
        if told and hint_for(OSError(number, "")) not in outcome.text and self._cell.phase == outcome.step:
            self.wrong.append(f"{outcome.step}: no fitting hint: {outcome.text}")
        if number in LACKING and "Damaged" in outcome.error:
            self.wrong.append(f"{outcome.step}: {outcome.error} for {errno.errorcode[number]}: {outcome.text}")

    def _may_fail(self, outcome: Outcome) -> bool:
        if outcome.step == self._cell.phase:
            return True
        if outcome.step == "another start":
            return self._failing and outcome.error == "StateUntrustedError"
        if outcome.step in ("flush after", "snapshot after", "close"):
            return self._failing or not self._running
        return outcome.step == "after" and not outcome.running

    @property
    def _power(self) -> bool:
        return self._cell.durability == "power"

    def _judge_told(self, step: str, *, told: bool) -> None:
        """stats() tells of a sync that failed, as long as the run goes on."""
        if told and not self._failing:
            self.wrong.append(f"after {step} stats() tells of a failed sync, and none failed")
        if not told and self._doubtful:
            self.wrong.append(f"after {step} stats() does not tell that a sync failed")

    def _judge_durable(self, step: str, durable: int) -> None:
        if step == self._cell.phase:
            acknowledged_first = self._power and self.durable < durable <= self.acknowledged
            self.durable = durable if self._unseen or acknowledged_first else self.durable
        if durable < self.durable:
            self.wrong.append(f"durable() fell from {self.durable} to {durable} after {step}")
        if durable > self.durable and self._faulted and self._doubtful and not self.restarted:
            self.wrong.append(f"durable() rose from {self.durable} to {durable} after {step}, behind a failed sync")
        self.durable = max(self.durable, durable)

    def judge_state(self, when: str, index: int, count: int, digest: bytes) -> None:
        """The state that is read is the model's, at the end of a chunk, with all that was acknowledged."""
        if index < self.acknowledged:
            self.wrong.append(f"{when}: {self.acknowledged} was acknowledged, the state ends at {index}")
        if index not in self._ends:
            self.wrong.append(f"{when}: {index} is in the middle of a chunk")
        if (digest, count) != model_at(index):
            self.wrong.append(f"{when}: the state at {index} is not the model's")

    # ---- what the directory is worth -----------------------------------------------------------------------------

    def judge_reboot(self, trace: Trace) -> None:
        """The machine went down before the engine was closed: what was called durable comes back."""
        least = self.acknowledged if self._cell.durability == "power" else max(self.durable, self._promised)
        for frame in trace.frames:
            match frame:
                case Outcome("open", "StateUntrustedError") if not least:
                    pass
                case Outcome("open" as step, error, text=text) | Outcome("fed" as step, error, text=text) if error:
                    self.wrong.append(f"after a power loss {least} was durable, but {step}: {error}: {text}")
                case Opened("opened") if self._doubtful and not self._power and not self.restarted:
                    self.wrong.append("after a power loss the files are trusted, though a sync failed")
                case Seen("open", index=index) if index < least:
                    self.wrong.append(f"after a power loss {least} was durable, the state ends at {index}")
                case Seen("open", index=index) if (frame.digest, frame.count) != model_at(index):
                    self.wrong.append(f"after a power loss the state at {index} is not the model's")
        if trace.status:
            self.wrong.append(f"after a power loss its files kill the engine: status {trace.status}")

    def judge_directory(self, trace: Trace) -> None:
        """Without faults the directory opens, holds what it must, takes a chunk, and is whole."""
        for frame in trace.frames:
            match frame:
                case Outcome("open", "StateUntrustedError") if self._failing:
                    pass
                case Outcome(step, error, text=text) if error:
                    self.wrong.append(f"opened again, {step}: {error}: {text}")
                case Seen("open") if not self._failing:
                    self.judge_state("opened again", frame.index, frame.count, frame.digest)
                case Wrong(problems):
                    self.wrong += [f"at rest: {problem}" for problem in problems]
        if trace.status:
            self.wrong.append(f"opened again, it ends with status {trace.status}: {trace.errors}")


def findings(cell: Cell, trace: Trace, place: Path, zygote: Zygote) -> list[str]:
    """All that is wrong with a life and with what it left in `place`, each with the name of its cell."""
    verdict = Verdict(cell, trace)
    data, looking = place / DISK / "data", Cell(cell.durability, "open")
    if cell.rebooted:
        after = place / "after"
        after.mkdir()
        image_of(place, after / DISK)
        if read_mark(after / DISK / "data") is not None:
            reboot(after / DISK / "data")
        verdict.judge_reboot(live(looking, after, zygote))
    if data.is_dir():
        verdict.judge_directory(live(looking, place, zygote))
    where = f" [{trace.failed}]" if trace.failed else ""
    return [f"{cell}{where}: {wrong}".replace(f"{place / DISK}/", "") for wrong in verdict.wrong]


def renew(place: Path, prepared: Path) -> None:
    """An empty `place`, with a copy of the prepared directory if there is one."""
    shutil.rmtree(place, ignore_errors=True)
    (place / DISK).mkdir(parents=True)
    (place / IMAGE).mkdir()
    if prepared.exists():
        copy(prepared, place / DISK / "data")


def copy(source: Path, target: Path) -> None:
    """Copy a directory whose files may be mostly holes."""
    subprocess.run(["cp", "-r", "--sparse=always", source, target], check=True, timeout=WATCHDOG_S)
