"""The limiter, beside fractions of tokens."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardengine.machines.limiter import Configure, Limiter, Take
from tests.inprocess import REJECTED, Bench, Step

MOST = 10**12
BUCKETS = st.sampled_from([b"a", b"b"])
TOKENS = st.integers(0, 6) | st.sampled_from([MOST - 1, MOST])
TIMES = st.sampled_from([0, 0, 1, 7, 250, 999, 1000, 1 << 41, (1 << 64) - 1])
COMMANDS = st.builds(Configure, BUCKETS, TOKENS, TOKENS) | st.builds(Take, BUCKETS, TOKENS)
STEPS = st.lists(st.builds(Step, COMMANDS, TIMES, st.booleans()), max_size=40)


class Model:
    """Of each bucket, its capacity, its refill, its tokens, and when those were there."""

    def __init__(self) -> None:
        self.buckets: dict[bytes, tuple[int, int, Fraction, int]] = {}

    def __call__(self, command: Any, now: int) -> Any:
        there = None
        if command.bucket in self.buckets:
            capacity, refill, tokens, before = self.buckets[command.bucket]
            there = min(Fraction(capacity), tokens + Fraction(refill * (now - before), 1000))
            self.buckets[command.bucket] = (capacity, refill, there, now)
        if isinstance(command, Configure):
            there = Fraction(command.capacity) if there is None else min(there, Fraction(command.capacity))
            self.buckets[command.bucket] = (command.capacity, command.refill_per_s, there, now)
            return int(there)
        if there is None or there < command.n:
            return REJECTED
        capacity, refill, _, _ = self.buckets[command.bucket]
        self.buckets[command.bucket] = (capacity, refill, there - command.n, now)
        return int(there - command.n)


def capped(steps: list[Step]) -> list[Step]:
    """The steps with a clock that stays within 64 bits."""
    now, found = 0, []
    for step in steps:
        later = min(step.later_ms, (1 << 64) - 1 - now)
        now += later
        found.append(step._replace(later_ms=later))
    return found


@example(steps=[Step(Configure(b"a", 10, 1)), Step(Take(b"a", 10)), *(Step(Take(b"a"), 1000) for _ in range(3))])
@given(steps=STEPS.map(capped))
def test_the_limiter_is_the_model_of_fractions(steps: list[Step]) -> None:
    Bench(Limiter).agrees(Model(), steps)


def test_a_token_a_second_is_a_token_a_second_however_often_somebody_looks() -> None:
    bench = Bench(Limiter)
    bench.run(Configure(b"b", 3, 1), later_ms=5)
    assert [bench.value(Take(b"b")) for _ in range(4)] == [2, 1, 0, REJECTED]
    looks = [bench.value(Take(b"b", 0), later_ms=1) for _ in range(1000)]
    assert looks == [0] * 999 + [1]
    assert bench.run(Take(b"b", 2)).reason == "2 tokens wanted, 1 of 3 left"
    assert bench.run(Take(b"nobody")).reason == "no bucket b'nobody'"
    assert bench.value(Take(b"b", 3), later_ms=10_000) == 0


def test_without_a_clock_nothing_refills_and_the_first_time_stamp_is_a_step_from_0() -> None:
    bench = Bench(Limiter)
    for bucket, refill in ((b"b", 1000), (b"never", 0)):
        assert bench.value(Configure(bucket, 10, refill)) == 10
        assert bench.value(Take(bucket, 10)) == 0
        assert bench.value(Take(bucket)) == REJECTED
    assert bench.value(Take(b"b", 6), later_ms=4) == REJECTED
    assert bench.value(Take(b"b", 2)) == 2
    assert bench.value(Take(b"b", 0), later_ms=1 << 41) == 10
    assert bench.value(Take(b"never", 0)) == 0


@given(looks=st.lists(st.integers(1, 400), max_size=9), began=st.sampled_from([0, 1, 1 << 41]))
def test_a_bucket_fills_alike_whether_commands_were_refused_meanwhile_or_none_came(
    looks: list[int], began: int
) -> None:
    asked, quiet = Bench(Limiter), Bench(Limiter)
    for bench in (asked, quiet):
        bench.run(Configure(b"b", 5, 1), later_ms=began)
        bench.run(Take(b"b", 5))
    assert [asked.value(Take(b"b", 5), later_ms=later) for later in looks] == [REJECTED] * len(looks)
    left = asked.value(Take(b"b", 0), later_ms=1000)
    assert left == quiet.value(Take(b"b", 0), later_ms=1000 + sum(looks)) == 1 + sum(looks) // 1000


def test_a_new_size_keeps_what_is_there_as_far_as_it_holds_it() -> None:
    bench = Bench(Limiter)
    values = [bench.value(Configure(b"b", size, 1), later_ms=1000) for size in (5, 9, 3, 9)]
    assert values == [5, 5, 3, 3]  # the fourth token comes in a bucket that holds three


@pytest.mark.parametrize("command", [Configure(b"b", MOST + 1, 1), Configure(b"b", 1, -1), Take(b"b", -1)])
def test_what_is_beyond_the_bounds_is_no_command(command: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        Bench(Limiter).run(command)
