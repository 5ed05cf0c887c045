"""Every system call of the host and of a worker fails, in every phase of an engine's life: tests/faults/shim.c fails
it, tests/faults/life.py lives through it, tests/faults/judging.py says what must hold all the same.

A first life in which nothing fails counts the calls; then each row of the table gives lives in which the first, the
last, or one between fails, or, for some, all from the first on.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.faults.control import CALLS, EVER, SHORT, Rule, Zygote, build
from tests.faults.judging import Cell, Mode, findings, live, prepare, renew
from tests.killing import ROOT, environment

PHASES = ("create", "start", "apply", "flush", "snapshot", "install", "respawn", "stop")

# Who makes which call in which phase: h the host, w a worker, * in mode "power" only, - nobody.
MATRIX = """
             create  start  apply  flush  snapshot  install  respawn  stop
open         hw      hw     h      h      hw        hw       hw       h
read         hw      hw     -      -      h         hw       w        -
write        hw      w      h      h      hw        hw       hw       h
pwrite       h       h      h      -      -         h        h        -
fsync        h       -      h      h      hw        h        h        h
fdatasync    h       -      h*     h      -         h        h*       h
msync        h       -      w*     w      -         h        w*       w
fallocate    h       -      hw     -      -         h        hw       -
truncate     hw      hw     -      -      -         hw       w        w
rename       h       -      h      h      h         h        h        h
mkdir        hw      hw     -      -      h         hw       w        -
unlink       -       -      -      -      -         h        -        -
mmap         hw      hw     -      -      w         hw       w        -
lock         hw      hw     -      -      h         hw       w        -
socketpair   h       h      -      -      -         h        h        -
pipe         h       h      -      -      -         h        h        -
fork         h       h      -      -      -         h        h        -
exec         h       h      -      -      -         h        h        -
thread       w       w      h      -      hw        hw       w        -
send         w       w      hw     hw     hw        w        hw       hw
recv         hw      hw     hw     hw     hw        hw       hw       hw
"""

ERRORS: Mapping[str, tuple[int, ...]] = {
    "open": (errno.EMFILE, errno.EIO, errno.ENOSPC),
    "read": (errno.EIO, errno.EINTR),
    "write": (errno.ENOSPC, SHORT, errno.EIO),
    "pwrite": (errno.EIO, SHORT, errno.ENOSPC),
    "fsync": (errno.EIO, errno.ENOSPC),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "msync": (errno.EIO,),
    "fallocate": (errno.ENOSPC, errno.EINTR, errno.EIO),
    "truncate": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.ENOSPC),
    "mkdir": (errno.ENOSPC, errno.EIO),
    "unlink": (errno.EIO,),
    "mmap": (errno.ENOMEM, errno.EAGAIN),
    "lock": (errno.ENOLCK, errno.EINTR),
    "socketpair": (errno.EMFILE, errno.ENOMEM),
    "pipe": (errno.EMFILE, errno.ENFILE),
    "fork": (errno.EAGAIN, errno.ENOMEM),
    "exec": (errno.ENOENT, errno.ENOMEM),
    "thread": (errno.EAGAIN,),
    "send": (errno.ENOBUFS, errno.EINTR),
    "recv": (errno.ECONNRESET, errno.ENOMEM),
}
LASTING = ("open", "fsync", "fdatasync", "msync", "fallocate", "mmap", "socketpair", "pipe", "fork", "exec", "thread")
SYNCING = ("fsync", "fdatasync", "msync", "pwrite")  # what mode "power" does in another way
RACING = ("recv", "thread")  # a worker makes them as the phase ends, or behind it
WORKERS = {"h": "host", "w": "worker 0"}


def rows() -> Iterator[tuple[Mode, str, str, str]]:
    """Every mark in the table: mode, phase, process, call."""
    head, *lines = MATRIX.strip().splitlines()
    for line in lines:
        call, *marks = line.split()
        for phase, mark in zip(head.split(), marks, strict=True):
            for letter in mark.rstrip("-*"):
                if not mark.endswith("*"):
                    yield "process", phase, WORKERS[letter], call
                if call in SYNCING and phase not in ("create", "start"):
                    yield "power", phase, WORKERS[letter], call


class Stage:
    """What lives begin with: the zygote, the prepared directories, and how often each call is made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.zygote = Zygote(build(directory), "tests.faults.life", ROOT, environment())
        self.prepared = cache(self._prepare)
        self.hits = cache(self._count)

    def _prepare(self, mode: Mode) -> Path:
        prepare(self._directory / mode, mode)
        return self._directory / mode

    def live(self, cell: Cell, place: Path) -> list[str]:
        """What is wrong with the life of `cell`."""
        renew(place, None if cell.phase == "create" else self.prepared(cell.durability))
        return list(findings(cell, live(cell, place, self.zygote), place))

    def _count(self, mode: Mode, phase: str) -> Mapping[tuple[str, str], int]:
        place, cell = self._directory / "counted", Cell(mode, phase)
        renew(place, None if phase == "create" else self.prepared(mode))
        trace = live(cell, place, self.zygote)
        assert trace.status == 0, f"{cell}: {trace.errors}"
        return trace.hits


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.zygote.close()


def cells(mode: Mode, phase: str, process: str, call: str, hits: int) -> Iterator[Cell]:
    """The lives of one row: its first call fails, its last, one between; and all of them, where that may go on."""
    errors = ERRORS[call]
    for at, hit in enumerate(sorted({1, (hits + 1) // 2, hits})):
        yield Cell(mode, phase, Rule(phase, process, call, hit, hit, errors[at % len(errors)]))
    if call in LASTING:
        yield Cell(mode, phase, Rule(phase, process, call, 1, EVER, errors[0]))


@pytest.mark.parametrize(("mode", "phase", "process", "call"), list(rows()))
def test_a_call_that_fails_ends_in_a_named_error_or_a_retry_and_loses_nothing(
    tmp_path: Path, stage: Stage, mode: Mode, phase: str, process: str, call: str
) -> None:
    hits = stage.hits(mode, phase)[process, call]
    wrong: list[str] = []
    for cell in cells(mode, phase, process, call, hits):
        wrong += stage.live(cell, tmp_path / "place")
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.mark.parametrize("phase", PHASES)
def test_the_table_names_every_call_that_is_made(stage: Stage, phase: str) -> None:
    named = {(who, call) for mode, when, who, call in rows() if (mode, when) == ("process", phase)}
    hits = stage.hits("process", phase)
    made = {(who, call) for who in WORKERS.values() for call in CALLS if hits[who, call] and call not in RACING}
    assert made == {(who, call) for who, call in named if call not in RACING}
