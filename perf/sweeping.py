"""The options of the commands that measure many settings: `sweep`, `stages` and `model`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from perf.cells import Plan, cores
from perf.options import add, list_of, one_of, positive
from perf.quick import candidates, run_quick
from perf.stages import run_stages
from perf.streams import COMMANDS, KEYS
from perf.sweep import RUNS_MAX, run_sweep

SWEEP = f"""examples:
  python -m perf sweep --quick
  python -m perf sweep --quick --keys random,ordered --value-bytes 16,256
  python -m perf sweep --shards 1,2,3,4 --keys random,ordered,zipfian,hot --csv sweep.csv --json sweep.json
  python -m perf sweep --shards 2 --command put,cas,spanning,mixed --durability process,power --pin none,cores
  python -m perf sweep --entries 1000 --chunk 200 --rounds 1      # does it run at all?

Each option that takes a list is an axis: every combination is measured, beside py-lmdb in one process and beside the
limit, in rounds. More than {RUNS_MAX} runs need --yes. Exit code 1: a final state was wrong; there are no figures then.
"""
STAGES = """examples:
  python -m perf stages
  python -m perf stages --shards 2 --keys random,ordered --command put,mixed --json stages.json
  python -m perf stages --shards 1,2,4 --json stages.json      # what `model --stages` takes
  python -m perf stages --entries 1000 --chunk 200 --rounds 1      # does it run at all?

Functions of the engine are wrapped from outside, and clocks read some ten times a group; runs without that take turns
with those, and the table says what it costs. What a process waits for shows when it comes. Times are an entry's, of
those that go through the engine. Exit code 1: a final state was wrong; there are no figures then.
"""


def add_axes(command: argparse.ArgumentParser, *, entries: int = 100_000, rounds: int = 5) -> None:
    """The axes of a Plan but the shards, and what else it is made of."""
    numbers: Any = list_of(positive)
    add(command, "chunk", text="entries a chunk", kind=numbers, chunk="5000")
    add(command, "window", text="chunks in flight", kind=numbers, window="4")
    add(command, "value_bytes", text="length of a value", kind=numbers, value_bytes="256")
    add(command, "entries", text="entries a run, a tenth of them warm-up", entries=entries)
    add(command, "rounds", rounds=rounds)
    add(command, "seed", "dir", "json")
    for name, kinds, text in (
        ("keys", list(KEYS), "in which order keys come"),
        ("command", list(COMMANDS), "what is applied"),
        ("durability", ["process", "power"], "what an acknowledged chunk survives"),
        ("pin", ["none", "cores", "one"], "whether processes are bound to cores: each to one, or all to the first"),
    ):
        told = f"{text}: {', '.join(kinds)} (default: {kinds[0]})"
        command.add_argument(f"--{name}", type=list_of(one_of(kinds)), default=kinds[:1], help=told)


def plan_of(args: argparse.Namespace, **settled: Any) -> Plan:
    """Its fields are options, but for those that are settled."""
    given: dict[str, Any] = {name: settled.get(name, getattr(args, name)) for name in Plan.__struct_fields__}
    return Plan(**given)


def add_sweep(sweep: argparse.ArgumentParser) -> None:
    add_axes(sweep)
    sweep.add_argument(
        "--shards",
        type=list_of(positive),
        help=f"shard counts (default: 1,2; with --quick {','.join(map(str, candidates(len(cores()))))})",
    )
    sweep.add_argument("--quick", action="store_true", help="say how many shards, and why, in under two minutes")
    sweep.add_argument("--yes", action="store_true", help=f"also more than {RUNS_MAX} runs")
    sweep.add_argument("--csv", type=Path, metavar="FILE", help="write the table here too")


def sweep(args: argparse.Namespace) -> int:
    if args.quick:
        plan = plan_of(args, shards=args.shards or candidates(len(cores())))
        return run_quick(plan, parent=args.dir, output=args.json)
    plan = plan_of(args, shards=args.shards or [1, 2])
    return run_sweep(plan, yes=args.yes, parent=args.dir, output=args.json, table=args.csv)


def add_stages(stages: argparse.ArgumentParser) -> None:
    add_axes(stages)
    add(stages, "shards", text="shard counts", kind=list_of(positive), shards="1,2,4")


def stages(args: argparse.Namespace) -> int:
    return run_stages(plan_of(args), parent=args.dir, output=args.json)
