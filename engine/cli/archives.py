"""Where an exported snapshot is written to and read from: a file, a pipe, a device, a standard stream."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import click

from shardengine.engine.cli.common import ending_on_signals
from shardengine.engine.snapshot.archive import export_snapshot, import_snapshot, import_stream

STREAM = "-"
"""What stands for standard output, or standard input."""


def export_to(path: Path, file: Path, *, force: bool) -> None:
    """Write the snapshot at `path` to `file`: as a new file, or through a pipe or device that is there.

    A stream gets it from a temporary file, so nothing of a snapshot that is damaged is sent. Raises UsageError where
    something would be replaced.
    """
    with ending_on_signals():
        _export_to(path, file, force)


def _export_to(path: Path, file: Path, force: bool) -> None:
    if str(file) == STREAM:
        if sys.stdout.isatty():
            raise click.UsageError("standard output is a terminal: send it through a pipe, or name a FILE")
        _export_through(path, sys.stdout.buffer)
    elif _is_stream(file):
        with open(os.open(file, os.O_WRONLY | os.O_CLOEXEC), "wb") as stream:
            _export_through(path, stream)
    else:
        _refuse_to_replace(file, force)
        export_snapshot(path, file)


def _export_through(path: Path, stream: BinaryIO) -> None:
    with tempfile.TemporaryDirectory(prefix="shardengine-export-") as folder:
        whole = Path(folder, "snapshot")
        export_snapshot(path, whole)
        with whole.open("rb") as content:
            shutil.copyfileobj(content, stream, 1 << 20)
        stream.flush()


def _is_stream(file: Path) -> bool:
    try:
        mode = file.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _refuse_to_replace(file: Path, force: bool) -> None:
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise click.UsageError(f"{file} is a symbolic link; name the file itself, or - for standard output")
    if not stat.S_ISREG(mode):
        raise click.UsageError(f"{file} is no file, pipe or character device")
    if not force:
        raise click.UsageError(f"{file} is there already; --force replaces it")


def unpack(file: Path, directory: Path) -> Path:
    """Make the snapshot in `file`, which may be a stream, in `directory`. Returns its path there."""
    with ending_on_signals():
        if str(file) == STREAM:
            return import_stream(sys.stdin.buffer, "standard input", directory)
        if _is_stream(file):
            with file.open("rb") as stream:
                return import_stream(stream, str(file), directory)
        return import_snapshot(file, directory)
