"""The sections of a report: of each part what it is, the sentence that its figures say, and a plot of them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from perf import told_stages, told_states, told_writes
from perf.documents import Document
from perf.rows import Row


def all_rows(document: Document) -> list[Row]:
    rows: list[Row] = document["rows"]
    return rows


class Section(msgspec.Struct, frozen=True):
    """`what` stands under the plot: how the figures came about. `says`, `drawn` and `rows`, which are those of the
    table, take the document of a part."""

    title: str
    what: str
    says: Callable[[Document], str]
    drawn: Callable[[Document], str]
    rows: Callable[[Document], list[Row]] = all_rows


SECTIONS = {
    "throughput": Section(
        "Throughput against shards",
        "The same random puts, in turn: through the engine; by py-lmdb in one process; and by as many bare writers as "
        "shards, fed split and sorted, which is the limit.",
        told_writes.throughput_says,
        told_writes.throughput_drawn,
    ),
    "defaults": Section(
        "Whether the defaults are right",
        "Engines that differ from the default in one setting each, in turn under the same random puts, with the "
        "default shard count. A group holds no more than a quarter of a ring, whatever its limit.",
        told_writes.defaults_say,
        told_writes.defaults_drawn,
    ),
    "offered": Section(
        "Latency against offered load",
        "Entries are due on a fixed schedule, at a share of what the same feeder can do at most; those that are due go "
        "together. The feeder shares the coordinator's thread and polls the clock.",
        told_writes.offered_says,
        told_writes.offered_drawn,
    ),
    "latency": Section(
        "One entry at a time",
        "Each is awaited before the next is sent. The pipe carries the same bytes to a process that does nothing else.",
        told_writes.latency_says,
        told_writes.latency_drawn,
    ),
    "peers": Section(
        "Beside others",
        "The same puts for all, one chunk after the other; only the engine has several in flight.",
        told_writes.peers_says,
        told_writes.peers_drawn,
    ),
    "stages": Section(
        "Where the time goes",
        "Functions of the engine are wrapped from outside; what a process waits for shows when it comes. The "
        "figures in report.json have the other shard counts and each worker too.",
        told_stages.stages_says,
        told_stages.stages_drawn,
        told_stages.stages_rows,
    ),
    "model": Section(
        "Other hosts",
        "From the stages, by a model; its assumptions are in report.json, and what python -m perf model prints.",
        told_stages.model_says,
        told_stages.model_drawn,
    ),
    "snapshot": Section(
        "Snapshots and restores",
        "Streams overwrite keys next to each other (near) or anywhere (spread), while snapshots are taken.",
        told_states.snapshot_says,
        told_states.snapshot_drawn,
    ),
    "reads": Section(
        "Reads",
        "Random keys that are there, in batches, in turn with py-lmdb's own get on the same files.",
        told_states.reads_says,
        told_states.reads_drawn,
    ),
    "node": Section(
        "A node under a log of its own",
        "Callers propose again when their result has come; the others put as much into a write, a transaction or a "
        "chunk as the node had in a frame.",
        told_states.node_says,
        told_states.node_drawn,
    ),
}
"""By the part of a report that it takes, in the order of the page."""
