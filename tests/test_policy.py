"""When a snapshot is due: thresholds, their combination, cooldown, never two at once."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.engine.errors import ConfigError
from shardengine.engine.snapshot.policy import PolicyState, SnapshotPolicy


def state(policy: SnapshotPolicy, now_ms: int = 0) -> PolicyState:
    return PolicyState(policy, now_ms)


@pytest.mark.parametrize(
    ("policy", "entries", "size", "now_ms", "due"),
    [
        (SnapshotPolicy(), 10**9, 10**15, 10**9, False),
        (SnapshotPolicy(entries=10), 9, 10**15, 10**9, False),
        (SnapshotPolicy(entries=10), 10, 0, 0, True),
        (SnapshotPolicy(bytes=100), 10**9, 99, 10**9, False),
        (SnapshotPolicy(bytes=100), 1, 100, 0, True),
        (SnapshotPolicy(interval_ms=50), 10**9, 10**15, 49, False),
        (SnapshotPolicy(interval_ms=50), 1, 0, 50, True),
        (SnapshotPolicy(interval_ms=50), 0, 0, 10**9, False),
        (SnapshotPolicy(entries=10, bytes=100, interval_ms=50), 9, 99, 49, False),
        (SnapshotPolicy(entries=10, bytes=100, interval_ms=50), 10, 99, 49, True),
        (SnapshotPolicy(entries=10, bytes=100, interval_ms=50), 9, 100, 49, True),
        (SnapshotPolicy(entries=10, bytes=100, interval_ms=50), 9, 99, 50, True),
        (SnapshotPolicy(entries=1, cooldown_ms=1_000), 1, 0, 0, True),
    ],
)
def test_a_threshold_that_is_reached_makes_one_due(
    policy: SnapshotPolicy, entries: int, size: int, now_ms: int, due: bool
) -> None:
    counted = state(policy)
    counted.applied(entries, size)
    assert counted.due(now_ms) is due


@pytest.mark.parametrize("policy", [SnapshotPolicy(entries=3), SnapshotPolicy(bytes=3)])
def test_what_is_applied_adds_up(policy: SnapshotPolicy) -> None:
    counted = state(policy)
    answers = []
    for _ in range(4):
        counted.applied(1, 1)
        answers.append(counted.due(0))
    assert answers == [False, False, True, True]


def test_the_first_interval_begins_when_the_state_was_made() -> None:
    counted = state(SnapshotPolicy(interval_ms=50), now_ms=1_000)
    counted.applied(1, 1)
    assert [counted.due(now) for now in (1_049, 1_050)] == [False, True]


def test_never_two_at_once_and_what_is_applied_meanwhile_counts_for_the_next() -> None:
    counted = state(SnapshotPolicy(entries=3))
    counted.applied(3, 0)
    counted.begun(10)
    counted.applied(2, 0)
    assert not counted.due(10)
    counted.applied(1, 0)
    assert not counted.due(10**9)
    counted.ended(20, ok=True)
    assert counted.due(20)


def test_the_counts_and_the_interval_start_anew_when_one_begins() -> None:
    counted = state(SnapshotPolicy(entries=3, bytes=30, interval_ms=50))
    counted.applied(3, 30)
    counted.begun(100)
    counted.ended(140, ok=True)
    counted.applied(1, 1)
    assert [counted.due(now) for now in (149, 150)] == [False, True]


@pytest.mark.parametrize(("entries", "size"), [(1, 0), (0, 1)])
def test_a_failed_one_loses_no_count(entries: int, size: int) -> None:
    counted = state(SnapshotPolicy(entries=4, bytes=31))
    counted.applied(2, 20)
    counted.begun(10)
    counted.applied(1, 10)
    counted.ended(20, ok=False)
    assert not counted.due(20)
    counted.applied(entries, size)
    assert counted.due(20)


def test_a_failed_one_does_not_end_the_interval() -> None:
    counted = state(SnapshotPolicy(interval_ms=50))
    counted.applied(1, 1)
    counted.begun(30)
    counted.ended(40, ok=False)
    assert [counted.due(now) for now in (49, 50)] == [False, True]


@pytest.mark.parametrize("ok", [True, False])
def test_after_the_end_of_one_good_or_bad_it_cools_down(ok: bool) -> None:
    counted = state(SnapshotPolicy(entries=1, cooldown_ms=100))
    counted.applied(1, 0)
    counted.begun(1_000)
    counted.ended(1_500, ok=ok)
    counted.applied(1, 0)
    assert [counted.due(now) for now in (1_500, 1_599, 1_600)] == [False, False, True]


def test_a_policy_replaced_at_run_time_keeps_the_counts_and_the_cooldown() -> None:
    counted = state(SnapshotPolicy())
    counted.applied(5, 50)
    assert not counted.due(10)
    counted.policy = SnapshotPolicy(entries=5)
    assert counted.due(10)
    counted.begun(10)
    counted.policy = SnapshotPolicy(bytes=1, cooldown_ms=100)
    counted.applied(0, 1)
    counted.ended(20, ok=True)
    assert [counted.due(now) for now in (119, 120)] == [False, True]
    counted.policy = SnapshotPolicy()
    assert not counted.due(10**9)


@pytest.mark.parametrize(
    ("key", "value"), [("entries", 0), ("bytes", 0), ("interval_ms", 0), ("cooldown_ms", -1), ("entries", -5)]
)
def test_an_impossible_threshold_is_refused_by_name(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{key} = {value}") as caught:
        SnapshotPolicy(**{key: value})
    assert (caught.value.key, caught.value.value) == (key, value)
    assert caught.value.hint


def test_a_policy_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        SnapshotPolicy().entries = 1  # type: ignore[misc]


def test_events_that_cannot_be_are_defects_and_change_nothing() -> None:
    counted = state(SnapshotPolicy(entries=1))
    with pytest.raises(AssertionError):
        counted.ended(0, ok=True)
    counted.begun(0)
    with pytest.raises(AssertionError):
        counted.begun(1)
    counted.ended(2, ok=True)
    assert not counted.running


class Model(msgspec.Struct):
    """The same from a list of everything that happened: (time, entries, bytes), and when snapshots ran."""

    events: list[tuple[int, int]] = []
    began: int = 0  # how many events the last good or running snapshot has
    since_ms: int = 0
    running: tuple[int, int] | None = None
    ended_ms: int | None = None

    def due(self, policy: SnapshotPolicy, now_ms: int) -> bool:
        waiting = self.events[self.began :]
        entries, size = sum(e for e, _ in waiting), sum(b for _, b in waiting)
        reached = [
            policy.entries is not None and entries >= policy.entries,
            policy.bytes is not None and size >= policy.bytes,
            policy.interval_ms is not None and entries > 0 and now_ms - self.since_ms >= policy.interval_ms,
        ]
        cooled = self.ended_ms is None or self.ended_ms + policy.cooldown_ms <= now_ms
        return self.running is None and cooled and any(reached)


LIMIT = st.one_of(st.none(), st.integers(1, 20))
POLICIES = st.builds(SnapshotPolicy, LIMIT, LIMIT, LIMIT, st.integers(0, 20))
EVENT = st.one_of(
    st.tuples(st.just("applied"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.sampled_from(["switch", "failed", "wait"]), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("policy"), POLICIES, st.just(0)),
)


@given(POLICIES, st.lists(EVENT, max_size=40))
def test_random_events_are_answered_as_a_dumb_model_says(
    policy: SnapshotPolicy, events: list[tuple[str, int | SnapshotPolicy, int]]
) -> None:
    counted, model, now_ms = state(policy), Model(), 0
    for what, value, size in events:
        if isinstance(value, SnapshotPolicy):
            counted.policy = policy = value
        elif what == "applied":
            counted.applied(value, size)
            model.events.append((value, size))
        else:
            now_ms += value
            if what != "wait":
                turn(counted, model, now_ms, ok=what == "switch")
        assert counted.due(now_ms) == model.due(policy, now_ms)


def turn(counted: PolicyState, model: Model, now_ms: int, ok: bool) -> None:
    """Begin a snapshot, or end the one that runs."""
    if model.running is None:
        counted.begun(now_ms)
        model.running = (model.began, model.since_ms)
        model.began, model.since_ms = len(model.events), now_ms
        return
    counted.ended(now_ms, ok)
    if not ok:
        model.began, model.since_ms = model.running
    model.running, model.ended_ms = None, now_ms
