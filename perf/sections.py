"""The sections of a report: of each part what it is, the sentence that its figures say, and a plot of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from perf.bars import Bar, bars
from perf.documents import Document
from perf.lines import Line, Point, lines
from perf.noise import differ, tells
from perf.rows import SAMPLES, Row
from perf.svg import told


class Section(msgspec.Struct, frozen=True):
    """`what` stands under the title: how the figures came about. `says` and `drawn` take the document of a part."""

    title: str
    what: str
    says: Callable[[Document], str]
    drawn: Callable[[Document], str]


def spread(row: Row, name: str) -> tuple[float, float]:
    """The lowest and the highest of single rounds; of more than ten, those a tenth from either end."""
    values = sorted(row.get(f"{name}{SAMPLES}") or [row[name]])
    beyond = len(values) // 10 if len(values) > 10 else 0
    return values[beyond], values[-1 - beyond]


def point(x: float, row: Row, name: str, unit: float = 1) -> Point:
    """In multiples of `unit`."""
    return Point(x, *(figure / unit for figure in (row[name], *spread(row, name))))


def bar(name: str, row: Row, figure: str, group: int = 0) -> Bar:
    return Bar(name, row[figure], told(row[figure]), group, *spread(row, figure))


def _where(document: Document) -> str:
    facts = document["facts"]
    return f"{facts.get('cores', '?')} cores, {facts.get('cpu', 'a processor that has no name')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times"


def _is_noise(first: Row, second: Row, name: str) -> str:
    """What has to be added to a difference that may be none."""
    one, other = (row.get(f"{name}{SAMPLES}") or [] for row in (first, second))
    if not tells(one, other):
        return " (too few rounds to tell that from noise)"
    return "" if differ(one, other) else " (a difference within the noise)"


# ---- throughput ------------------------------------------------------------------------------------------------------


def _of_side(document: Document, side: str) -> dict[int, Row]:
    return {row["shards"]: row for row in document["rows"] if row["side"] == side}


def _throughput_says(document: Document) -> str:
    engine, bare, limit = (_of_side(document, side) for side in ("engine", "py-lmdb", "limit"))
    best = max(engine, key=lambda shards: engine[shards]["entries_per_s"])
    rate = engine[best]["entries_per_s"]
    said = []
    if 1 in engine and len(engine) > 1:
        other = best if best > 1 else min(shards for shards in engine if shards > 1)
        ratio = engine[other]["entries_per_s"] / engine[1]["entries_per_s"]
        verb = "applies" if other == 1 else "apply"
        noise = _is_noise(engine[other], engine[1], "entries_per_s")
        said.append(f"{_count(other, 'shard')} {verb} {_times(ratio)} what one does{noise}.")
    most = f"{told(rate)} entries/s with {_count(best, 'shard')}"
    said.append(f"The most is {most}." if len(engine) > 1 else f"It is {most}; no other count was measured.")
    if best in bare:
        said.append(f"That is {_times(rate / bare[best]['entries_per_s'])} what py-lmdb does in one process,")
        share = f"{rate / limit[best]['entries_per_s']:.0%} of the limit" if best in limit else "the limit not measured"
        said.append(f"and {share}.")
    return " ".join(said)


def _throughput_drawn(document: Document) -> str:
    series = [
        Line(side, [point(shards, row, "entries_per_s") for shards, row in _of_side(document, side).items()])
        for side in dict.fromkeys(row["side"] for row in document["rows"])
    ]
    note = f"{_load(document)}, {_where(document)}; shaded: lowest to highest round"
    return lines("Throughput against shards", note, ("shards", "entries/s"), series)


def _load(document: Document) -> str:
    settings = document["settings"]
    return ", ".join(
        f"{settings[name]:,} {what}"
        for name, what in (("entries", "entries"), ("value_bytes", "bytes a value"), ("chunk", "a chunk"))
        if name in settings
    )


# ---- offered load ----------------------------------------------------------------------------------------------------

_BEHIND = 0.9  # of what is offered; less done means that the rest waits


def _offered(document: Document) -> list[Row]:
    return sorted(
        (row for row in document["rows"] if row["schedule"] == "open"), key=lambda row: row["offered_percent"]
    )


def _offered_says(document: Document) -> str:
    rows = _offered(document)
    first, last = rows[0], rows[-1]
    said = [
        f"At {row['offered_percent']} % of the measured maximum ({told(row['offered_per_s'])} entries/s) half of the "
        f"entries take up to {_ms(row['p50_us'])}, 99 of 100 up to {_ms(row['p99_us'])}, and 999 of 1,000 up to "
        f"{_ms(row['p999_us'])}."
        for row in ([first] if first is last else [first, last])
    ]
    behind = [row for row in rows if row["achieved_per_s"] < _BEHIND * row["offered_per_s"]]
    if behind:
        said.append(
            f"From {behind[0]['offered_percent']} % on the engine falls behind: the backlog grows, and so would"
        )
        said.append("the latencies with the length of the run.")
    else:
        said.append("All offered loads were kept up with.")
    said.append("Latency counts from the time at which an entry was due, whatever held it up: no coordinated omission.")
    return " ".join(said)


def _ms(us: float) -> str:
    return f"{told(us / 1000)} ms" if us >= 1000 else f"{told(us)} us"


def _offered_drawn(document: Document) -> str:
    names = {"p50_us": "p50", "p99_us": "p99", "p999_us": "p99.9"}
    series = [
        Line(name, [point(row["offered_percent"], row, figure, 1000) for row in _offered(document)])
        for figure, name in names.items()
    ]
    note = f"{_load(document)}, {_where(document)}; from the intended time; shaded: lowest to highest round"
    axes = ("offered load, % of the measured maximum", "milliseconds")
    return lines("Latency against offered load", note, axes, series, log=True)


# ---- one entry at a time ---------------------------------------------------------------------------------------------


def _latency_says(document: Document) -> str:
    rows = {row["round_trip"]: row["round_trip_us"] for row in reversed(document["rows"])}
    pipe, one, two = rows["pipe"], rows["one shard"], rows["two shards"]
    return (
        f"An entry alone, on one shard, takes {told(one)} us, {_times(one / pipe)} a bare pipe's round trip; two "
        f"entries on two shards take {told(two)} us, {_times(two / one)} as long as that."
    )


def _latency_drawn(document: Document) -> str:
    settings = list(dict.fromkeys((row["machine"], row["spin_us"]) for row in document["rows"]))
    rows = [
        bar(row["round_trip"], row, "round_trip_us", settings.index((row["machine"], row["spin_us"])))
        for row in document["rows"]
    ]
    groups = [f"{machine}, spin_us {spin}" for machine, spin in settings]
    return bars("One entry at a time, microseconds", f"median round trips, {_where(document)}", groups, rows)


# ---- peers -----------------------------------------------------------------------------------------------------------


def _peers_says(document: Document) -> str:
    rows: Sequence[Row] = document["rows"]
    engine = max((row for row in rows if row["group"] == "engine"), key=lambda row: float(row["entries_per_s"]))
    said = []
    for group in ("state machine", "store alone"):
        others = [row for row in rows if row["group"] == group]
        if others:
            best = max(others, key=lambda row: float(row["entries_per_s"]))
            ratio = engine["entries_per_s"] / best["entries_per_s"]
            verdict = "" if ratio >= 1 else ", which is faster"
            noise = _is_noise(engine, best, "entries_per_s")
            said.append(f"{_times(ratio)} what the fastest {group} does ({best['side']}{verdict}){noise}")
    return f"The engine ({engine['side']}) applies {' and '.join(said) or 'alone here: no other side was measured'}."


def _peers_drawn(document: Document) -> str:
    groups = list(dict.fromkeys(row["group"] for row in document["rows"]))
    rows = [bar(row["side"], row, "entries_per_s", groups.index(row["group"])) for row in document["rows"]]
    return bars("Entries per second, beside others", f"{_load(document)}, {_where(document)}", groups, rows)


# ---- snapshots -------------------------------------------------------------------------------------------------------


def _pauses(document: Document) -> dict[str, list[Row]]:
    """By stream, the smallest state first."""
    found: dict[str, list[Row]] = {}
    for row in sorted((row for row in document["rows"] if row["what"] == "pause"), key=lambda row: row["records"]):
        found.setdefault(row["of"], []).append(row)
    return found


def _snapshot_says(document: Document) -> str:
    said = []
    for stream, rows in _pauses(document).items():
        small, large = rows[0], rows[-1]
        said.append(
            f"Under the stream of {stream} keys a barrier pauses for {told(large['pause_ms'])} ms with "
            f"{large['records']:,} records, {_times(large['pause_ms'] / small['pause_ms'])} what it takes with "
            f"{small['records']:,}{_is_noise(large, small, 'pause_ms')}."
        )
    rates = {(row["what"], row["of"]): row for row in document["rows"]}
    if ("copy", "bare") in rates:
        ratio = rates["copy", "engine"]["mb_per_s"] / rates["copy", "bare"]["mb_per_s"]
        said.append(f"A copy is {_times(ratio)} as fast as a bare one.")
    if ("apply", "alone") in rates:
        ratio = rates["apply", "meanwhile"]["entries_per_s"] / rates["apply", "alone"]["entries_per_s"]
        said.append(f"While snapshots are taken one after the other, {ratio:.0%} of the entries are applied.")
    restores = [f"{told(row['mb_per_s'])} MB/s into {of}" for (what, of), row in rates.items() if what == "restore"]
    said.append(f"A restore takes {' and '.join(restores)}." if restores else "No restore was measured.")
    return " ".join(said)


def _snapshot_drawn(document: Document) -> str:
    series = [
        Line(stream, [point(row["records"], row, "pause_ms") for row in rows])
        for stream, rows in _pauses(document).items()
    ]
    note = f"while a stream overwrites, {_where(document)}; shaded: shortest to longest pause"
    return lines("The pause of a snapshot's barrier", note, ("records", "milliseconds"), series)


# ---- reads and nodes -------------------------------------------------------------------------------------------------


def _reads_says(document: Document) -> str:
    rows: Sequence[Row] = document["rows"]
    first = min(rows, key=lambda row: float(row["get_ns"]))
    last = max(rows, key=lambda row: float(row["get_ns"]))
    said = (
        f"{_read(row)}: {told(row['get_ns'])} ns, {_times(row['over_txn_get'])} py-lmdb's own" for row in (first, last)
    )
    return "The fastest get is {}; the slowest is {}.".format(*said)


def _read(row: Row) -> str:
    return f"{row['read']}, {_count(row['shards'], 'shard')}, {_count(row['threads'], 'thread')}"


def _reads_drawn(document: Document) -> str:
    """py-lmdb's own is drawn once a shard count, though it took turns with every read."""
    counts = list(dict.fromkeys(row["shards"] for row in document["rows"]))
    drawn = []
    for number, shards in enumerate(counts):
        rows = [row for row in document["rows"] if row["shards"] == shards]
        drawn.append(bar("py-lmdb's txn.get", rows[0], "txn_get_ns", number))
        for row in rows:
            several = f", {row['threads']} threads" if row["threads"] > 1 else ""
            drawn.append(bar(f"{row['read']}{several}", row, "get_ns", number))
    groups = [_count(shards, "shard") for shards in counts]
    return bars("A get, nanoseconds", f"median of batches, {_where(document)}", groups, drawn)


def _node_says(document: Document) -> str:
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
            said.append(f"{_times(ratio)} {side}")
    most = f"the most is {told(many['proposals_per_s'])} proposals/s, with {many['callers']} callers"
    return f"{', '.join(said)}; {most}."


def _node_drawn(document: Document) -> str:
    sides = list(dict.fromkeys(row["side"] for row in document["rows"]))
    rows = [
        bar(f"{row['callers']}: {row['side']}", row, "proposals_per_s", sides.index(row["side"]))
        for row in document["rows"]
    ]
    note = f"callers: side; each step of the scale is ten times the one before; {_where(document)}"
    return bars("Proposals per second", note, sides, rows, log=True)


# ---- all of them -----------------------------------------------------------------------------------------------------

SECTIONS = {
    "throughput": Section(
        "Throughput against shards",
        "The same random puts, in turn: through the engine; by py-lmdb in one process; and by as many bare writers as "
        "shards, fed split and sorted, which is the limit.",
        _throughput_says,
        _throughput_drawn,
    ),
    "offered": Section(
        "Latency against offered load",
        "Entries are due on a fixed schedule, at a share of what the same feeder can do at most; those that are due go "
        "together. The feeder shares the coordinator's thread and polls the clock.",
        _offered_says,
        _offered_drawn,
    ),
    "latency": Section(
        "One entry at a time",
        "Each is awaited before the next is sent. The pipe carries the same bytes to a process that does nothing else.",
        _latency_says,
        _latency_drawn,
    ),
    "peers": Section(
        "Beside others",
        "The same puts for all, one chunk after the other; only the engine has several in flight.",
        _peers_says,
        _peers_drawn,
    ),
    "snapshot": Section(
        "Snapshots and restores",
        "Streams overwrite keys next to each other (near) or anywhere (spread), while snapshots are taken.",
        _snapshot_says,
        _snapshot_drawn,
    ),
    "reads": Section(
        "Reads",
        "Random keys that are there, in batches, in turn with py-lmdb's own get on the same files.",
        _reads_says,
        _reads_drawn,
    ),
    "node": Section(
        "A node under a log of its own",
        "Callers propose again when their result has come; the others put as much into a write, a transaction or a "
        "chunk as the node had in a frame.",
        _node_says,
        _node_drawn,
    ),
}
"""By the part of a report that it takes, in the order of the page."""
