"""What the parts of a report say and show that are about entries: throughput, latency, and others beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from perf.bars import bars
from perf.documents import Document
from perf.lines import Line, lines
from perf.rows import Row
from perf.svg import told
from perf.telling import bar, count, heading, is_noise, load_of, point, times, where

# ---- throughput ------------------------------------------------------------------------------------------------------

_LOADS = ("value_bytes", "keys", "command", "chunk", "durability", "pin")
_CLOSE_COUNT = 0.05  # to the fastest: a default that is so close is right
_CLOSE = 0.03
Sides = dict[str, dict[int, Row]]
"""By side and shard count."""


def _loads(document: Document) -> dict[str, Sides]:
    """By what distinguishes the loads, if there are several."""
    rows = document["rows"]
    several = [name for name in _LOADS if len({row[name] for row in rows if name in row}) > 1]
    found: dict[str, Sides] = {}
    for row in rows:
        load = ", ".join(f"{heading(name)} {row[name]}" for name in several)
        found.setdefault(load, {}).setdefault(row["side"], {})[row["shards"]] = row
    return found


def throughput_says(document: Document) -> str:
    said = []
    for load, sides in _loads(document).items():
        said.append(f"With {load}: {_sides_say(sides)}" if load else _sides_say(sides))
        said += _count_says(sides["engine"], document["settings"].get("default_shards"))
    return " ".join(said)


def _count_says(engine: dict[int, Row], default: int | None) -> list[str]:
    """Whether the default shard count is right, if it was measured beside others."""
    if default not in engine or len(engine) == 1:
        return []
    return [_default_says("shard count", str, engine, default, _CLOSE_COUNT)]


def _default_says(name: str, named: Callable[[int], str], rows: dict[int, Row], default: int, close: float) -> str:
    """Of rows by value: the default is the fastest, or within a share `close` of it, or how much faster that is."""
    best = max(rows, key=lambda value: float(rows[value]["entries_per_s"]))
    gain = rows[best]["entries_per_s"] / rows[default]["entries_per_s"] - 1
    said = f"The default {name}, {named(default)}, is"
    if best == default:
        return f"{said} the fastest of {len(rows)}."
    if gain <= close:
        return f"{said} within {close * 100:.0f} % of the fastest ({named(best)})."
    noise = is_noise(rows[best], rows[default], "entries_per_s")
    return f"{said} not the fastest: {named(best)} would be {gain * 100:.0f} % faster here{noise}."


def _sides_say(sides: Sides) -> str:
    """Of one load: what more shards give, and how far it is from what stands beside the engine."""
    engine = sides["engine"]
    best = max(engine, key=lambda shards: float(engine[shards]["entries_per_s"]))
    rate, said = engine[best]["entries_per_s"], []
    if 1 in engine and len(engine) > 1:
        other = best if best > 1 else min(shards for shards in engine if shards > 1)
        ratio = engine[other]["entries_per_s"] / engine[1]["entries_per_s"]
        noise = is_noise(engine[other], engine[1], "entries_per_s")
        said.append(f"{other} shards apply {times(ratio)} what one does{noise};")
    most = f"{told(rate)} entries/s with {count(best, 'shard')}"
    said.append(f"the most is {most}," if len(engine) > 1 else f"{most}, and no other count was measured,")
    bare, limit = sides.get("py-lmdb"), sides.get("limit", {}).get(best)
    ratio = rate / min(bare.values(), key=lambda row: abs(row["shards"] - best))["entries_per_s"] if bare else None
    said.append(f"{times(ratio)} what py-lmdb does in one process" if ratio else "and py-lmdb was not measured")
    said.append(
        f"and {rate / limit['entries_per_s']:.0%} of the limit." if limit else "and the limit was not measured."
    )
    return " ".join(said)


def throughput_drawn(document: Document) -> str:
    """What does not depend on the shards is drawn for all of them."""
    series = []
    for load, sides in _loads(document).items():
        counts = sorted({shards for rows in sides.values() for shards in rows})
        for side, rows in sides.items():
            everywhere = rows if len(rows) > 1 else dict.fromkeys(counts, next(iter(rows.values())))
            points = [point(shards, row, "entries_per_s") for shards, row in everywhere.items()]
            series.append(Line(f"{side}, {load}" if load else side, points))
    note = f"{load_of(document)}, {where(document)}; shaded: lowest to highest round"
    return lines("Throughput against shards", note, ("shards", "entries/s"), series)


# ---- defaults --------------------------------------------------------------------------------------------------------

_SETTINGS: dict[str, tuple[str, Callable[[int], str]]] = {
    "window": ("window", str),
    "group_bytes": ("group_bytes_max", lambda size: f"{size / 2**20:g} MiB"),
    "ring_bytes": ("ring_bytes", lambda size: f"{size / 2**20:g} MiB"),
}
"""What each is called, and its values."""


def _tried(document: Document) -> dict[str, dict[int, Row]]:
    """By setting and value."""
    return {
        name: {int(row[name]): row for row in document["rows"] if row["setting"] == name}
        for name in document["settings"]["defaults"]
    }


def defaults_say(document: Document) -> str:
    usual = document["settings"]["defaults"]
    return " ".join(
        _default_says(*_SETTINGS[name], rows, usual[name], _CLOSE) for name, rows in _tried(document).items()
    )


def defaults_drawn(document: Document) -> str:
    series = []
    for name, rows in _tried(document).items():
        default = document["settings"]["defaults"][name]
        rate = rows[default]["entries_per_s"]
        points = [point(value / default, row, "entries_per_s", rate) for value, row in rows.items()]
        series.append(Line(f"{_SETTINGS[name][0]}, {_SETTINGS[name][1](default)}", points))
    note = f"{load_of(document)}, {where(document)}; shaded: lowest to highest round"
    axes = ("the setting, over its default", "entries/s, over those of the default")
    return lines("Throughput around the defaults", note, axes, series)


# ---- offered load ----------------------------------------------------------------------------------------------------

_BEHIND = 0.9  # of what is offered; less done means that the rest waits


def _offered(document: Document) -> list[Row]:
    return sorted(
        (row for row in document["rows"] if row["schedule"] == "open"), key=lambda row: row["offered_percent"]
    )


def offered_says(document: Document) -> str:
    rows = _offered(document)
    first, last = rows[0], rows[-1]
    said = [
        f"At {row['offered_percent']} % of the measured maximum ({told(row['offered_per_s'])} entries/s) half of the "
        f"entries take up to {_ms(row['p50_us'])}, 99 of 100 up to {_ms(row['p99_us'])}, and 999 of 1,000 up to "
        f"{_ms(row['p999_us'])}."
        for row in ([first] if first is last else [first, last])
    ]
    behind = list(takewhile(lambda row: row["achieved_per_s"] < _BEHIND * row["offered_per_s"], reversed(rows)))
    if behind:
        said.append(f"From {behind[-1]['offered_percent']} % on the engine falls behind: the backlog grows,")
        said.append("and so would the latencies with the length of the run.")
    else:
        said.append("All offered loads were kept up with." if len(rows) > 1 else "It was kept up with.")
    said.append("Latency counts from the time at which an entry was due, whatever held it up: no coordinated omission.")
    return " ".join(said)


def _ms(us: float) -> str:
    return f"{told(us / 1000)} ms" if us >= 1000 else f"{told(us)} us"


def offered_drawn(document: Document) -> str:
    names = {"p50_us": "p50", "p99_us": "p99", "p999_us": "p99.9"}
    series = [
        Line(name, [point(row["offered_percent"], row, figure, 1000) for row in _offered(document)])
        for figure, name in names.items()
    ]
    note = f"{load_of(document)}, {where(document)}; from the intended time; shaded: lowest to highest round"
    axes = ("offered load, % of the measured maximum", "milliseconds")
    return lines("Latency against offered load", note, axes, series, log=True)


# ---- one entry at a time ---------------------------------------------------------------------------------------------


def latency_says(document: Document) -> str:
    rows = {row["round_trip"]: row["round_trip_us"] for row in reversed(document["rows"])}
    pipe, one, two = rows["pipe"], rows["one shard"], rows["two shards"]
    return (
        f"An entry alone, on one shard, takes {told(one)} us, {times(one / pipe)} a bare pipe's round trip; two "
        f"entries on two shards take {told(two)} us, {times(two / one)} as long as that."
    )


def latency_drawn(document: Document) -> str:
    settings = list(dict.fromkeys((row["machine"], row["spin_us"]) for row in document["rows"]))
    rows = [
        bar(row["round_trip"], row, "round_trip_us", settings.index((row["machine"], row["spin_us"])))
        for row in document["rows"]
    ]
    groups = [f"{machine}, spin_us {spin}" for machine, spin in settings]
    return bars("One entry at a time, microseconds", f"median round trips, {where(document)}", groups, rows)


# ---- peers -----------------------------------------------------------------------------------------------------------


def peers_says(document: Document) -> str:
    rows: Sequence[Row] = document["rows"]
    engine = max((row for row in rows if row["group"] == "engine"), key=lambda row: float(row["entries_per_s"]))
    said = []
    for group in ("state machine", "store alone"):
        others = [row for row in rows if row["group"] == group]
        if others:
            best = max(others, key=lambda row: float(row["entries_per_s"]))
            ratio = engine["entries_per_s"] / best["entries_per_s"]
            verdict = "" if ratio >= 1 else ", which is faster"
            noise = is_noise(engine, best, "entries_per_s")
            said.append(f"{times(ratio)} what the fastest {group} does ({best['side']}{verdict}){noise}")
    return f"The engine ({engine['side']}) applies {' and '.join(said) or 'alone here: no other side was measured'}."


def peers_drawn(document: Document) -> str:
    groups = list(dict.fromkeys(row["group"] for row in document["rows"]))
    rows = [bar(row["side"], row, "entries_per_s", groups.index(row["group"])) for row in document["rows"]]
    return bars("Entries per second, beside others", f"{load_of(document)}, {where(document)}", groups, rows)
