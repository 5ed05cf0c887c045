"""Whatever dies, fails, or loses its power while a state machine in a directory is written: what was acknowledged is
there as its durability says, index and records of one chunk; what was refused for want of room is not.

tests/adaptor_life.py is what dies; this side judges what it left.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path

import pytest

from tests.adaptor_life import Orders, Said
from tests.adaptors import DURABLE, durable, judge
from tests.disks import in_a_file_system, needs_file_systems
from tests.faults.control import DISK, EVER, SHORT, Faults, Rule, image_of
from tests.faults.judging import Mode, renew
from tests.killing import DEEP, note, seeded
from tests.staging import Staged

MODES: tuple[Mode, Mode] = ("process", "power")
RANDOM_KILLS = 20
RULES = 8


class Stage(Staged[Said]):
    """Where lives take place."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "tests.adaptor_life", Said)

    @property
    def left(self) -> Path:
        return self.place / DISK / "db"

    @property
    def after(self) -> Path:
        """What a power loss leaves."""
        image_of(self.place, self.place / "after")
        return self.place / "after" / "db"

    def begin(self) -> None:
        renew(self.place, self.place / "nothing")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.zygote.close()


@pytest.fixture
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of who judges."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)


async def found(kind: str, path: Path, least: int, most: int) -> int:
    """Where the state machine at `path` stands, and that it goes on from there."""
    machine = durable(kind, path)
    machine.start()
    try:
        last = await judge(machine, least, most)
        assert machine.durable() == machine.last_applied()
        return last
    finally:
        machine.stop()


def acknowledged(said: list[Said]) -> int:
    return max((each.last for each in said if each.step != "sending" and not each.error), default=0)


def durable_of(said: list[Said]) -> int:
    return max((each.durable for each in said), default=0)


def sent(said: list[Said]) -> int:
    return max((each.last for each in said if each.step == "sending"), default=0)


async def judge_all(stage: Stage, kind: str, durability: Mode, said: list[Said], *, image: bool) -> None:
    least, most = acknowledged(said), sent(said)
    await found(kind, stage.left, max(least, 0), most)
    if image:
        await found(kind, stage.after, max(least if durability == "power" else durable_of(said), 0), most)


async def test_a_death_or_a_power_loss_at_any_step_of_a_file_leaves_what_was_promised(
    stage: Stage, no_syncs: None
) -> None:
    killed, names = 0, set[str]()
    for fatal in range(1, 1000):
        stage.begin()
        durability = MODES[fatal % 2]
        status = stage.live(Orders("file", durability=durability, fatal=fatal, image=True))
        if status == 0:
            names = set(stage.said()[-1].points)
            break
        assert status == -9, stage.errors()
        killed += 1
        await judge_all(stage, "file", durability, stage.said(), image=True)
    assert killed > 80, stage.errors()
    assert names >= {"before rename state.new", "after rename state.new", "in the middle of a record"}
    note(f"{killed} points")


@pytest.mark.parametrize("kind", DURABLE)
async def test_kills_at_random_moments_leave_all_that_was_acknowledged(stage: Stage, kind: str) -> None:
    chance, said = seeded(), list[Said]()
    for number in range(RANDOM_KILLS):
        if number % 10 == 0:
            said = []
            stage.begin()
        orders = Orders(kind, "stream", seed=chance.randrange(1 << 30))
        assert stage.live(orders, timeout_s=chance.uniform(0.02, 0.15)) is None, stage.errors()
        said += stage.said()
        assert not [each for each in said if each.error]
        await judge_all(stage, kind, "process", said, image=False)
    assert acknowledged(said) > 0
    note(f"{acknowledged(said)} entries")


@pytest.mark.parametrize("durability", MODES)
@pytest.mark.parametrize("kind", DURABLE)
async def test_a_power_loss_after_some_chunks_leaves_what_was_promised(
    stage: Stage, kind: str, durability: Mode
) -> None:
    chance = seeded()
    for _ in range(4):
        stage.begin()
        seed, chunks = chance.randrange(1 << 30), chance.randrange(60)
        assert stage.live(Orders(kind, "stream", durability, seed, image=True, chunks=chunks)) == -9, stage.errors()
        await judge_all(stage, kind, durability, stage.said(), image=True)


# ---- calls that fail -------------------------------------------------------------------------------------------------


ERRORS = {
    "open": (errno.EIO, errno.ENOSPC),
    "pwrite": (errno.EIO, errno.ENOSPC, SHORT),
    "write": (errno.EIO, errno.ENOSPC, SHORT),
    "fsync": (errno.EIO,),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "truncate": (errno.EIO,),
    "rename": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO,),
    "fallocate": (errno.ENOSPC,),
}
PHASES = ("create", "apply", "stop", "start")
TOLD = {"StoreError", "StoreFullError", "SyncFailedError"}


def rules(stage: Stage, kind: str) -> list[Rule]:
    """In each phase, each call fails once: its first, its last, or one between; and at last for want of room from there
    on. About RULES of all that, unless the profile is "deep"."""
    stage.begin()
    assert stage.live(Orders(kind, durability="power")) == 0, stage.errors()
    found = list[Rule]()
    with Faults(stage.place) as faults:
        for (phase, (call, ways)), number in zip(product(PHASES, ERRORS.items()), count()):
            hits = faults.hits(phase, "host", call)
            for hit in sorted({1, (hits + 1) // 2, hits} - {0}):
                found.append(Rule(phase, "host", call, hit, hit, ways[(number + hit) % len(ways)]))
            if hits and errno.ENOSPC in ways:
                found.append(Rule(phase, "host", call, hits, EVER, errno.ENOSPC))
    return found if DEEP else found[:: len(found) // RULES]


@pytest.mark.parametrize("kind", DURABLE)
async def test_whatever_call_fails_is_told_and_nothing_acknowledged_is_lost(stage: Stage, kind: str) -> None:
    fired = 0
    for rule in rules(stage, kind):
        stage.begin()
        status = stage.live(Orders(kind, durability="power", image=True), rule)
        said = stage.said()
        try:
            with Faults(stage.place) as faults:
                fired += faults.fired > 0
            assert status == 0
            assert {each.error for each in said if each.error} <= TOLD
            await judge_all(stage, kind, "power", said, image=True)
        except AssertionError:
            note(f"{rule}\n{stage.errors()}\n" + "\n".join(map(str, said)))
            raise
    assert fired >= 6


# ---- a full disk -----------------------------------------------------------------------------------------------------


FULL = """
import asyncio, sys
from contextlib import suppress
from pathlib import Path
from shardengine import LogId, StoreError, StoreFullError
from tests.adaptors import durable, entries, judge

async def main(kind, place):
    ballast = place / "ballast"
    machine = durable(kind, place / "db")
    machine.start()
    ballast.write_bytes(bytes(5 << 20))
    last, refused = 0, None
    while refused is None:
        try:
            await machine.apply_chunk(entries(last + 1, 200))
            last += 200
        except StoreError as error:
            refused = error
    assert "No space left" in str(refused) or "is full" in str(refused), refused
    assert machine.last_applied().index == last
    await judge(machine, last, last)
    ballast.unlink()
    if machine.is_running():
        assert isinstance(refused, StoreFullError)
    else:
        with suppress(StoreError):
            machine.stop()
        machine.start()
        await judge(machine, last, last + 200)
        last = machine.last_applied().index
    for _ in range(5):
        await machine.apply_chunk(entries(last + 1, 200))
        last += 200
    machine.stop()
    machine.start()
    await judge(machine, last, last)
    machine.stop()
    print(last, type(refused).__name__)

asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.mark.parametrize("kind", DURABLE)
def test_a_full_disk_refuses_chunks_by_name_and_takes_them_when_there_is_room(kind: str, tmp_path: Path) -> None:
    needs_file_systems(tmp_path)
    done = in_a_file_system(tmp_path, sys.executable, "-c", FULL, kind, str(tmp_path), size="7m")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == ("StoreError" if kind == "rocksdb" else "StoreFullError"), "as its class says"
