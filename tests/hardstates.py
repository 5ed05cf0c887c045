"""Hard states, saved and found without an engine."""

from __future__ import annotations

from pathlib import Path

from shardengine import HardState
from shardengine.engine.storage.hardstate import HardStateFile

OLD, NEW = HardState(6, None), HardState(7, "node-b")


def found(directory: Path) -> HardState | None:
    """What a start finds there."""
    file = HardStateFile(directory)
    file.start()
    return file.state


def saved(directory: Path, *states: HardState) -> Path:
    """The file of a directory in which these were saved, one after another."""
    directory.mkdir(exist_ok=True)
    file = HardStateFile(directory)
    file.start()
    for state in states:
        file.save(state)
    return directory / "hardstate"
