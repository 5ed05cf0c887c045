"""Every system call of the host and of a worker fails, in every phase of an engine's life: tests/faults/shim.c fails
it, tests/faults/life.py lives through it, tests/faults/judging.py says what must hold all the same.

A first life in which nothing fails counts the calls; then each row of the table gives a life in which the first of them
fails, or the last, or both lives; for some, one in which all fail from the first on. The profile "deep" has every one
fail, in every way.

Workers are started in the lives that count, and in those in which a call fails of which a worker's start consists; in
the others they are forked (tests/nursery.py), but in "deep".
"""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.faults.control import EVER, PHASES, SHORT, Faults, Rule, Zygote, build, image_of
from tests.faults.judging import Cell, Mode, Trace, findings, live, prepare, renew
from tests.faults.life import STARTS
from tests.killing import DEEP, ROOT, environment

# Which calls are made in which phase, and fail: of the host (h) and of a worker (w); * in mode "power" only.
# +: others are made too, by the same code as in the phase "start", or as "apply" for a worker that was respawned.
MATRIX = """
             create  start  recover  redo  apply  flush  snapshot  install  compact  respawn  stop
open         h+      hw     h+       +     h      h      hw        h+       h+       h+       h
read         h+      hw     h+       +     -      -      h         h+       h+       +        -
write        h+      w      h+       +     h      h      hw        h+       h+       h+       h
pwrite       h       h      h        +     h      -      -         h        h        h        -
fsync        h       h      h        +     h      h      hw        h        h        h        h
fdatasync    h       -      h        -     h*     h      -         h        h        h*       h
msync        h       -      h        -     w*     w      -         h        h        w*       w
fallocate    h+      hw     h+       w+    hw     -      -         h+       h+       hw       -
truncate     h+      hw     +        +     -      -      -         h+       h+       +        w
rename       h       -      h        -     h      h      h         h        h        h        h
mkdir        h+      w      h+       +     -      -      h         h+       h+       +        -
unlink       h       -      h        -     h      h      h         h        h        h        h
mmap         h+      hw     +        +     -      -      w         h+       h+       w        -
lock         h+      hw     h+       +     +      +      h         h+       h+       hw       +
socketpair   +       h      +        +     -      -      -         h        h        h        -
pipe         +       h      +        +     -      -      -         h        h        h        -
fork         +       h      +        +     -      -      -         h        h        h        -
exec         +       h      +        +     -      -      -         h        h        h        -
thread       +       w      h+       +     -      -      w         h+       h+       w        -
send         +       hw     +        hw    hw     hw     hw        w+       w+       hw       hw
recv         +       hw     +        hw    hw     hw     hw        hw       hw       hw       hw
"""

ERRORS: Mapping[str, tuple[int, ...]] = {
    "open": (errno.EMFILE, errno.EIO, errno.ENOSPC),
    "read": (errno.EIO, errno.EINTR),
    "write": (errno.ENOSPC, SHORT, errno.EIO),
    "pwrite": (errno.EIO, SHORT, errno.ENOSPC),
    "fsync": (errno.EIO, errno.ENOSPC),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "msync": (errno.EIO, errno.ENOSPC),
    "fallocate": (errno.ENOSPC, errno.EINTR, errno.EIO),
    "truncate": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.ENOSPC),
    "mkdir": (errno.ENOSPC, errno.EIO),
    "unlink": (errno.EIO, errno.EACCES),
    "mmap": (errno.ENOMEM, errno.EAGAIN),
    "lock": (errno.ENOLCK, errno.EINTR),
    "socketpair": (errno.EMFILE, errno.ENOMEM),
    "pipe": (errno.EMFILE, errno.ENFILE),
    "fork": (errno.EAGAIN, errno.ENOMEM),
    "exec": (errno.ENOENT, errno.ENOMEM),
    "thread": (errno.EAGAIN, errno.ENOMEM),
    "send": (errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EINTR),
    "recv": (errno.ECONNRESET, errno.ENOMEM, errno.EINTR),
}
LASTING = ("open", "fsync", "fdatasync", "msync", "fallocate", "mmap", "socketpair", "pipe", "fork", "exec", "thread")
LASTED = ("start", "respawn")  # phases in which these may go on failing; but for "deep", only a fork does
TWICE = ("fsync", "fdatasync", "msync", "pwrite", "fallocate", "rename", "open", "socketpair", "fork")
ASKED = ("start", "apply", "install")  # phases in which the first and the last of TWICE fail
SYNCING = ("fsync", "fdatasync", "msync", "pwrite")  # what mode "power" does in another way
POWERED = ("apply", "respawn", "stop")  # phases in which it does
RACING = ("recv", "thread")  # a worker makes them as the phase ends, or behind it
WORKERS = {"h": "host", "w": "worker 0"}


def marks() -> Iterator[tuple[str, str, str]]:
    """Every mark in the table: call, phase, mark."""
    head, *lines = MATRIX.strip().splitlines()
    for line in lines:
        call, *found = line.split()
        for phase, mark in zip(head.split(), found, strict=True):
            yield call, phase, mark


def rows() -> Iterator[tuple[Mode, str, str, str]]:
    """What fails: mode, phase, process, call."""
    for call, phase, mark in marks():
        for who in [WORKERS[letter] for letter in mark if letter in WORKERS]:
            if "*" not in mark:
                yield "process", phase, who, call
            if call in SYNCING and phase in (PHASES if DEEP and phase not in STARTS else POWERED):
                yield "power", phase, who, call


class Stage:
    """What lives begin with: the zygote, the prepared directories, and how often each call is made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.shim = build(directory)
        self.zygote = Zygote(self.shim, "tests.faults.life", ROOT, environment())
        self._prepared = cache(self._prepare)
        self.hits = cache(self._count)

    def _prepare(self, mode: Mode, phase: str) -> Path:
        directory = self._directory / f"{mode}-{phase}"
        prepare(directory, mode, phase)
        return directory

    def live(self, cell: Cell, place: Path) -> Trace:
        """The life of `cell`, and what it leaves, in `place`."""
        renew(place, self._prepared(cell.durability, cell.phase if cell.phase in STARTS else "start"))
        return live(cell, place, self.zygote)

    def _count(self, mode: Mode, phase: str) -> Mapping[tuple[str, str], int]:
        trace = self.live(Cell(mode, phase), self._directory / "counted")
        assert trace.status == 0, trace.errors
        return trace.hits


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.zygote.close()


def cells(mode: Mode, phase: str, process: str, call: str, hits: int) -> Iterator[Cell]:
    """The lives of one row."""
    errors = ERRORS[call]
    chosen = [(hit, errors[at]) for at, hit in enumerate(sorted({1, hits}))]
    if call not in TWICE or phase not in ASKED:
        chosen = [chosen[-((list(ERRORS).index(call) + PHASES.index(phase)) % len(chosen))]]
    if DEEP:
        chosen = [(hit, error) for hit in range(1, hits + 1) for error in errors]
    for hit, error in chosen:
        yield Cell(mode, phase, Rule(phase, process, call, hit, hit, error))
    if call in LASTING and (DEEP or (call == "fork" and phase in LASTED)):
        yield Cell(mode, phase, Rule(phase, process, call, 1, EVER, errors[0]))


@pytest.mark.timeout(3_600 if DEEP else 240)
@pytest.mark.parametrize(("mode", "phase", "process", "call"), list(rows()))
def test_a_call_that_fails_ends_in_a_named_error_or_a_retry_and_loses_nothing(
    tmp_path: Path, stage: Stage, mode: Mode, phase: str, process: str, call: str
) -> None:
    hits = stage.hits(mode, phase)[process, call]
    wrong: list[str] = []
    for cell in cells(mode, phase, process, call, hits):
        trace = stage.live(cell, tmp_path / "place")
        wrong += findings(cell, trace, tmp_path / "place", stage.zygote)
        if not trace.fired and cell.rule is not None and cell.rule.first == 1 and call not in RACING:
            wrong.append(f"{cell}: the call was not made")
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.mark.parametrize("phase", MATRIX.split("\nopen", maxsplit=1)[0].split())
def test_the_table_names_every_call_that_is_made(stage: Stage, phase: str) -> None:
    hits = stage.hits("process", phase)
    wrong = []
    for call, when, mark in marks():
        if when == phase and call not in RACING and "*" not in mark:
            made = "".join(letter for letter, who in WORKERS.items() if hits[who, call])
            named = mark.strip("+-")
            if not (set(named) <= set(made) if "+" in mark else named == made):
                wrong.append(f"{call} is made by {made or 'nobody'}, not {mark}")
    unnamed = {call for _, call in hits if hits["host", call]} - {call for call, _, _ in marks()}
    assert not wrong and not unnamed


SYNCS = """
import mmap, os, sys
from pathlib import Path
from tests.faults.control import DISK, Faults

place, call = Path(sys.argv[1]), sys.argv[2]
with Faults(place) as faults:
    faults.image(place / DISK)
    file = os.open(place / DISK / "file", os.O_RDWR | os.O_CREAT)
    os.truncate(file, 3 * 4096)
    pages = mmap.mmap(file, 3 * 4096)

    def sync(page, letter):
        pages[page * 4096 : (page + 1) * 4096] = letter[:1] * 4096
        pages.flush() if call == "msync" else os.fsync(file)

    directory = os.open(place / DISK, os.O_RDONLY)
    sync(0, b"a")
    os.fsync(directory)
    (place / DISK / "too late").touch()
    faults.enter("apply")
    try:
        sync(0, b"lost")
    except OSError:
        sync(1, b"b")
        faults.lose_power()
        sync(2, b"c")
"""


@pytest.mark.parametrize("call", ["fsync", "msync"])
def test_a_power_loss_leaves_what_was_synced_without_the_pages_of_a_failed_sync(
    tmp_path: Path, stage: Stage, call: str
) -> None:
    renew(tmp_path, tmp_path / "nothing")
    with Faults.create(tmp_path) as faults:
        faults.arm(Rule("apply", "host", call, 1, 1, errno.EIO))
        variables = environment(**faults.preloaded(tmp_path, stage.shim))
        arguments = [sys.executable, "-c", SYNCS, str(tmp_path), call]
        subprocess.run(arguments, env=variables, check=True, timeout=60)
        assert (faults.fired, faults.hits("apply", "host", call)) == (1, 3)
    image_of(tmp_path, tmp_path / "after")
    assert [path.name for path in (tmp_path / "after").iterdir()] == ["file"]
    content = (tmp_path / "after" / "file").read_bytes()
    assert content == b"a" * 4096 + b"b" * 4096 + bytes(4096)
