"""The three standard streams as they really are: closed, broken, full, piped; and what is written to them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_STREAMS = (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))


def occupy() -> None:
    """Put something at those of the descriptors 0, 1 and 2 that are closed, before a data file gets one of them and a
    message is written into it. Reading and writing there fail as they did (on standard error, it is lost)."""
    for number, (name, mode, flags) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            at = os.open(os.devnull, flags)
            if at != number:
                os.dup2(at, number)
                os.close(at)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False, errors="backslashreplace"))


def abandon(stream: TextIO) -> None:
    """What is left in the buffer of a standard stream must not complain at exit, nor change the exit code."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def flush_remarks() -> None:
    """Let go of what nobody listens to: remarks of ours, and of the logger, that standard error did not take."""
    try:
        sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)


def print_bytes(line: bytes) -> None:
    """One line on standard output, untouched by any encoding."""
    with named("standard output"):
        sys.stdout.buffer.write(line + b"\n")


@contextmanager
def named(stream: str) -> Iterator[None]:
    """Say in an OSError of a descriptor what it is of."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or stream
        raise


def print_text(text: str) -> None:
    """As `print_bytes`; a name of a file comes out as the bytes it is."""
    print_bytes(os.fsencode(text))


def print_json(facts: Mapping[str, Any]) -> None:
    """One object on a line of standard output."""
    try:
        print_bytes(msgspec.json.encode(facts))
    except UnicodeEncodeError:  # the name of a file that is no UTF-8
        print_bytes(json.dumps(facts).encode())


def say(text: str) -> None:
    """Something for the person at the terminal: standard error, so that facts can be piped. If nobody listens, it is
    lost."""
    with suppress(OSError):
        sys.stderr.write(text + "\n")  # looked up at each call: a live progress bar stands in for it
        sys.stderr.flush()


def print_facts(title: str, facts: Mapping[str, Any], as_json: bool) -> None:
    """One object on a line, or a table."""
    if as_json:
        print_json(facts)
    else:
        print_table(title, facts)


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """A table on a terminal; elsewhere a plain line each, whole and unpadded."""
    known = {name: value for name, value in rows.items() if value is not None}
    if not sys.stdout.isatty():
        for name, value in known.items():
            print_text(f"{name}: {value}")
        return
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    for name, value in known.items():
        table.add_row(escape(name.replace("_", " ")), escape(readable(value)))
    Console(highlight=False).print(table)


def readable(value: object) -> str:
    """A number in groups of three digits on a terminal, for eyes; as it is elsewhere, for programs."""
    grouped = isinstance(value, int | float) and not isinstance(value, bool) and sys.stdout.isatty()
    return f"{value:,}" if grouped else str(value)
