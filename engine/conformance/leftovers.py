"""What a machine leaves behind in the process that had it."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from shardengine import Entry
from shardengine.engine.conformance.base import Hooks, check, expect, refusal


class Leftovers(Hooks):
    """Checks of descriptors, processes, threads and temporary files. They look into /proc, hence need Linux."""

    @check()
    async def test_a_machine_that_was_stopped_leaves_nothing_open(self, tmp_path: Path) -> None:
        """After the first life, which may load what stays for good."""
        with _temporary(tmp_path / "temporary") as temporary:
            await _live(self, tmp_path / "first")
            before = _open_now()
            await _live(self, tmp_path / "second")
            after = _open_now()
            for what, found in after.items():
                expect(found - before[what], set(), f"a machine that was stopped leaves no {what}")
            expect(list(temporary.iterdir()), [], "a machine leaves no temporary file")


def _open_now() -> dict[str, set[str]]:
    gc.collect()
    return {
        "descriptor": _descriptors(),
        "process": _children(),
        "thread": {f"{thread.name} {thread.ident}" for thread in threading.enumerate()},
    }


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(f"{name} {Path('/proc/self/fd', name).readlink()}")
    return found


def _children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):
            found |= set((task / "children").read_text().split())
    return found


@contextmanager
def _temporary(directory: Path) -> Iterator[Path]:
    """Temporary files are made there, by this process and by those that it starts."""
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(directory))
        patch.setattr(tempfile, "tempdir", str(directory))
        yield directory


async def _live(suite: Hooks, place: Path) -> None:
    log = suite.log()
    with suite.running(place / "one") as machine:
        await suite.feed(machine, log, 1, 30)
        if "failing" in suite.supports:
            with refusal("a chunk that fails raises"):
                await machine.apply_chunk([Entry(31, 1, suite.failing())])
        if "snapshots" in suite.supports:
            (place / "snapshot").mkdir()
            await machine.generate_snapshot_data(place / "snapshot", None)
            metadata = machine.snapshot_metadata()
            assert metadata is not None
            await machine.apply_snapshot_from_file(metadata, place / "snapshot")
            with refusal("an install from nowhere raises"):
                await machine.apply_snapshot_from_file(metadata, place / "nowhere")
        if "reset" in suite.supports:
            await machine.reset()
