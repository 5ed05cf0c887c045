"""The control of tests/faults/shim.c: build it, preload it, say which calls fail, read what was called.

In the suite:

    zygote = Zygote(build(directory), "tests.faults.life", ROOT, environment())
    with Faults.create(place) as faults:
        faults.arm(Rule("apply", "worker 0", "msync", 3, 3, errno.EIO))
        status = zygote.run(place, orders, timeout_s)

In the process under test, which calls `serve(life)`:

    def life(place, orders):
        with Faults(place) as faults:
            faults.enter("apply")  # from here on calls count, and the chosen ones fail
            faults.leave()
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

SOURCE = Path(__file__).with_name("shim.c")
_LISTED = SOURCE.read_text().partition("#define CALLS")[2].partition("#define X")[0]
CALLS = re.findall(r"X\((\w+)\)", _LISTED)
_STEPS = "create start recover redo apply flush snapshot install compact respawn stop open"
PHASES = ("", *_STEPS.split())
PROCESSES = ("host", "worker 0", "worker 1")
EVER = (1 << 63) - 1
SHORT = 1000  # in place of an errno: a write that takes half
STARTS_MAX = 60
DISK, IMAGE = "disk", "image"
_CONTROL, _VARIABLE = "control", "FAULTS_CONTROL"
_PHASES, _PROCESSES, _TEXT = 16, 16, 1024  # as in shim.c


@dataclass(frozen=True)
class Rule:
    """The calls of `process` numbered `first` to `last` within `phase` fail with `error`."""

    phase: str
    process: str
    call: str
    first: int
    last: int
    error: int


class _Rule(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        (name, ctypes.c_uint64) for name in ("phase", "process", "call", "first", "last", "error")
    ]


class _Control(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("scope", ctypes.c_char * _TEXT),
        ("failed", ctypes.c_char * _TEXT),
        ("image", ctypes.c_char * _TEXT),
        ("imaging", ctypes.c_uint64),
        ("phase", ctypes.c_uint64),
        ("starts", ctypes.c_uint64),
        ("starts_max", ctypes.c_uint64),
        ("fired", ctypes.c_uint64),
        ("rule", _Rule),
        ("hits", ctypes.c_uint64 * len(CALLS) * _PROCESSES * _PHASES),
    ]


def build(directory: Path) -> Path:
    """Compile the shim into `directory`. Returns the library."""
    library = directory / "shim.so"
    command = ["cc", "-std=gnu11", "-O2", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-ldl", "-pthread"], check=True, timeout=60)
    return library


class Faults:
    """The control file of a place, mapped."""

    def __init__(self, place: Path) -> None:
        with (place / _CONTROL).open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_Control))
        self._control: Any = _Control.from_buffer(self._map)

    @classmethod
    def create(cls, place: Path) -> Faults:
        """A control file that fails nothing; what is on the disk counts, `disk` in `place`."""
        (place / _CONTROL).write_bytes(bytes(ctypes.sizeof(_Control)))
        faults = cls(place)
        faults._control.scope = os.fsencode((place / DISK).resolve())
        faults._control.image = os.fsencode((place / IMAGE).resolve())
        faults._control.starts_max = STARTS_MAX
        return faults

    @staticmethod
    def preloaded(place: Path, shim: Path) -> Mapping[str, str]:
        """The variables that put a process, and all it starts, under the control file in `place`."""
        return {"LD_PRELOAD": str(shim), _VARIABLE: str(place / _CONTROL)}

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._control = None
        self._map.close()

    def arm(self, rule: Rule) -> None:
        """From now on `rule` holds, and no other."""
        self._control.rule = _Rule(
            PHASES.index(rule.phase),
            PROCESSES.index(rule.process),
            CALLS.index(rule.call),
            rule.first,
            rule.last,
            rule.error,
        )

    def enter(self, phase: str) -> None:
        self._control.phase = PHASES.index(phase)

    def leave(self) -> None:
        """From now on calls pass, uncounted."""
        self._control.phase = 0

    @property
    def passing(self) -> bool:
        """Whether calls pass, uncounted."""
        return not self._control.phase

    def image(self, disk: Path) -> None:
        """From now on keep what a power loss would leave: what is there now, and what is synced."""
        self._control.imaging = 1
        for path in (disk, *disk.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY)
            ctypes.CDLL(None).faults_image(descriptor)
            os.close(descriptor)

    def lose_power(self) -> None:
        """What is synced from now on comes too late for the image."""
        self._control.imaging = 0

    def hits(self, phase: str, process: str, call: str) -> int:
        """How often `process` made `call` in `phase`."""
        return int(self._control.hits[PHASES.index(phase)][PROCESSES.index(process)][CALLS.index(call)])

    @property
    def fired(self) -> int:
        """How many calls were failed."""
        return int(self._control.fired)

    @property
    def failed(self) -> str:
        """The file that the first call was to be made on, if it was one."""
        return os.fsdecode(bytes(self._control.failed))

    @property
    def stormed(self) -> bool:
        """True when more processes were begun than any sound life needs; those beyond ended at once."""
        return int(self._control.starts) > int(self._control.starts_max)


def image_of(place: Path, target: Path) -> None:
    """Make `target` what the disk of `place` holds after a power loss."""
    _restore(place / IMAGE / "root.dir", target)


def _restore(names: Path, target: Path) -> None:
    target.mkdir()
    for line in names.read_text().splitlines() if names.exists() else []:
        kind, key, name = line.split(" ", 2)
        content = names.with_name(key)
        if kind == "d":
            _restore(names.with_name(f"{key}.dir"), target / name)
        elif content.exists():
            shutil.copyfile(content, target / name)
        else:
            (target / name).touch()  # its name came to the disk, its content did not


# ---- processes under control -----------------------------------------------------------------------------------------


class Zygote:
    """A preloaded interpreter that has imported `module`, and forks a child for each life: that saves its imports."""

    def __init__(self, shim: Path, module: str, directory: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # no line is read along with another, behind which nothing would be left to wait for
            cwd=directory,
            env={**environment, "LD_PRELOAD": str(shim)},
            start_new_session=True,
        )

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def run(self, place: Path, orders: str, timeout_s: float) -> int | None:
        """Live by `orders`, a line, under the control file in `place`. What is said goes to `said` and `stderr` there.

        Returns the exit status, None when the life took longer than `timeout_s`. No process of it is left.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{place}\t{orders}\n".encode())
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        in_time = select.select([self._process.stdout], [], [], timeout_s)[0]
        if not in_time:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        status = int(self._process.stdout.readline())
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        return status if in_time else None


def begun_as(place: Path, process: str) -> str:
    """The program text by which a forked process, of one under the control file in `place`, comes under it as this."""
    control = os.fsencode(place / _CONTROL)
    return f"__import__('ctypes').CDLL(None).faults_begin_as({control!r}, {PROCESSES.index(process)})\n"


def serve(life: Callable[[Path, str], None]) -> None:
    """Be a zygote's interpreter. Returns at the end of the input.

    Each child ends with its life: to take an interpreter down, module by module, costs a seventh of one. Where a life
    has left a thread it returns there too: such an interpreter waits.
    """
    gc.freeze()  # what was imported is nothing that a child need look at, or write to
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            place, _, orders = line.rstrip("\n").partition("\t")
            _begin(Path(place))
            life(Path(place), orders)
            if threading.active_count() == 1:
                os._exit(0)
            return
        _, status = os.waitpid(child, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))


def _begin(place: Path) -> None:
    """Be a process group, with output of its own, under the control file in `place`."""
    os.setsid()
    os.write(1, b"%d\n" % os.getpid())  # not before it has a group of its own, which can be killed
    for descriptor, name in enumerate((Path("/dev/null"), place / "said", place / "stderr")):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    control = os.fsencode(place / _CONTROL)
    os.environ[_VARIABLE] = os.fsdecode(control)
    ctypes.CDLL(None).faults_begin(control)
