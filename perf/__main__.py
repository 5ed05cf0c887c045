"""`python -m perf`: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from perf.apply import run_apply
from perf.comparing import EXAMPLES as _COMPARE
from perf.comparing import add_compare, run_compare
from perf.latency import run_latency
from perf.load import Load
from perf.machines import Plan as MachinesPlan
from perf.machines import run_machines
from perf.memory import run_memory
from perf.node import Plan as NodePlan
from perf.node import run_node
from perf.options import COMMON, add, at_least_two, between, file_to_write, list_of, shard_count
from perf.reads import Plan as ReadsPlan
from perf.reads import run_reads
from perf.report import ended
from perf.reporting import EXAMPLES as _REPORT
from perf.reporting import add_report, run_report
from perf.smoke import EXAMPLES as _SMOKE
from perf.smoke import add_smoke, run_smoke
from perf.snapshot import run_snapshot
from perf.sweeping import MODEL, STAGES, SWEEP, add_model, add_stages, add_sweep, model, stages, sweep
from perf.transactions import Plan as TransactionsPlan
from perf.transactions import run_transactions

_APPLY = """examples:
  python -m perf apply
  python -m perf apply --entries 1000000 --value-bytes 16 --chunk 5000 --shards 2 --json apply.json
  python -m perf apply --entries 20000 --rounds 1 --latency-rounds 1      # does it run at all?

The load is made in advance: some 1.2 KiB of memory an entry of 256 bytes in this process, half of that in each writer.
"""
_CLUSTER = """examples:
  python -m perf cluster
  python -m perf cluster --callers 256 --proposals 20000 --json cluster.json
  python -m perf cluster --proposals 100 --callers 4 --rounds 1      # does it run at all?

Three servers are started on this machine, so they share its cores and its disk with the node and with each other.
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
_TRANSACTIONS = """examples:
  python -m perf transactions
  python -m perf transactions --shards 1,2,4 --shares 0,10 --skews 0 --json transactions.json
  python -m perf transactions --keys 2000 --entries 2000 --chunk 500 --rounds 1      # does it run at all?

The commands are the bank's transfers. A share of them is between accounts on two shards, under every shard count above
one; all others stay on one. Every shard count applies the same log. A skew of 0 is uniform, any other zipfian.
"""
_MACHINES = """examples:
  python -m perf machines
  python -m perf machines --keys 1000000 --entries 500000 --shards 4 --json machines.json
  python -m perf machines --keys 2000 --entries 2000 --chunk 500 --rounds 1      # does it run at all?

Each example machine on this engine, on MemoryStateMachine, and over py-lmdb in one process, one transaction a chunk.
"""
_NODE = """examples:
  python -m perf node
  python -m perf node --callers 1,16,256,1024 --value-bytes 100 --rounds 10 --dir /var/tmp --json node.json
  python -m perf node --proposals 200 --rounds 1      # does it run at all?

One caller is always measured, and what it does without a node is what all is compared with: a write and an fdatasync
for each put, and an SQLite transaction for each. The directory decides which disk that is.
"""
_READS = """examples:
  python -m perf reads
  python -m perf reads --shards 4 --threads 1,2,8 --keys 1000000 --json reads.json
  python -m perf reads --keys 500 --gets 100 --rounds 2      # does it run at all?

Every batch is followed or preceded by one of txn.get, in a process that has nothing but py-lmdb. In several threads a
get takes the time of all together, by the number of gets.
"""
_PEERS = """examples:
  python -m perf peers
  python -m perf peers --shards 1,2,4 --value-bytes 16 --json peers.json --svg peers.svg
  python -m perf peers --entries 2000 --chunk 500 --rounds 1      # does it run at all?

Needs the extra `rocksdb`. All sides get the same puts: this engine and the other state machines as entries, the stores
alone as key and value.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m perf", description="Measure the engine beside what it stands on.")
    commands = top.add_subparsers(dest="measures", metavar="command", required=True)
    for name, (give, text, examples, _) in _COMMANDS.items():
        shape = argparse.RawDescriptionHelpFormatter
        give(commands.add_parser(name, help=text, epilog=examples, formatter_class=shape))
    return top


def _add_apply(apply: argparse.ArgumentParser) -> None:
    add(apply, *COMMON, entries=400_000)
    add(apply, "rounds", text="rounds of the three sides")
    apply.add_argument(
        "--latency-rounds",
        type=between(0, 1_000_000),
        default=20,
        help="blocks of 100 single chunks of each kind; 0: none (default: %(default)s)",
    )
    apply.add_argument("--time-ms", action="store_true", help="also the engine with a time_ms of its own on each entry")


def _add_latency(latency: argparse.ArgumentParser) -> None:
    add(latency, "value_bytes", "dir", "json")
    add(latency, "shards", text="worker processes, two or more", kind=at_least_two)
    add(latency, "rounds", text="blocks of 100 of each kind", rounds=20)
    add(latency, "busy")


def _add_memory(memory: argparse.ArgumentParser) -> None:
    add(memory, *COMMON, entries=5_000_000, value_bytes=64)


def _add_snapshot(snapshot: argparse.ArgumentParser) -> None:
    add(snapshot, *COMMON[1:])
    add(snapshot, "entries", text="records of the smallest of three sizes", entries=50_000)
    add(snapshot, "rounds", text="rounds of everything")
    told = "shards of the other restore (default: one more than --shards)"
    snapshot.add_argument("--into", type=shard_count, help=told)


def _add_transactions(transactions: argparse.ArgumentParser) -> None:
    add(transactions, "chunk", "window", "seed", "dir", "json", "shares", "skews", "keys")
    add(transactions, "shards", text="shard counts", kind=list_of(shard_count), shards="1,2")
    add(transactions, "entries", text="transfers of each kind, each round", entries=100_000)
    add(transactions, "rounds", rounds=3)


def _add_machines(machines: argparse.ArgumentParser) -> None:
    add(machines, "chunk", "shards", "window", "seed", "dir", "json")
    add(machines, "keys", text="accounts, players and buckets", keys=50_000)
    add(machines, "entries", text="entries of each machine", entries=30_000)
    add(machines, "rounds", text="rounds of the three sides", rounds=3)


def _add_node(node: argparse.ArgumentParser) -> None:
    add(node, "callers", "value_bytes", "shards", "seed", "rounds", "dir", "json")
    add(node, "proposals", "seconds")


def _add_peers(peers: argparse.ArgumentParser) -> None:
    add(peers, "value_bytes", "chunk", "window", "seed", "dir", "json")
    add(peers, "shards", text="shard counts of the engine", kind=list_of(shard_count), shards="1,2")
    add(peers, "entries", entries=200_000)
    add(peers, "rounds", text="rounds of all sides")
    peers.add_argument("--svg", type=file_to_write, help="also draw them, into this file")


def _add_reads(reads: argparse.ArgumentParser) -> None:
    add(reads, "threads", "gets", "value_bytes", "seed", "dir", "json")
    add(reads, "shards", text="shard counts", kind=list_of(shard_count), shards="1,2")
    add(reads, "keys", text="records", keys=100_000)
    add(reads, "rounds", text="batches of each read", rounds=100)


def main(arguments: Sequence[str]) -> int:
    args = parser().parse_args(arguments)
    _, _, _, measure = _COMMANDS[args.measures]
    return ended(partial(measure, args))


def _run_latency(args: argparse.Namespace) -> int:
    return run_latency(
        shards=args.shards,
        value_bytes=args.value_bytes,
        rounds=args.rounds,
        busy_processes=args.busy,
        parent=args.dir,
        output=args.json,
    )


def _load(args: argparse.Namespace) -> Load:
    return Load(args.entries, args.value_bytes, args.chunk, args.seed)


def _run_memory(args: argparse.Namespace) -> int:
    return run_memory(_load(args), shards=args.shards, window=args.window, parent=args.dir, output=args.json)


def _run_snapshot(args: argparse.Namespace) -> int:
    return run_snapshot(
        _load(args),
        shards=args.shards,
        into=args.into or args.shards + 1,
        rounds=args.rounds,
        window=args.window,
        parent=args.dir,
        output=args.json,
    )


def _run_apply(args: argparse.Namespace) -> int:
    return run_apply(
        _load(args),
        shards=args.shards,
        rounds=args.rounds,
        window=args.window,
        latency_rounds=args.latency_rounds,
        time_ms=args.time_ms,
        parent=args.dir,
        output=args.json,
    )


def _plan(kind: type[Any], args: argparse.Namespace) -> Any:
    """Its fields are options."""
    return kind(**{name: getattr(args, name) for name in kind.__struct_fields__})


def _run_transactions(args: argparse.Namespace) -> int:
    return run_transactions(_plan(TransactionsPlan, args), parent=args.dir, output=args.json)


def _run_machines(args: argparse.Namespace) -> int:
    return run_machines(_plan(MachinesPlan, args), parent=args.dir, output=args.json)


def _run_node(args: argparse.Namespace) -> int:
    return run_node(_plan(NodePlan, args), parent=args.dir, output=args.json)


def _run_cluster(args: argparse.Namespace) -> int:
    try:
        from perf.cluster import run_cluster
    except ModuleNotFoundError as error:
        if error.name != "nats":
            raise
        print("this command needs nats-py: pip install 'shardengine[cluster]'", file=sys.stderr)
        return 2
    return run_cluster(_plan(NodePlan, args), parent=args.dir, output=args.json)


def _run_reads(args: argparse.Namespace) -> int:
    return run_reads(_plan(ReadsPlan, args), parent=args.dir, output=args.json)


def _run_peers(args: argparse.Namespace) -> int:
    try:
        from perf.besides import Plan as PeersPlan
        from perf.besides import run_peers
    except ModuleNotFoundError as error:
        if error.name != "rocksdict":
            raise
        print("this command needs rocksdict: pip install 'shardengine[rocksdb]'", file=sys.stderr)
        return 2
    return run_peers(_plan(PeersPlan, args), parent=args.dir, output=args.json, svg=args.svg)


_COMMANDS = {
    "apply": (_add_apply, "throughput and latency", _APPLY, _run_apply),
    "cluster": (_add_node, "proposals to a replicated log, beside a bare publish", _CLUSTER, _run_cluster),
    "latency": (_add_latency, "one entry at a time", _LATENCY, _run_latency),
    "memory": (_add_memory, "the coordinator's memory", _MEMORY, _run_memory),
    "snapshot": (_add_snapshot, "the barrier's pause, copy and restore", _SNAPSHOT, _run_snapshot),
    "transactions": (_add_transactions, "commands over several shards", _TRANSACTIONS, _run_transactions),
    "machines": (_add_machines, "the example machines", _MACHINES, _run_machines),
    "node": (_add_node, "proposals to a node, beside the disk and SQLite", _NODE, _run_node),
    "peers": (_add_peers, "the engine beside other state machines and stores", _PEERS, _run_peers),
    "reads": (_add_reads, "gets in one thread, in several, and in another process", _READS, _run_reads),
    "report": (add_report, "everything worth knowing, as one page", _REPORT, run_report),
    "compare": (add_compare, "what changed beyond the noise", _COMPARE, run_compare),
    "smoke": (add_smoke, "ratios beside those recorded", _SMOKE, run_smoke),
    "sweep": (add_sweep, "the engine set in many ways, or how many shards", SWEEP, sweep),
    "stages": (add_stages, "what an entry's time goes to, stage by stage", STAGES, stages),
    "model": (add_model, "what other shard counts and other hosts would do", MODEL, model),
}
"""Of each: what adds its options, what it measures, examples, and what runs it."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
