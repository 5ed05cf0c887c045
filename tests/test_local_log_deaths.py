"""Whatever dies, fails, or loses its power while a local log is written: what was acknowledged is there, in its place,
and once; what was refused for want of room is not, and everything else is whole.

tests/log_life.py is what dies; this side judges what it left.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardengine.node import LocalLog, Logged
from tests.faults.control import DISK, EVER, SHORT, Faults, Rule, image_of
from tests.faults.judging import renew
from tests.killing import chosen, note, seeded
from tests.log_life import SEGMENT, Orders, Said, frame, number_of
from tests.staging import Staged

RANDOM_KILLS = 64


class Stage(Staged[Said]):
    """Where lives take place."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "tests.log_life", Said)

    @property
    def log(self) -> Path:
        return self.place / DISK / "log"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.zygote.close()


async def found(path: Path) -> list[Logged]:
    """Everything that is in a log."""
    log = LocalLog(path, segment_bytes=SEGMENT)
    state = await log.open()
    reading = log.read(state.first - 1)
    frames = [await anext(reading) for _ in range(state.first, state.last + 1)]
    await log.aclose()
    assert [logged.position for logged in frames] == list(range(state.first, state.last + 1))
    return frames


def judge(left: list[Logged], said: list[Said]) -> None:
    """Raises AssertionError: this must not be left of a life, or of several, that said so."""
    numbers = [number_of(logged.frame) for logged in left]
    assert numbers == sorted(set(numbers)), "out of order, or twice"
    assert all(logged.frame == frame(number) for logged, number in zip(left, numbers, strict=True)), "not what was sent"
    places = {logged.position: number for logged, number in zip(left, numbers, strict=True)}
    first = min(places, default=1)
    cut = max([each.positions[0] for each in said if each.step == "cutting"], default=1)
    assert first <= cut, "more was cut than asked for"
    for each in said:
        if each.step == "append" and not each.error:
            for number, position in zip(each.frames, each.positions, strict=True):
                assert position < first or places.get(position) == number, f"acknowledged frame {number} is lost"
        if each.error == "LogFullError":
            assert not set(each.frames) & set(numbers), "refused, and there"


def acknowledged(said: list[Said]) -> int:
    return sum(len(each.frames) for each in said if each.step == "append" and not each.error)


async def test_a_life_without_faults_ends_well_and_does_what_the_others_do(stage: Stage) -> None:
    renew(stage.place, stage.place / "nothing")
    assert stage.live(Orders("script", fatal=0)) == 0, stage.errors()
    said = stage.said()
    assert not [each for each in said if each.error] and acknowledged(said) == 23
    names = {name.split(" ")[1] for name in said[-1].points if " " in name}
    assert names >= {"pwrite", "fdatasync", "fsync", "posix_fallocate", "rename", "unlink"}
    judge(await found(stage.log), said)


async def test_a_death_or_a_power_loss_at_any_step_leaves_all_that_was_acknowledged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)  # of who judges
    killed = 0
    for fatal in range(1, 1000):
        renew(stage.place, stage.place / "nothing")
        status = stage.live(Orders("script", fatal=fatal, image=True))
        if status == 0:
            break
        assert status == -9, stage.errors()
        killed += 1
        image_of(stage.place, stage.place / "after")
        for left in (stage.log, stage.place / "after" / "log"):
            judge(await found(left), stage.said())
    assert killed > 70
    note(f"{killed} points")


async def test_kills_at_random_moments_leave_all_that_was_acknowledged(stage: Stage) -> None:
    chance, said, before = seeded(), list[Said](), 0
    renew(stage.place, stage.place / "nothing")
    for number in range(RANDOM_KILLS):
        if number % 16 == 0:
            said, before = [], 0
            renew(stage.place, stage.place / "nothing")
        orders = Orders("stream", seed=chance.randrange(1 << 30), before=before)
        assert stage.live(orders, timeout_s=chance.uniform(0.01, 0.09)) is None, stage.errors()
        said += stage.said()
        assert not [each for each in said if each.error]
        judge(await found(stage.log), said)
        before = 1000 * (number + 1)
    assert acknowledged(said) > 0


async def test_a_power_loss_at_a_random_step_leaves_all_that_was_acknowledged(stage: Stage) -> None:
    chance = seeded()
    for _ in range(8):
        renew(stage.place, stage.place / "nothing")
        orders = Orders("stream", seed=chance.randrange(1 << 30), fatal=chance.randrange(20, 300), image=True)
        assert stage.live(orders) == -9, stage.errors()
        image_of(stage.place, stage.place / "after")
        judge(await found(stage.place / "after" / "log"), stage.said())


# ---- calls that fail -------------------------------------------------------------------------------------------------


ERRORS = {
    "open": (errno.EIO, errno.EMFILE, errno.ENOSPC),
    "read": (errno.EIO,),
    "pwrite": (errno.EIO, errno.ENOSPC, SHORT),
    "fsync": (errno.EIO,),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "fallocate": (errno.ENOSPC, errno.EIO),
    "rename": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO,),
    "mkdir": (errno.ENOSPC,),
    "write": (errno.EIO, errno.ENOSPC, SHORT),
    "lock": (errno.ENOLCK,),
    "thread": (errno.EAGAIN,),
}
WRITES = ("pwrite", "fsync", "fdatasync", "fallocate", "rename", "unlink", "write")
PHASES = ("create", "apply", "stop", "start")
NO_ROOM = (errno.ENOSPC, SHORT)


def hits(stage: Stage, phase: str) -> dict[str, int]:
    """How often each call is made in a phase of the script."""
    renew(stage.place, stage.place / "nothing")
    assert stage.live(Orders("script")) == 0, stage.errors()
    with Faults(stage.place) as faults:
        return {call: faults.hits(phase, "host", call) for call in ERRORS}


def rules(stage: Stage, phase: str) -> list[Rule]:
    """Each call of the phase that writes fails once, and the first and the last of the others: in one of the ways, or
    in all of them while frames are appended; and for want of room from then on. Of those between the first and the last
    half are taken, always the same (`chosen`)."""
    found = list[Rule]()
    for call, count in hits(stage, phase).items():
        every = call in WRITES or phase == "apply"
        for hit in [
            hit for hit in range(1, count + 1) if hit in (1, count) or (every and chosen(f"{phase} {call} {hit}"))
        ]:
            ways = ERRORS[call] if phase == "apply" else [ERRORS[call][hit % len(ERRORS[call])]]
            found += [Rule(phase, "host", call, hit, hit, error) for error in ways]
            if errno.ENOSPC in ways and hit in (1, count):
                found.append(Rule(phase, "host", call, hit, EVER, errno.ENOSPC))
    return found


def judge_failure(rule: Rule, said: list[Said], status: int | None) -> None:
    """Raises AssertionError: no life in which these calls fail may say so."""
    assert status == 0
    failed = [each for each in said if each.error]
    assert {each.error for each in failed if each.step == "append"} <= {"LogFullError", "LogFailedError"}
    assert {each.error for each in failed if each.step == "cut"} <= {"LogFailedError"}
    assert not [each for each in failed if each.step == "close"]
    if rule.phase in ("create", "start"):
        assert len(failed) <= 1 and {each.error for each in failed} <= {
            "StoreError", "StoreFullError", "SyncFailedError",
        }  # fmt: skip
    if rule.phase == "apply" and rule.call in ("fdatasync", "pwrite") and rule.error not in NO_ROOM:
        assert failed[-1].error == "LogFailedError" and failed[-1].errno == rule.error
    if rule.error == SHORT:
        assert not failed
    finals = [each for each in failed if each.error == "LogFailedError"]
    appends = [each for each in said if each.step == "append"]
    if not finals and rule.phase == "apply":
        assert not appends[-4].error, "there is room again"
    assert not any(each.error for each in appends[-3:]), "it was opened anew"


@pytest.mark.parametrize("phase", PHASES)
async def test_whatever_call_fails_is_told_and_nothing_acknowledged_is_lost(stage: Stage, phase: str) -> None:
    fired = 0
    for rule in rules(stage, phase):
        renew(stage.place, stage.place / "nothing")
        status = stage.live(Orders("script", image=True), rule)
        said = stage.said()
        try:
            with Faults(stage.place) as faults:
                fired += faults.fired > 0
            judge_failure(rule, said, status)
            judge(await found(stage.log), said)
            image_of(stage.place, stage.place / "after")
            judge(await found(stage.place / "after" / "log"), said)
        except AssertionError:
            note(f"{rule}\n{stage.errors()}\n" + "\n".join(map(str, said)))
            raise
    assert fired >= 6
