"""The check beside one that tries every order, on tiny histories; and on larger ones, true and with a fault."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from shardengine import ApplyResult, Entry, Put, encode
from shardengine.conformance import Event, History
from shardengine.engine.conformance.operations import Read, Watch, Write
from tests.history_oracle import Oracle
from tests.history_world import World
from tests.killing import DEEP
from tests.tiny_histories import Tiny

T = TypeVar("T")
TINY, WORLDS = (100_000, 10_000) if DEEP else (1_500, 1_000)
RULES = {
    *("lost", "result", "order", "stale", "future", "back", "value", "view", "refused", "twice", "unasked"),
    *("event-wrong", "event-twice", "event-order", "event-missing"),
}


def test_the_sweep_and_the_search_of_every_order_say_the_same_of_tiny_histories() -> None:
    said, rules = Counter[bool](), set[str]()
    for seed in range(TINY):
        tiny = Tiny(random.Random(seed))
        verdict = tiny.history.check(tiny.log)
        assert verdict.valid == Oracle(tiny.history, tiny.log).true(), f"seed {seed}: {verdict}"
        said[verdict.valid] += 1
        rules |= {finding.rule for finding in verdict.findings}
    assert min(said[True], said[False]) > TINY // 5, "both kinds are there"
    assert rules == RULES


# ---- larger ones -----------------------------------------------------------------------------------------------------

Fault = Callable[[World, random.Random], set[str] | None]
"""Changes one thing. Returns the rules that forbid it; an empty set: by chance it may be legal; None: there was nothing
to change."""


def values_never_read(world: World, rng: random.Random) -> set[str] | None:
    if read := some(rng, [one for one in of(world, Read) if one.keys]):
        read.values[rng.randrange(len(read.values))] = b"never"
        return {"view" if read.of_view is not None else "value"}
    return None


def an_entry_less(world: World, rng: random.Random) -> set[str] | None:
    if any(one.results[-1].index == len(world.log) for one in of(world, Write)):
        world.log.pop()
        return {"lost"}
    return None


def an_entry_twice(world: World, rng: random.Random) -> set[str] | None:
    if write := some(rng, of(world, Write)):
        world.log.append(Entry(len(world.log) + 1, 1, write.datas[0]))
        return {"twice", "refused"} if not unknown(world, write.datas[0]) else set()
    return None


def another_result(world: World, rng: random.Random) -> set[str] | None:
    if write := some(rng, of(world, Write)):
        first = write.results[0]
        write.results = [ApplyResult(first.index, not first.succeeded), *write.results[1:]]
        return {"result"}
    return None


def an_event_twice(world: World, rng: random.Random) -> set[str] | None:
    if (watch := some(rng, watches(world, 1))) is not None:
        place = rng.randrange(len(watch.events))
        if watch.events[place].kind != "progress":
            watch.events.insert(place, watch.events[place])
            watch.at.insert(place, watch.at[place])
            return {"event-twice"}
    return None


def an_event_less(world: World, rng: random.Random) -> set[str] | None:
    if (watch := some(rng, watches(world, 2))) is not None:
        place = rng.randrange(len(watch.events) - 1)
        if watch.events[place].kind != "progress":
            del watch.events[place], watch.at[place]
            return {"event-missing"}
    return None


def an_older_value(world: World, rng: random.Random) -> set[str] | None:
    if read := some(rng, [one for one in of(world, Read) if one.keys]):
        state = rng.choice(world.states)
        read.values = [state.get(key) for key in read.keys]
        return set()
    return None


def another_revision(world: World, rng: random.Random) -> set[str] | None:
    if read := some(rng, [one for one in of(world, Read) if one.revision is not None and one.of_view is None]):
        assert read.revision is not None
        read.revision += rng.choice([-1, 1])
        return {"future", "stale"} if read.revision < 0 else set()
    return None


FAULTS: list[Fault] = [
    *(values_never_read, an_entry_less, an_entry_twice, another_result, an_event_twice, an_event_less),
    *(an_older_value, another_revision),
]


def of(world: World, kind: type[T]) -> list[T]:
    """Those that were answered."""
    return [one for one in world.history.operations if isinstance(one, kind) and one.outcome == "ok"]


def watches(world: World, events: int) -> list[Watch]:
    return [one for one in world.history.operations if isinstance(one, Watch) and len(one.events) >= events]


def unknown(world: World, data: bytes) -> bool:
    writes = [one for one in world.history.operations if isinstance(one, Write)]
    return any(one.outcome in ("open", "info") and data in one.datas for one in writes)


def some(rng: random.Random, found: Sequence[T]) -> T | None:
    return rng.choice(found) if found else None


def test_true_histories_are_accepted_and_with_one_fault_they_are_not() -> None:
    planted, by_chance = Counter[str](), Counter[bool]()
    for seed in range(WORLDS):
        rng = random.Random(seed)
        world = World(rng, operations=rng.randrange(5, 60))
        world.run()
        verdict = world.history.check(world.log)
        assert verdict.valid, f"seed {seed}: {verdict}"
        fault = rng.choice(FAULTS)
        rules = fault(world, rng)
        if rules is None:
            continue
        verdict = world.history.check(world.log)
        if rules:
            planted[fault.__name__] += 1
            found = {finding.rule for finding in verdict.findings}
            assert found & rules, f"seed {seed}, {fault.__name__}: {verdict}"
        else:
            by_chance[verdict.valid] += 1
    assert min(planted[fault.__name__] for fault in FAULTS[:6]) > WORLDS // 50
    assert by_chance[False] > WORLDS // 20 and by_chance[True] > 0


def test_a_long_history_of_many_callers_is_judged_whole() -> None:
    """A hundred thousand events: beginnings, ends, and what a watcher is told."""
    rng, history, log, state = random.Random(5), History(), list[Entry](), dict[bytes, bytes]()
    watch, going = history.begin_watch(1), deque[tuple[Write, int]]()
    while len(log) < 25_000:
        key, value = b"%d" % rng.randrange(2_000), b"%d" % len(log)
        write = history.begin_propose([encode(Put(key, value))])
        log.append(Entry(len(log) + 1, 1, write.datas[0]))
        state[key] = value
        watch.saw(Event("put", key, value, None, len(log)))
        going.append((write, len(log)))
        if len(going) > 16:
            write, index = going.popleft()
            write.ok([ApplyResult(index, True)])
        if rng.random() < 0.5:
            key = b"%d" % rng.randrange(2_000)
            history.begin_get([key]).ok([state.get(key)], len(log) if rng.random() < 0.5 else None)
    verdict = history.check(log)
    assert verdict.valid and verdict.events == 25_000 and verdict.operations > 37_000, verdict
