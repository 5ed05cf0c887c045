"""What the parts of a report say and show that are about the state, and about a log over it."""

from __future__ import annotations

from collections.abc import Sequence

from perf.bars import bars
from perf.documents import Document
from perf.lines import Line, lines
from perf.rows import Row
from perf.svg import told
from perf.telling import bar, count, is_noise, point, times, where

# ---- snapshots -------------------------------------------------------------------------------------------------------


def _pauses(document: Document) -> dict[str, list[Row]]:
    """By stream, the smallest state first."""
    found: dict[str, list[Row]] = {}
    for row in sorted((row for row in document["rows"] if row["what"] == "pause"), key=lambda row: row["records"]):
        found.setdefault(row["of"], []).append(row)
    return found


def snapshot_says(document: Document) -> str:
    said = []
    for stream, rows in _pauses(document).items():
        small, large = rows[0], rows[-1]
        said.append(
            f"Under the stream of {stream} keys a barrier pauses for {told(large['pause_ms'])} ms with "
            f"{large['records']:,} records, {times(large['pause_ms'] / small['pause_ms'])} what it takes with "
            f"{small['records']:,}{is_noise(large, small, 'pause_ms')}."
        )
    rates = {(row["what"], row["of"]): row for row in document["rows"]}
    if ("copy", "bare") in rates:
        ratio = rates["copy", "engine"]["mb_per_s"] / rates["copy", "bare"]["mb_per_s"]
        said.append(f"A copy is {times(ratio)} as fast as a bare one.")
    if ("apply", "alone") in rates:
        ratio = rates["apply", "meanwhile"]["entries_per_s"] / rates["apply", "alone"]["entries_per_s"]
        said.append(f"While snapshots are taken one after the other, {ratio:.0%} of the entries are applied.")
    restores = [f"{told(row['mb_per_s'])} MB/s into {of}" for (what, of), row in rates.items() if what == "restore"]
    said.append(f"A restore takes {' and '.join(restores)}." if restores else "No restore was measured.")
    return " ".join(said)


def snapshot_drawn(document: Document) -> str:
    series = [
        Line(stream, [point(row["records"], row, "pause_ms") for row in rows])
        for stream, rows in _pauses(document).items()
    ]
    note = f"while a stream overwrites, {where(document)}; shaded: shortest to longest pause"
    return lines("The pause of a snapshot's barrier", note, ("records", "milliseconds"), series)


# ---- reads and nodes -------------------------------------------------------------------------------------------------


def reads_says(document: Document) -> str:
    rows: Sequence[Row] = document["rows"]
    first = min(rows, key=lambda row: float(row["get_ns"]))
    last = max(rows, key=lambda row: float(row["get_ns"]))
    said = (
        f"{_read(row)}: {told(row['get_ns'])} ns, {times(row['over_txn_get'])} py-lmdb's own" for row in (first, last)
    )
    return "The fastest get is {}; the slowest is {}.".format(*said)


def _read(row: Row) -> str:
    return f"{row['read']}, {count(row['shards'], 'shard')}, {count(row['threads'], 'thread')}"


def reads_drawn(document: Document) -> str:
    """py-lmdb's own is drawn once a shard count, though it took turns with every read."""
    counts = list(dict.fromkeys(row["shards"] for row in document["rows"]))
    drawn = []
    for number, shards in enumerate(counts):
        rows = [row for row in document["rows"] if row["shards"] == shards]
        drawn.append(bar("py-lmdb's txn.get", rows[0], "txn_get_ns", number))
        for row in rows:
            several = f", {row['threads']} threads" if row["threads"] > 1 else ""
            drawn.append(bar(f"{row['read']}{several}", row, "get_ns", number))
    groups = [count(shards, "shard") for shards in counts]
    return bars("A get, nanoseconds", f"median of batches, {where(document)}", groups, drawn)


def node_says(document: Document) -> str:
    rates = {(row["callers"], row["side"]): row for row in document["rows"]}
    callers = list(dict.fromkeys(row["callers"] for row in document["rows"]))
    alone, many = (
        rates[callers[0], "node"],
        max((row for row in document["rows"] if row["side"] == "node"), key=lambda row: float(row["proposals_per_s"])),
    )
    said = [f"One caller gets {told(alone['proposals_per_s'])} proposals/s"]
    for side in ("write + fdatasync", "SQLite"):
        if (callers[0], side) in rates:
            ratio = alone["proposals_per_s"] / rates[callers[0], side]["proposals_per_s"]
            said.append(f"{times(ratio)} {side}")
    most = f"the most is {told(many['proposals_per_s'])} proposals/s, with {many['callers']} callers"
    return f"{', '.join(said)}; {most}."


def node_drawn(document: Document) -> str:
    sides = list(dict.fromkeys(row["side"] for row in document["rows"]))
    rows = [
        bar(f"{row['callers']}: {row['side']}", row, "proposals_per_s", sides.index(row["side"]))
        for row in document["rows"]
    ]
    note = f"callers: side; each step of the scale is ten times the one before; {where(document)}"
    return bars("Proposals per second", note, sides, rows, log=True)
