"""The control of tests/faults/shim.c: build it, preload it, say which calls fail, read what was called.

with Faults.create(path, scope) as faults:          # a new control file
    faults.arm(Rule("apply", "worker 0", "fdatasync", 3, 3, errno.EIO))
    subprocess.Popen(..., env={**environment(), **faults.preloaded(shim)})
with Faults.of_environment() as faults:             # in the process under test
    faults.enter("apply")                           # from here on calls count, and the chosen ones fail
    faults.leave()
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

SOURCE = Path(__file__).with_name("shim.c")
_LISTED = SOURCE.read_text().partition("#define CALLS")[2].partition("#define X")[0]
CALLS = re.findall(r"X\((\w+)\)", _LISTED)
PHASES = ("", "create", "start", "apply", "flush", "snapshot", "install", "respawn", "stop")
PROCESSES = ("host", "worker 0", "worker 1")
EVER = (1 << 63) - 1
SHORT = 1000  # in place of an errno: a write that takes half
STARTS_MAX = 60
_VARIABLE = "FAULTS_CONTROL"
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
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-ldl", "-pthread"], check=True, timeout=60)
    return library


class Faults:
    """A control file, mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_Control))
        self._control: Any = _Control.from_buffer(self._map)

    @classmethod
    def create(cls, path: Path, scope: Path) -> Faults:
        """A control file that fails nothing; files below `scope` count."""
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        faults = cls(path)
        faults._control.scope = os.fsencode(scope.resolve()) + b"/"
        faults._control.starts_max = STARTS_MAX
        return faults

    @classmethod
    def of_environment(cls) -> Faults:
        return cls(Path(os.environ[_VARIABLE]))

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._control = None
        self._map.close()

    def preloaded(self, shim: Path) -> Mapping[str, str]:
        """The variables that put a process, and all it starts, under this control."""
        return {"LD_PRELOAD": str(shim), _VARIABLE: str(self._path)}

    def arm(self, rule: Rule) -> None:
        numbers = _Rule(
            PHASES.index(rule.phase),
            PROCESSES.index(rule.process),
            CALLS.index(rule.call),
            rule.first,
            rule.last,
            rule.error,
        )
        self._control.rule = numbers

    def enter(self, phase: str) -> None:
        self._control.phase = PHASES.index(phase)

    def leave(self) -> None:
        """From now on calls pass, uncounted."""
        self._control.phase = 0

    def hits(self, phase: str, process: str, call: str) -> int:
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
