"""A small model of the engine: from what its stages cost on one host, what so many shards do on so many cores.

All times are of a group of entries, in ns; G is how many entries it has, N the shards, C the cores:

    coordinator  y = G a + b + c N                   a: an entry's; b, c: a group's, and what each shard adds to it
    worker       x = G s w + k                       s: the largest share of a group that a shard gets, a mean; w: an
                                                     entry's; k: a group's, for each shard
    disk         f                                   what a commit waits for it
    handover     h = G d + (b + c N) p + 2 wakes     d: what is done to an entry while its shard waits

Who has a core keeps it until it has to wait, and who wants one queues where it was last. So workers take turns, as many
as a core has workers at most, t = N / C rounded up, and the coordinator has its turn with the last of them:

    a group      (t - 1) x + last
    last         x + h + f and y, if t C > N         where there is a core for it: the fourth root of the sum of their
                                                     fourth powers, which is the longer one, and a little more where the
                                                     other takes as long, since they wait for each other now and then
                 x + f + y, else                     it has the core of a worker, and the others wait for that one

With a core for every process t is 1. Memory of which the bandwidth is given is a limit to all that. What takes longest
is the bottleneck. `tests/pipelines.py` is a simulation that these formulas are held against.

One shard is a regime of its own: a group is sent when the one before it is done, so its worker waits while parts are
written (d) and for all that the coordinator does to a group (p = 1). With more, the next group is there already; what
is waited for is the decision (d: its checksums, and the coordinator's own commands) and half of what a group costs the
coordinator (p = 1/2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Any

import msgspec

from perf.clocks import ELSEWHERE
from perf.load import KEY_BYTES

ASSUMPTIONS = (
    "enough chunks are in flight, so that the coordinator finds one whenever it is free",
    "all cores are alike, none is shared with others, and a stage takes as long on a busy host as it did when counted",
    "who has a core keeps it until it waits for others, and who wants one queues where it was last",
    "with two shards or more, a stage costs an entry the same however many they are, one more shard costs a group the "
    "same again, and groups stay as large",
    "memory and disk are no limit, unless --memory-gb-s is given, or stages were counted with --durability power",
)
_PASSES = 8
"""How often an entry's bytes cross memory: log, ring and page, read and written, and a page copied for it."""
_SHARP = 4
_OF_ENTRY = ("normal form", "split", "ring", "run", "decide")
_OF_GROUP = ("send", "receive", "protocol", "publish", ELSEWHERE)
_OF_COMMIT = ("commit", "answer")
"""Polling is no work: it gives its core to whoever wants it, and ends where a wait ends."""
_OF_PART = ("decode", "run", "sort", "put", "free", ELSEWHERE)


class StagesError(Exception):
    """The stages are not those that the model needs."""


class Regime(msgspec.Struct, frozen=True):
    """What an engine costs; names as in the formulas above."""

    entries_per_group: float
    a: float
    b: float
    c: float
    d: float
    p: float
    w: float
    k: float
    f: float


class Costs(msgspec.Struct, frozen=True):
    """Of one host, under one load: with one shard, and with several."""

    alone: Regime
    together: Regime
    wake_ns: float
    value_bytes: int


class Prediction(msgspec.Struct, frozen=True):
    """What the model says; `limits` are the entries a second that each resource would allow by itself."""

    cores: int
    shards: int
    entries_per_s: float
    bottleneck: str
    limits: dict[str, float]


def predict(
    costs: Costs, share: Callable[[int], float], cores: int, shards: int, memory_gb_s: float | None = None
) -> Prediction:
    """So many shards on so many cores. `share` tells what one of so many shards gets of a group at most."""
    of = costs.alone if shards == 1 else costs.together
    size, group = of.entries_per_group, of.b + of.c * shards
    coordinator, own = size * of.a + group, size * share(shards) * of.w + of.k
    handover, turns = size * of.d + group * of.p + 2 * costs.wake_ns, ceil(shards / cores)
    last = {"coordinator": coordinator, "disk" if of.f > own + handover else "worker": own + of.f + handover}
    if turns * cores > shards:
        took = sum(time**_SHARP for time in last.values()) ** (1 / _SHARP)
    else:
        took = own + of.f + coordinator
    took += (turns - 1) * own
    times = last if shards < cores else {"disk" if of.f > took / 2 else "cores": took}
    if memory_gb_s is not None:
        times["memory"] = size * _PASSES * (KEY_BYTES + costs.value_bytes) / memory_gb_s
        took = max(took, times["memory"])
    limits = {name: size / time * 1e9 for name, time in times.items()}
    return Prediction(cores, shards, size / took * 1e9, min(limits, key=lambda name: limits[name]), limits)


def best(predictions: Iterable[Prediction], within: float = 0.03) -> Prediction:
    """Of some for the same cores, the fewest shards that come so near to the fastest."""
    found = sorted(predictions, key=lambda one: one.shards)
    fastest = max(one.entries_per_s for one in found)
    return next(one for one in found if one.entries_per_s >= (1 - within) * fastest)


# ---- from stages -----------------------------------------------------------------------------------------------------

_Row = Mapping[str, Any]


def costs_of(rows: Sequence[_Row]) -> Costs:
    """From the rows that `stages` writes, of one load. Raises StagesError unless they are of 1 shard, of 2, and of
    more."""
    counts = sorted({row["shards"] for row in rows})
    if counts[:2] != [1, 2] or len(counts) < 3:
        raise StagesError(f"these stages are of {counts} shards: the model needs 1, 2 and more, such as --shards 1,2,4")
    found = {count: _Found([row for row in rows if row["shards"] == count]) for count in counts}
    one, two, more = found[1], found[2], found[counts[-1]]
    added = counts[-1] - 2
    c = max(0.0, (more.group_ns - two.group_ns) / added)
    k = max(two.commit_ns, (more.workers_ns - two.workers_ns) / added)
    return Costs(
        alone=one.regime(b=one.group_ns, c=0.0, d=one.coordinator("ring"), p=1.0, k=one.commit_ns),
        together=two.regime(b=max(0.0, two.group_ns - 2 * c), c=c, d=two.coordinator("decide", "run"), p=0.5, k=k),
        wake_ns=two.engine["wake_ns"],
        value_bytes=two.engine["value_bytes"],
    )


class _Found:
    """The rows of one shard count."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = {(row["process"], row["stage"]): row for row in rows}
        if len(self._rows) != len(rows):
            raise StagesError("these stages are of several loads: the model needs those of one")
        self.engine = self._rows["engine", "all"]
        self._shards: int = self.engine["shards"]
        self._size: float = self.engine["entries_per_group"]

    def coordinator(self, *stages: str) -> float:
        """CPU time of an entry."""
        return float(sum(self._rows["coordinator", stage]["cpu_ns_per_entry"] for stage in stages))

    def _workers_ns(self, *stages: str) -> float:
        """CPU time of a group, of all workers together."""
        each = sum(self._rows["workers", stage]["cpu_ns_per_entry"] for stage in stages)
        return float(each * self._size * self._shards)

    @property
    def workers_ns(self) -> float:
        """What all workers together do to a group."""
        return self._workers_ns(*_OF_PART, *_OF_COMMIT)

    @property
    def commit_ns(self) -> float:
        """What a worker does to a group, however few of its entries it has."""
        return self._workers_ns(*_OF_COMMIT) / self._shards

    @property
    def group_ns(self) -> float:
        """What the coordinator does to a group, whatever its entries."""
        return self.coordinator(*_OF_GROUP) * self._size

    def regime(self, *, b: float, c: float, d: float, p: float, k: float) -> Regime:
        synced = [self._rows["workers", "commit"], self._rows["coordinator", "decide"]]
        waited = sum(row["wall_ns_per_entry"] - row["cpu_ns_per_entry"] for row in synced)
        return Regime(
            entries_per_group=self._size,
            a=self.coordinator(*_OF_ENTRY),
            b=b,
            c=c,
            d=d,
            p=p,
            w=max(0.0, self.workers_ns - k * self._shards) / self._size,
            k=k,
            f=waited * self._size if self.engine["durability"] == "power" else 0.0,
        )
