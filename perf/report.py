"""What all the commands say in the same way: the heading, the table, the file, and that an answer was wrong."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from perf.facts import machine
from perf.load import KEY_BYTES, Load


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
        output.write_text(json.dumps(facts, indent=1) + "\n")
