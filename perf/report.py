"""What all the commands say in the same way: the heading, the table, the file, and that an answer was wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from perf.facts import machine
from perf.load import KEY_BYTES, Load
from shardengine import EngineError


class CheckError(Exception):
    """An answer was wrong, so there are no figures."""


class RefusedError(Exception):
    """An engine cannot be set as it was asked for, so there are no figures."""


def show_machine(facts: dict[str, Any]) -> None:
    show_facts(facts["machine"])


def show_facts(facts: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in facts.items()))


def show_plan(facts: dict[str, Any], what: str) -> None:
    """The machine, and what the figures of a command with a plan depend on."""
    plan = facts["plan"]
    show_machine(facts)
    print(
        f"{what}, chunks of {plan['chunk']:,}, {plan['window']} in flight, durability {facts['durability']}, "
        f"median of {plan['rounds']} rounds\n"
    )


def show_heading(facts: dict[str, Any], last: str) -> None:
    """The machine, the load, how the engine is set, and `last`: what else the figures depend on."""
    load = facts["load"]
    show_machine(facts)
    print(
        f"{load['entries']:,} entries of {KEY_BYTES} + {load['value_bytes']} bytes, chunks of {load['chunk']:,}, "
        f"{facts['window']} in flight, {facts['shards']} shards, durability {facts['durability']}, {last}\n"
    )


def show_table(rows: Iterable[tuple[str, str]], width: int = 26) -> None:
    for name, value in rows:
        print(f"{name:<{width}}{value}")


def progress(text: str) -> None:
    """What is going on, for somebody who waits."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="" if text else "\r", file=sys.stderr, flush=True)


def carry_out(
    measured: Callable[[Path], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    *,
    parent: Path | None,
    output: Path | None,
) -> int:
    """Measure in a new directory, check, then print, and write `output`. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="shardengine-perf-", dir=parent) as name:
        try:
            facts = measured(Path(name))
        except CheckError as error:
            print(f"check failed: {error}", file=sys.stderr)
            return 1
        except RefusedError as error:
            print(error, file=sys.stderr)
            return 2
    show(facts)
    save(facts, output)
    return 0


def ended(work: Callable[[], int]) -> int:
    """The exit code of `work`; 3, with what it says, when the engine or a file could not; and 128+n when signal n, of
    those that ask a program to end, stopped it, after what it began is removed."""
    stopped_by = [signal.SIGINT]

    def stop(number: int, _: object) -> None:
        stopped_by.append(signal.Signals(number))
        signal.raise_signal(signal.SIGINT)  # which loops know

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return work()
    except KeyboardInterrupt:
        print(f"stopped by {stopped_by[-1].name}: there are no figures", file=sys.stderr)
        return 128 + stopped_by[-1]
    except (EngineError, OSError) as error:
        print(error, file=sys.stderr)
        return 3
    finally:
        signal.signal(signal.SIGTERM, before)


def setting(load: Load, shards: int, window: int) -> dict[str, Any]:
    """What was measured, on what: the facts that every command's begin with."""
    return {
        "machine": machine(),
        "load": {"entries": load.entries, "value_bytes": load.value_bytes, "chunk": load.chunk},
        "shards": shards,
        "durability": "process",
        "window": window,
    }


def save(facts: dict[str, Any], output: Path | None) -> None:
    if output is not None:
        write(output, json.dumps(facts, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """The whole of it, or what was there stays, unless it is a pipe, or its folder takes no other file. Raises OSError,
    which names it."""
    file = path.resolve()
    beside = file.with_name(f"{file.name}.new")
    at_once = path.exists() and not (path.is_file() and os.access(file.parent, os.W_OK))
    try:
        if at_once:
            path.write_text(text)  # a pipe has no name of its own
        else:
            beside.write_text(text)
            beside.replace(file)
    except OSError as error:
        if not at_once:
            beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
