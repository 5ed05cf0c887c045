"""Documents that nobody measured, and what pages hold: for the tests of `perf report` and `perf compare`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from multiprocessing import resource_tracker
from typing import Any
from xml.etree import ElementTree

from perf.documents import Document, document
from perf.rows import Row, figure

SVG = "http://www.w3.org/2000/svg"
FACTS = {"cores": 2, "cpu": "a processor", "puts": "compiled", "load_average": 0.1}
ROUNDS = (0.98, 0.99, 1.0, 1.01, 1.02)


def around(name: str, value: float, rounds: Sequence[float] = ROUNDS) -> Row:
    return figure(name, [value * one for one in rounds])


def throughput(*rates: tuple[str, int, float], rounds: Sequence[float] = ROUNDS) -> Document:
    load = {"value_bytes": 256, "keys": "random", "chunk": 5000}
    rows = [
        {"side": side, "shards": shards, **load, **around("entries_per_s", rate, rounds)}
        for side, shards, rate in rates
    ]
    return document("sweep", FACTS, {"entries": 1000, "value_bytes": [256], "chunk": [5000]}, rows)


USUAL = throughput(("engine", 1, 100_000), ("engine", 2, 160_000), ("py-lmdb", 1, 80_000), ("limit", 2, 200_000))


def open_loop(*loads: tuple[int, float]) -> Document:
    """Percent of the maximum of 1,000 entries/s, and how much of that was done."""
    rows: list[Row] = []
    for percent, done in loads:
        row = {"shards": 2, "schedule": "open", "offered_percent": percent, "offered_per_s": 10.0 * percent}
        row |= around("achieved_per_s", 10.0 * percent * done)
        for name, us in (("p50_us", 100), ("p99_us", 900), ("p999_us", 5_000)):
            row |= around(name, us * percent)
        rows.append(row)
    rows.append({"shards": 2, "schedule": "all due at once", **around("achieved_per_s", 1_000)})
    return document("offered", FACTS, {"value_bytes": 256, "chunk": 5000}, rows)


def staged(shards: int) -> list[Row]:
    rows = [{"shards": shards, "process": "engine", "stage": "all", **around("entries_per_s", 1)}]
    for process, stages in (
        ("coordinator", {"split": 300.0, "waits for a vote": 700.0}),
        ("workers", {"put": 500.0, "sort": 100.0, "waits for a part": 300.0, "waits for COMMIT": 100.0}),
    ):
        rows.append({"shards": shards, "process": process, "stage": "all", **around("wall_ns_per_entry", 1_000)})
        rows += (
            {"shards": shards, "process": process, "stage": stage, **around("wall_ns_per_entry", ns)}
            for stage, ns in stages.items()
        )
    return rows


def _trips() -> list[Row]:
    return [
        {"machine": "as it is", "spin_us": spin, "round_trip": name, "round_trip_us": us}
        for spin in (500, 0)
        for name, us in (("pipe", 10.0), ("one shard", 25.0), ("two shards", 75.0))
    ]


def _peers() -> list[Row]:
    sides = (
        ("engine, 2 shards", "engine", 300),
        ("FileStateMachine", "state machine", 100),
        ("RocksDB", "store alone", 400),
    )
    return [
        {"side": side, "group": group, **around("entries_per_s", rate), "over_engine": rate / 300}
        for side, group, rate in sides
    ]


def _snapshot() -> list[Row]:
    snapshot: list[Row] = [
        {"what": "pause", "of": stream, "records": records, **around("pause_ms", ms)}
        for stream, records, ms in (("near", 10, 1.0), ("near", 160, 1.0), ("spread", 10, 1.0), ("spread", 160, 3.0))
    ]
    for what, of, name, rate in (
        ("copy", "engine", "mb_per_s", 80),
        ("copy", "bare", "mb_per_s", 100),
        ("apply", "alone", "entries_per_s", 100),
        ("apply", "meanwhile", "entries_per_s", 60),
        ("restore", "2 shards", "mb_per_s", 50),
    ):
        snapshot.append({"what": what, "of": of, **around(name, rate)})
    return snapshot


def _reads() -> list[Row]:
    return [
        {"shards": 1, "read": read, "threads": threads, **around("get_ns", ns), **around("txn_get_ns", 500)}
        | {"over_txn_get": ns / 500}
        for read, threads, ns in (("Engine.get", 1, 750), ("SyncEngine.get", 4, 1_500))
    ]


def _model() -> list[Row]:
    model: list[Row] = [
        {"kind": kind, "cores": cores, "shards": shards, "bottleneck": at, "predicted_entries_per_s": rate}
        for kind, cores, shards, at, rate in (
            ("asked", 2, 1, "worker", 90.0),
            ("asked", 2, 2, "cores", 120.0),
            ("host", 8, 5, "worker", 400.0),
            ("host", 64, 9, "coordinator", 500.0),
            ("check", 2, 2, "cores", 120.0),
        )
    ]
    model[-1] |= {"pin": "none", **around("entries_per_s", 100), "error_percent": 20.0}
    return model


def defaults(**rates: dict[int, float]) -> Document:
    """By setting: entries/s by value."""
    usual = {"window": 4, "group_bytes": 4 << 20, "ring_bytes": 32 << 20}
    rows = [
        {"setting": name, **usual, name: value, **around("entries_per_s", rate)}
        for name, found in rates.items()
        for value, rate in found.items()
    ]
    settings = {"entries": 1000, "defaults": {name: usual[name] for name in rates}}
    return document("defaults", FACTS, settings, rows)


AROUND = defaults(
    window={1: 60, 4: 100, 8: 102}, group_bytes={2 << 20: 90, 4 << 20: 100}, ring_bytes={8 << 20: 112, 32 << 20: 100}
)


def _node() -> list[Row]:
    return [
        {"callers": callers, "side": side, **around("proposals_per_s", rate), "p50_us": 1.0}
        for callers, side, rate in (("1", "node", 50), ("1", "SQLite", 25), ("16", "node", 400), ("16", "SQLite", 30))
    ]


def made_up() -> dict[str, Document]:
    """A document for every part."""
    return {
        "throughput": USUAL,
        "defaults": AROUND,
        "offered": open_loop((10, 1), (90, 1)),
        "latency": document("latency", FACTS, {}, _trips()),
        "peers": document("peers", FACTS, {"entries": 10}, _peers()),
        "stages": document("stages", FACTS, {"entries": 10}, staged(1) + staged(2)),
        "model": document("model", FACTS, {"entries": 10}, _model()),
        "snapshot": document("snapshot", FACTS, {}, _snapshot()),
        "reads": document("reads", FACTS, {}, _reads()),
        "node": document("node", FACTS, {}, _node()),
    }


def report_of(parts: dict[str, Document], **facts: Any) -> Document:
    return {"format": 1, "command": "report", "facts": {**FACTS, **facts}, "parts": parts, "missing": {}}


class Looked(HTMLParser):
    """What is in a page: its elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def plots_of(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.S)]


@contextmanager
def helper_ends() -> Iterator[None]:
    """multiprocessing keeps a process of its own until the interpreter ends: it ends with the block."""
    try:
        yield
    finally:
        tracker: Any = resource_tracker._resource_tracker
        tracker._stop()
