"""The options of the commands that measure many settings: `sweep`, `stages` and `model`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perf.cells import Plan, cores
from perf.options import (
    add,
    file_to_write,
    list_of,
    not_negative,
    one_of,
    only,
    positive,
    positive_float,
    shard_count,
    value_length,
)
from perf.predicting import COUNTED, Asked, run_model
from perf.quick import candidates, run_quick
from perf.stages import run_stages
from perf.streams import COMMANDS, KEYS
from perf.sweep import RUNS_MAX, run_sweep

SWEEP = f"""examples:
  python -m perf sweep --quick
  python -m perf sweep --quick --keys random,ordered --value-bytes 16,256
  python -m perf sweep --shards 1,2,3,4 --keys random,ordered,zipfian,hot --csv sweep.csv --json sweep.json
  python -m perf sweep --shards 2 --command put,cas,spanning,mixed --durability process,power --pin none,cores
  python -m perf sweep --shards 2 --group-bytes 1048576,0,16777216 --ring-bytes 8388608,0,134217728
  python -m perf sweep --entries 1000 --chunk 200 --rounds 1      # does it run at all?

Each option that takes a list is an axis: every combination is measured, beside py-lmdb in one process and beside the
limit, in rounds. More than {RUNS_MAX} runs need --yes. Exit code 1: a final state was wrong; 2: an engine cannot be set
so, or a chunk is too large for its rings. There are no figures then.
"""
STAGES = """examples:
  python -m perf stages
  python -m perf stages --shards 2 --keys random,ordered --command put,mixed --json stages.json
  python -m perf stages --shards 1,2,4 --json stages.json      # what `model --stages` takes
  python -m perf stages --entries 1000 --chunk 200 --rounds 1      # does it run at all?

Functions of the engine are wrapped from outside, and clocks read some fifty times a group; runs without that take turns
with those, and the table says what it costs. What a process waits for shows when it comes. Times are an entry's, of
those that go through the engine. Exit code 1: a final state was wrong; there are no figures then.
"""
MODEL = """examples:
  python -m perf model
  python -m perf model --cores 8,16 --shards 4,8 --keys ordered --value-bytes 16
  python -m perf model --check --json model.json
  python -m perf model --stages stages.json --cores 64 --shards 16,32,63
  python -m perf model --entries 2000 --chunk 200 --rounds 1      # does it run at all?

Counts stages with 1, 2 and 4 shards, unless a file of `stages --shards 1,2,4 --json` is given, and says what the
formulas in perf/model.py make of them. --check measures 1 to 4 shards beside it, on all cores and pinned to one. Exit
code 1: a final state was wrong; 2: the file holds no such stages. There are no figures then.
"""


def add_axes(
    command: argparse.ArgumentParser, *, entries: int = 100_000, rounds: int = 5, several: bool = True
) -> None:
    """The axes of a Plan but the shards, and what else it is made of; of each `several` values, or one."""
    many: Callable[[Callable[[str], object]], Callable[[str], list[Any]]] = list_of if several else only
    numbers: Any = many(positive)
    add(command, "chunk", text="entries a chunk", kind=numbers, chunk="5000")
    add(command, "window", text="chunks in flight", kind=numbers, window="4")
    add(command, "group_bytes", "ring_bytes", kind=many(not_negative), group_bytes="0", ring_bytes="0")
    add(command, "value_bytes", text="length of a value", kind=many(value_length), value_bytes="256")
    add(command, "entries", text="entries a run, a tenth of them warm-up", entries=entries)
    add(command, "rounds", rounds=rounds)
    add(command, "seed", "dir", "json")
    for name, kinds, text in (
        ("keys", list(KEYS), "in which order keys come"),
        ("command", list(COMMANDS), "what is applied"),
        ("durability", ["process", "power"], "what an acknowledged chunk survives"),
        ("pin", ["none", "cores", "one"], "whether processes are bound to cores: each to one, or all to the first"),
    )[: None if several else -1]:
        told = f"{text}: {', '.join(kinds)} (default: {kinds[0]})"
        command.add_argument(f"--{name}", type=many(one_of(kinds)), default=kinds[:1], help=told)


def plan_of(args: argparse.Namespace, **settled: Any) -> Plan:
    """Its fields are options, but for those that are settled."""
    given = {**vars(args), **settled}
    return Plan(**{name: given[name] for name in Plan.__struct_fields__})


def add_sweep(sweep: argparse.ArgumentParser) -> None:
    add_axes(sweep)
    sweep.add_argument(
        "--shards",
        type=list_of(shard_count),
        help=f"shard counts (default: 1,2; with --quick {','.join(map(str, candidates(len(cores()))))})",
    )
    sweep.add_argument("--quick", action="store_true", help="say how many shards, and why, in under two minutes")
    sweep.add_argument("--yes", action="store_true", help=f"also more than {RUNS_MAX} runs")
    sweep.add_argument("--csv", type=file_to_write, metavar="FILE", help="write the table here too")


def sweep(args: argparse.Namespace) -> int:
    if args.quick and args.csv is not None:
        print("--csv is for the whole table: leave --quick out, or take --json", file=sys.stderr)
        return 2
    if args.quick:
        plan = plan_of(args, shards=args.shards or candidates(len(cores())))
        return run_quick(plan, parent=args.dir, output=args.json)
    plan = plan_of(args, shards=args.shards or [1, 2])
    return run_sweep(plan, yes=args.yes, parent=args.dir, output=args.json, table=args.csv)


def add_stages(stages: argparse.ArgumentParser) -> None:
    add_axes(stages)
    add(stages, "shards", text="shard counts", kind=list_of(shard_count), shards="1,2,4")


def stages(args: argparse.Namespace) -> int:
    return run_stages(plan_of(args), parent=args.dir, output=args.json)


def add_model(model: argparse.ArgumentParser) -> None:
    add_axes(model, rounds=3, several=False)
    add(model, "shards", text="shard counts to predict", kind=list_of(shard_count), shards="1,2,3,4")
    here = len(cores())
    model.add_argument("--cores", type=list_of(positive), default=[here], help=f"cores to predict (default: {here})")
    told = "bandwidth of the host's memory, if it is to count"
    model.add_argument("--memory-gb-s", type=positive_float, metavar="GB/S", help=told)
    model.add_argument("--stages", type=Path, metavar="FILE", help="use the stages of this file of `stages --json`")
    model.add_argument("--check", action="store_true", help="measure 1 to 4 shards beside it, and say the errors")


def model(args: argparse.Namespace) -> int:
    plan = plan_of(args, shards=list(COUNTED[:1]), pin=["none"])
    asked = Asked(args.cores, args.shards, args.memory_gb_s, args.stages, args.check)
    return run_model(plan, asked, parent=args.dir, output=args.json)
