"""Rows of what each command found: flat, with the values of single rounds; see `documents.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

Row = dict[str, Any]
Facts = Mapping[str, Any]
SAMPLES = "_samples"
STEADY = 1.25
"""The fastest round is so many times the slowest one at most."""


def figure(name: str, values: Iterable[float]) -> Row:
    """The median over rounds, and the values of those."""
    taken = list(values)
    return {name: median(taken), f"{name}{SAMPLES}": taken}


def is_steady(row: Row, name: str) -> bool:
    """Whether the rounds of a figure agree as well as can be told from; else something beside it was at work."""
    samples = row[f"{name}{SAMPLES}"]
    return bool(max(samples) <= STEADY * min(samples))


def of_apply(facts: Facts) -> list[Row]:
    rows = []
    for side, seconds in facts["apply"]["seconds"].items():
        row = {"shards": facts["shards"], "side": side}
        row |= figure("entries_per_s", (facts["load"]["entries"] / took for took in seconds))
        cpu = facts["apply"]["cpu_ns_per_entry"].get(side, {})
        rows.append(row | {f"{who}_cpu_ns": took for who, took in cpu.items()})
    return rows


def of_latency(facts: Facts) -> list[Row]:
    """A row for each kind of round trip."""
    kinds = ("pipe", "one_shard", "two_shards")
    return [
        {
            "machine": row["machine"],
            "spin_us": row["spin_us"],
            "round_trip": kind.replace("_", " "),
            "round_trip_us": row[f"{kind}_us"],
        }
        for row in facts["latency"]
        for kind in kinds
    ]


def of_peers(facts: Facts) -> list[Row]:
    entries = facts["plan"]["entries"]
    return [
        {"side": row["side"], "group": row["group"]}
        | figure("entries_per_s", (entries / took for took in row["seconds"]))
        | {"over_engine": row["over_engine"]}
        for row in facts["peers"]
    ]


def of_node(facts: Facts) -> list[Row]:
    return [
        {"callers": row["callers"], "side": row["side"]}
        | figure("proposals_per_s", row["rates"])
        | {"p50_us": row["p50_us"], "p99_us": row["p99_us"], "p999_us": row["p99_9_us"], "cpu_us": row["cpu_us"]}
        | {"per_frame": row["entries_per_frame"]}
        for row in facts["node"]
    ]


def of_reads(facts: Facts) -> list[Row]:
    return [
        {"shards": row["shards"], "read": row["read"], "threads": row["threads"]}
        | figure("get_ns", row["ns"])
        | figure("txn_get_ns", row["txn_ns"])
        | {"over_txn_get": row["over_txn_get"]}
        for row in facts["reads"]
    ]


def of_snapshot(facts: Facts) -> list[Row]:
    """Pauses for each size and stream; copies, what is applied meanwhile, and restores of the largest size."""
    found, seconds = facts["snapshot"], facts["snapshot"]["seconds"]
    rows = [
        {"what": "pause", "of": stream, "records": int(records)} | figure("pause_ms", (1e3 * took for took in pauses))
        for records, streams in seconds["pause"].items()
        for stream, pauses in streams.items()
    ]
    copied, restored = found["copy_mb"], found["restore_mb"]
    applied = found["apply_entries_per_second"]["alone"] * median(seconds["apply"]["alone"])
    rows += [_rate("copy", side, "mb_per_s", copied, took) for side, took in seconds["copy"].items()]
    rows += [_rate("apply", how, "entries_per_s", applied, took) for how, took in seconds["apply"].items()]
    rows += [_rate("restore", f"{n} shards", "mb_per_s", restored, took) for n, took in seconds["restore"].items()]
    return rows


def _rate(what: str, of: str, name: str, amount: float, seconds: Iterable[float]) -> Row:
    return {"what": what, "of": of} | figure(name, (amount / took for took in seconds))


def of_transactions(facts: Facts) -> list[Row]:
    entries = facts["plan"]["entries"]
    return [
        {"skew": row["skew"], "spanning_percent": row["spanning_percent"], "shards": row["shards"]}
        | figure("entries_per_s", (entries / took for took in row["seconds"]))
        for row in facts["transactions"]
    ]


def of_machines(facts: Facts) -> list[Row]:
    entries = facts["plan"]["entries"]
    return [
        {"machine": row["machine"], "side": side} | figure("entries_per_s", (entries / took for took in seconds))
        for row in facts["machines"]
        for side, seconds in row["seconds"].items()
    ]


def of_cluster(facts: Facts) -> list[Row]:
    return [
        {"callers": row["callers"], "side": row["side"]}
        | figure("proposals_per_s", row["rates"])
        | {"p50_us": row["p50_us"], "p99_us": row["p99_us"], "over_bare": row["over_bare"]}
        for row in facts["cluster"]
    ]


ROWS_OF: dict[str, tuple[str, Callable[[Facts], list[Row]]]] = {
    "apply": ("apply", of_apply),
    "snapshot": ("snapshot", of_snapshot),
    "peers": ("peers", of_peers),
    "node": ("node", of_node),
    "reads": ("reads", of_reads),
    "latency": ("latency", of_latency),
    "transactions": ("transactions", of_transactions),
    "machines": ("machines", of_machines),
    "cluster": ("cluster", of_cluster),
}
"""By command: which of its facts tells that they are its, and what makes rows of them. `apply` has latencies too."""
