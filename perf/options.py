"""What the commands' options are: their types, defaults and words."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shardengine.shards.placement import SHARDS_MAX


def list_of(kind: Callable[[str], object]) -> Callable[[str], list[Any]]:
    """Of several, with commas in between."""

    def several(text: str) -> list[Any]:
        return [kind(one) for one in text.split(",")]

    several.__name__ = "list"
    return several


def only(kind: Callable[[str], object]) -> Callable[[str], list[Any]]:
    """A list of one."""
    return lambda text: [kind(text)]


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """One of these names."""

    def named(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return named


def percent(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{number:g} is no share of 100 percent")
    return number


def skew(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 10:
        raise argparse.ArgumentTypeError(f"{number:g} is not between 0 and 10")
    return number


def between(low: int, high: int) -> Callable[[str], int]:
    """A whole number from `low` to `high`."""

    def whole(text: str) -> int:
        number = int(text)
        if number < low:
            raise argparse.ArgumentTypeError(f"{number:,} is less than {low:,}")
        if number > high:
            raise argparse.ArgumentTypeError(f"{number:,} is more than {high:,}")
        return number

    whole.__name__ = "number"
    return whole


positive = between(1, 1_000_000_000)
shard_count = between(1, SHARDS_MAX)
at_least_two = between(2, SHARDS_MAX)
"""Shards, two or more."""
value_length = between(1, 1 << 20)
"""Bytes; what a directory takes that is made without another limit."""


def not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{number:g} is not above 0")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= 3600:
        raise argparse.ArgumentTypeError(f"{number:g} is not between 0 and 3600 seconds")
    return number


def tolerated(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{number:g} is no percentage from 0 on")
    return number


def file_to_write(text: str) -> Path:
    """Refused before anything is measured, if it could not be written then."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder")
    _check_writable(path if path.exists() else folder(str(path.parent)))
    return path


def folder(text: str) -> Path:
    """One that is there, to write into."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    _check_writable(path)
    return path


def folder_to_make(text: str) -> Path:
    """One that is there, or can be made."""
    path = Path(text)
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    folder(str(there))
    return path


def _check_writable(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} may not be written")


OPTIONS: dict[str, tuple[Callable[[str], object], int | str | None, str]] = {
    "entries": (positive, None, "records in all"),
    "value_bytes": (value_length, 256, "length of a value"),
    "chunk": (positive, 5000, "entries a chunk"),
    "shards": (shard_count, 2, "worker processes"),
    "window": (positive, 4, "chunks in flight"),
    "group_bytes": (not_negative, 0, "data that goes through one commit together at most, bytes; 0: by default"),
    "ring_bytes": (not_negative, 0, "size of a shard's ring, bytes, a multiple of 4096; 0: by default"),
    "seed": (int, 1, "of the records"),
    "rounds": (positive, 5, "rounds"),
    "busy": (positive, 2, "busy processes beside the second table"),
    "shares": (list_of(percent), "0,1,10,50,100", "shares of commands over several shards, percent"),
    "skews": (list_of(skew), "0,0.99", "how unevenly keys are drawn"),
    "keys": (positive, 1_000_000, "keys in all"),
    "callers": (list_of(positive), "1,16,256", "callers who propose again when their result has come"),
    "proposals": (positive, 100_000, "a stretch ends after so many"),
    "seconds": (seconds, 2, "or after so many seconds, if that is earlier"),
    "threads": (list_of(positive), "1,4", "threads that read through one SyncEngine"),
    "gets": (positive, 2_000, "gets a batch"),
    "dir": (folder, None, "where the temporary data goes (default: the system's temporary directory)"),
    "json": (file_to_write, None, "write everything here too"),
}
"""The type of an option, its default and what it says, wherever a command does not say otherwise."""
COMMON = ("entries", "value_bytes", "chunk", "shards", "window", "seed", "dir", "json")


def add(
    command: argparse.ArgumentParser,
    *names: str,
    text: str = "",
    kind: Callable[[str], object] | None = None,
    **defaults: int | str,
) -> None:
    """Give a command the options of those names; `text`, `kind` and `defaults` are its own."""
    for name in names:
        usual_kind, usual, usual_text = OPTIONS[name]
        default = defaults.get(name, usual)
        told = (text or usual_text) + (" (default: %(default)s)" if default is not None else "")
        flag = f"--{name.replace('_', '-')}"
        metavar = "FILE" if name == "json" else None
        command.add_argument(flag, type=kind or usual_kind, default=default, metavar=metavar, help=told)
