"""`python -m perf`: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from perf.apply import run_apply
from perf.latency import run_latency
from perf.load import Load
from perf.memory import run_memory
from perf.snapshot import run_snapshot

_APPLY = """examples:
  python -m perf apply
  python -m perf apply --entries 1000000 --value-bytes 16 --chunk 5000 --shards 2 --json apply.json
  python -m perf apply --entries 20000 --rounds 1 --latency-rounds 1      # does it run at all?

The load is made in advance: some 1.2 KiB of memory an entry of 256 bytes in this process, half of that in each writer.
"""
_LATENCY = """examples:
  python -m perf latency
  python -m perf latency --busy 4 --json latency.json
  python -m perf latency --rounds 1      # does it run at all?

The table says what polling (spin_us) gives, on the machine as it is, and beside processes that want its cores.
"""
_MEMORY = """examples:
  python -m perf memory
  python -m perf memory --entries 5000000 --value-bytes 64 --json memory.json

Exit code 1: the memory grew with the stream.
"""
_SNAPSHOT = """examples:
  python -m perf snapshot
  python -m perf snapshot --entries 100000 --value-bytes 64 --into 5 --json snapshot.json
  python -m perf snapshot --entries 2000 --chunk 500 --rounds 1      # does it run at all?

The sizes are once, 4 and 16 times --entries; a few times the largest is needed on the disk.

Exit code 1: a restored state was not the one at its label; there are no figures then.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m perf", description="Measure the engine beside what it stands on.")
    commands = top.add_subparsers(dest="command", required=True)
    shape = argparse.RawDescriptionHelpFormatter
    apply = commands.add_parser("apply", help="throughput and latency", epilog=_APPLY, formatter_class=shape)
    _common(apply, entries=400_000, value_bytes=256)
    apply.add_argument("--rounds", type=_positive, default=5, help="rounds of the three sides (default: %(default)s)")
    apply.add_argument(
        "--latency-rounds",
        type=int,
        default=20,
        help="blocks of 100 single chunks of each kind; 0: none (default: %(default)s)",
    )
    apply.add_argument("--time-ms", action="store_true", help="also the engine with a time_ms of its own on each entry")
    latency = commands.add_parser("latency", help="one entry at a time", epilog=_LATENCY, formatter_class=shape)
    add = latency.add_argument
    add("--value-bytes", type=_positive, default=256, help="length of a value (default: %(default)s)")
    add("--shards", type=_at_least_two, default=2, help="worker processes, two or more (default: %(default)s)")
    add("--rounds", type=_positive, default=20, help="blocks of 100 of each kind (default: %(default)s)")
    add("--busy", type=_positive, default=2, help="busy processes beside the second table (default: %(default)s)")
    add("--dir", type=Path, help="where the temporary data goes (default: the system's temporary directory)")
    add("--json", type=Path, metavar="FILE", help="write everything here too")
    memory = commands.add_parser("memory", help="the coordinator's memory", epilog=_MEMORY, formatter_class=shape)
    _common(memory, entries=5_000_000, value_bytes=64)
    snapshot = commands.add_parser(
        "snapshot", help="the barrier's pause, copy and restore", epilog=_SNAPSHOT, formatter_class=shape
    )
    _common(snapshot, entries=50_000, value_bytes=256, records="records of the smallest of three sizes")
    snapshot.add_argument("--rounds", type=_positive, default=5, help="rounds of everything (default: %(default)s)")
    snapshot.add_argument(
        "--into", type=_positive, help="shards of the other restore (default: one more than --shards)"
    )
    return top


def _common(
    command: argparse.ArgumentParser, *, entries: int, value_bytes: int, records: str = "records in all"
) -> None:
    add = command.add_argument
    add("--entries", type=_positive, default=entries, help=f"{records} (default: %(default)s)")
    add("--value-bytes", type=_positive, default=value_bytes, help="length of a value (default: %(default)s)")
    add("--chunk", type=_positive, default=5000, help="entries a chunk (default: %(default)s)")
    add("--shards", type=_positive, default=2, help="worker processes (default: %(default)s)")
    add("--window", type=_positive, default=4, help="chunks in flight (default: %(default)s)")
    add("--seed", type=int, default=1, help="of the records (default: %(default)s)")
    add("--dir", type=Path, help="where the temporary data goes (default: the system's temporary directory)")
    add("--json", type=Path, metavar="FILE", help="write everything here too")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} is less than 2")
    return number


def main(arguments: Sequence[str]) -> int:
    args = parser().parse_args(arguments)
    if args.command == "latency":
        return run_latency(
            shards=args.shards,
            value_bytes=args.value_bytes,
            rounds=args.rounds,
            busy_processes=args.busy,
            parent=args.dir,
            output=args.json,
        )
    load = Load(args.entries, args.value_bytes, args.chunk, args.seed)
    if args.command == "memory":
        return run_memory(load, shards=args.shards, window=args.window, parent=args.dir, output=args.json)
    if args.command == "snapshot":
        return run_snapshot(
            load,
            shards=args.shards,
            into=args.into or args.shards + 1,
            rounds=args.rounds,
            window=args.window,
            parent=args.dir,
            output=args.json,
        )
    return run_apply(
        load,
        shards=args.shards,
        rounds=args.rounds,
        window=args.window,
        latency_rounds=args.latency_rounds,
        time_ms=args.time_ms,
        parent=args.dir,
        output=args.json,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
