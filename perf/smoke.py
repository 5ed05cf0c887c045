"""`python -m perf smoke`: ratios, which say the same on a quick machine and on a slow one, beside those recorded."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf import latency
from perf.apply import Given, Throughput
from perf.documents import FORMAT
from perf.facts import machine
from perf.load import Load
from perf.options import folder, tolerated
from perf.report import carry_out, write
from shardengine import run

EXAMPLES = """examples:
  python -m perf smoke
  python -m perf smoke --tolerance 30
  python -m perf smoke --record      # on a quiet machine: these are what later runs are compared with

Ratios are recorded for each number of cores and implementation (compiled, python), in perf/recorded.json.

Exit code 1: a ratio is worse than recorded by more than the tolerance, or an answer was wrong; 2: none are recorded for
such a machine.
"""
RECORDED = Path(__file__).parent / "recorded.json"
BETTER_WHEN_HIGHER = {
    "engine_over_py_lmdb": True,
    "two_shards_over_one": True,
    "one_entry_over_pipe": False,
}


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    entries: int = 100_000
    value_bytes: int = 256
    chunk: int = 5_000
    rounds: int = 5
    seed: int = 1


PLAN = Plan()


def measured(directory: Path, plan: Plan) -> dict[str, Any]:
    """The ratios, and those of single rounds, whose sides took turns. Raises CheckError when an answer is wrong."""
    given = Given.of(Load(plan.entries, plan.value_bytes, plan.chunk, plan.seed))
    one, two = (Throughput(directory, given, shards, window=4, time_ms=False) for shards in (1, 2))
    trips = []
    for number in range(plan.rounds):
        for side in (one, two) if number % 2 else (two, one):
            side.round(number)
        place = directory / f"latency-{number}"
        trips += run(latency.measure(place, 2, plan.value_bytes, rounds=2))
    rounds = {
        "engine_over_py_lmdb": _ratios(two.seconds["py-lmdb"], two.seconds["engine"]),
        "two_shards_over_one": _ratios(one.seconds["engine"], two.seconds["engine"]),
        "one_entry_over_pipe": [trip.one_shard_us / trip.pipe_us for trip in trips],
    }
    return {"machine": machine(), "ratios": {name: median(values) for name, values in rounds.items()}, "rounds": rounds}


def _ratios(first: list[float], second: list[float]) -> list[float]:
    return [one / other for one, other in zip(first, second, strict=True)]


def kind(facts: Mapping[str, Any]) -> str:
    """Machines of one kind have the same ratios, about."""
    return f"{facts['cores']} cores, {facts['puts']}"


def worse_by(name: str, ratio: float, recorded: float) -> float:
    """Percent; below 0 is better."""
    return 100 * ((recorded / ratio if BETTER_WHEN_HIGHER[name] else ratio / recorded) - 1)


def recorded_in(path: Path) -> dict[str, Any]:
    """By kind of machine."""
    kinds: dict[str, Any] = json.loads(path.read_text())["kinds"] if path.exists() else {}
    return kinds


def record(facts: Mapping[str, Any], path: Path) -> None:
    """Beside what is recorded for machines of other kinds."""
    kinds = recorded_in(path) | {kind(facts["machine"]): facts}
    write(path, json.dumps({"format": FORMAT, "kinds": kinds}, indent=1) + "\n")


def add_smoke(command: argparse.ArgumentParser) -> None:
    command.add_argument("--record", action="store_true", help="write the ratios instead of comparing them")
    command.add_argument("--tolerance", type=tolerated, default=25, help="percent (default: %(default)s)")
    command.add_argument("--recorded", type=Path, default=RECORDED, help="where they are (default: %(default)s)")
    command.add_argument("--dir", type=folder, help="where the temporary data goes")


def run_smoke(args: argparse.Namespace) -> int:
    """Measure, check, and compare or record. Returns the exit code."""
    here = kind(machine())
    try:
        known = recorded_in(args.recorded).get(here)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        print(f"{args.recorded} cannot be read: {error!r}", file=sys.stderr)
        return 2
    if known is None and not args.record:
        print(f"nothing is recorded for {here}: `python -m perf smoke --record` does", file=sys.stderr)
        return 2
    found: list[dict[str, Any]] = []
    code = carry_out(partial(measured, plan=PLAN), found.append, parent=args.dir, output=None)
    if code:
        return code
    (facts,) = found
    if args.record:
        record(facts, args.recorded)
        print(f"recorded for {here} in {args.recorded}")
        return 0
    assert known is not None
    return 1 if show(facts, known["ratios"], args.tolerance) else 0


_ROW = "{:<24}{:>10}{:>10}{:>20}   {}"


def show(facts: Mapping[str, Any], known: Mapping[str, float], tolerance: float) -> int:
    """Print them. Returns how many are worse by more than the tolerance."""
    bad = 0
    print(_ROW.format(kind(facts["machine"]), "recorded", "now", "rounds", ""))
    for name, ratio in facts["ratios"].items():
        values, worse = facts["rounds"][name], worse_by(name, ratio, known[name])
        verdict = "WORSE" if worse > tolerance else "better: record it?" if worse < -tolerance else "as recorded"
        bad += worse > tolerance
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(_ROW.format(name, f"{known[name]:.2f}", f"{ratio:.2f}", spread, verdict))
    print(f"\n{'worse' if bad else 'not worse'} than recorded by more than {tolerance:g} %")
    return bad
