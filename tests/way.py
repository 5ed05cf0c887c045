"""Who calls whom: the chains of calls of this project's functions, in the process that imports this and in workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import shardengine
from shardengine.shards.kv import KeyValue
from shardengine.shards.worker import Process

Chain = tuple[str, ...]
"""Calls, outermost first, each as `file function`; the last may be one into liblmdb."""

FILE = "WAY_OF_A_CHUNK"
"""The variable that names where workers leave their chains."""
_HOUSE = str(Path(shardengine.__file__).parent) + "/"
_LMDB = ("putmulti", "commit")
_UNNAMED = ("<lambda>", "<listcomp>", "<dictcomp>", "<genexpr>", "<module>")


class Traced(KeyValue):
    """The built-in machine, in workers that say how they came to apply."""


def chain_of(frame: FrameType | None) -> Chain:
    """The calls that led to `frame`, itself included."""
    calls: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_HOUSE) and code.co_name not in _UNNAMED:
            calls.append(f"{code.co_filename.removeprefix(_HOUSE)} {code.co_name}")
        frame = frame.f_back
    return tuple(reversed(calls))


@contextmanager
def followed() -> Iterator[set[Chain]]:
    """The chains of all calls of this thread meanwhile."""
    seen: set[Chain] = set()
    sys.setprofile(lambda frame, event, found: _note(frame, event, found, seen))
    try:
        yield seen
    finally:
        sys.setprofile(None)


def _note(frame: FrameType, event: str, found: Any, seen: set[Chain]) -> Chain | None:
    """Add the chain of a call to `seen`. Returns it if it was not there."""
    if event == "call":
        chain = chain_of(frame)
    elif event == "c_call" and found.__name__ in _LMDB:
        chain = (*chain_of(frame), f"lmdb {found.__name__}")
    else:
        return None
    if not chain or chain in seen:
        return None
    seen.add(chain)
    return chain


def read(path: Path) -> set[Chain]:
    """The chains that workers left in `path`."""
    return {tuple(line.split(" > ")) for line in path.read_text().splitlines()}


def _follow_worker() -> None:
    log = os.open(os.environ[FILE], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    seen: set[Chain] = set()

    def note(frame: FrameType, event: str, found: Any) -> None:
        chain = _note(frame, event, found, seen)
        if chain is not None:
            os.write(log, " > ".join(chain).encode() + b"\n")

    sys.setprofile(note)


if Process.is_worker and FILE in os.environ:
    _follow_worker()
