"""The check of histories: every planted fault is found by its rule and by no other; what is true is accepted."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from shardengine import (
    ApplyResult,
    BadEntryError,
    CompareAndSwap,
    Delete,
    Entry,
    HistoryError,
    Limits,
    LogGapError,
    Put,
    ScanResult,
    encode,
    run,
)
from shardengine.adaptors import MemoryStateMachine
from shardengine.conformance import Event, History
from shardengine.engine.conformance.operations import Operation, Read, Write
from shardengine.engine.conformance.timeline import replayed
from shardengine.machines.bank import Bank, Open, Transfer

K = b"k"


class Story:
    """A true history, whose parts are its attributes. Every operation ends before the next one begins."""

    def __init__(self) -> None:
        self.history = history = History()
        self.log: list[Entry] = []
        self.early = history.begin_get([K])
        self.early.ok([None])
        self.watch = history.begin_watch(1, prefix=K, previous=True)
        self.first = self.put(Put(K, b"1"))
        self.one = history.begin_get([K])
        self.one.ok([b"1"])
        self.view = history.begin_view(session="view")
        self.view.ok([], 1)
        self.viewed = [self.look()]
        self.second = self.put(Put(K, b"2"))
        self.two = history.begin_get([K, b"none"])
        self.two.ok([b"2", None])
        self.viewed.append(self.look())
        self.swap = self.put(CompareAndSwap(K, b"9", b"0"), "compare failed")
        self.local = [self.look_here(), self.look_here()]
        self.delete = self.put(Delete(K))
        self.refused = history.begin_propose([encode(Put(K, b"refused"))])
        self.refused.failed("the log is full")
        self.unknown = history.begin_propose([encode(Put(K, b"5"))])
        self.unknown.unknown("the node stopped")
        self.log.append(Entry(5, 1, self.unknown.datas[0]))
        self.scan = history.begin_scan(b"", limit=1)
        self.scan.ok(ScanResult([(K, b"5")], 5, False))
        for event in (
            Event("put", K, b"1", None, 1),
            Event("put", K, b"2", b"1", 2),
            Event("deleted", K, None, b"2", 4),
            Event("put", K, b"5", None, 5),
            Event("progress", b"", None, None, 5),
        ):
            self.watch.saw(event)
        self.last = self.put(Put(b"z", b""))
        self.watch.ok(through=6)

    def put(self, command: object, reason: str | None = None) -> Write:
        write = self.history.begin_propose([encode(command)])
        self.log.append(Entry(len(self.log) + 1, 1, write.datas[0]))
        write.ok([ApplyResult(len(self.log), reason is None, reason=reason)])
        return write

    def look(self) -> Read:
        read = self.history.begin_get([K], of_view=1)
        read.ok([b"1"])
        return read

    def look_here(self) -> Read:
        read = self.history.begin_get([K], session="here", linearizable=False)
        read.ok([b"2"], 3)
        return read

    def rules(self) -> list[str]:
        verdict = self.history.check(self.log)
        assert verdict.found == len(verdict.findings)
        return [finding.rule for finding in verdict.findings]

    def append(self, command: object) -> None:
        self.log.append(Entry(len(self.log) + 1, 1, encode(command)))


def change(operation: Operation, **fields: object) -> None:
    for name, value in fields.items():
        setattr(operation, name, value)


def told(write: Write, **fields: object) -> None:
    """It was told something else."""
    write.results = [msgspec.structs.replace(write.results[0], **fields)]


def told_otherwise(story: Story, place: int, **fields: object) -> None:
    story.watch.events[place] = msgspec.structs.replace(story.watch.events[place], **fields)


FAULTS: dict[str, tuple[str, Callable[[Story], object]]] = {
    "a lost acknowledged write": ("lost", lambda story: story.log.pop()),
    "an acknowledged write that is another entry": ("lost", lambda story: told(story.last, index=5)),
    "a stale read": ("stale", lambda story: change(story.two, values=[b"1", None])),
    "a stale read that says so": ("stale", lambda story: change(story.two, values=[b"1", None], revision=1)),
    "a stale scan": ("stale", lambda story: change(story.scan, entries=[(K, b"2")], revision=3)),
    "a read at an index that is too low": ("stale", lambda story: change(story.local[1], at_least=4)),
    "a read from the future": ("future", lambda story: change(story.one, values=[b"2"])),
    "a read from the future that says so": ("future", lambda story: change(story.one, values=[b"2"], revision=2)),
    "a read beyond the log": ("future", lambda story: change(story.scan, revision=7)),
    "an event from the future": ("future", lambda story: story.watch.at.__setitem__(0, story.watch.begun)),
    "the result of another entry": ("result", lambda story: told(story.first, succeeded=False, reason="no")),
    "a value that another entry gave": ("result", lambda story: told(story.swap, succeeded=True, reason=None)),
    "a value that never was": ("value", lambda story: change(story.two, values=[b"3", None])),
    "a value of another revision": ("value", lambda story: change(story.local[0], values=[b"1"])),
    "a scan that leaves one out": ("value", lambda story: change(story.scan, entries=[])),
    "a scan that hides that there is more": ("value", lambda story: change(story.scan, more=True)),
    "a session that goes back": ("back", lambda story: change(story.local[1], revision=2)),
    "a session that goes back without a revision": (
        "back",
        lambda story: change(story.local[1], revision=None, values=[b"1"]),
    ),
    "a view that cannot be repeated": ("view", lambda story: change(story.viewed[1], values=[b"2"])),
    "a view of nothing": ("view", lambda story: change(story.viewed[1], of_view=99, revision=99)),
    "a view that moved": ("view", lambda story: change(story.viewed[1], revision=2)),
    "an event twice": ("event-twice", lambda story: again(story, 1)),
    "an event missing": ("event-missing", lambda story: without(story, 1)),
    "the last event missing": ("event-missing", lambda story: without(story, 3)),
    "an event out of order": ("event-order", lambda story: swapped(story, 1)),
    "an event behind the word that it was told": ("event-order", lambda story: moved(story, 4, 3)),
    "the word that all was told that is still to come": ("future", lambda story: told_otherwise(story, 4, revision=6)),
    "an event with another value": ("event-wrong", lambda story: told_otherwise(story, 1, value=b"x")),
    "an event with another value before": ("event-wrong", lambda story: told_otherwise(story, 1, previous=None)),
    "an event of another kind": ("event-wrong", lambda story: told_otherwise(story, 2, kind="put")),
    "a refused command in the log": ("refused", lambda story: story.append(Put(K, b"refused"))),
    "an acknowledged command twice": ("twice", lambda story: story.append(Put(K, b"1"))),
    "an unknown command twice": ("twice", lambda story: story.append(Put(K, b"5"))),
    "a command of nobody": ("unasked", lambda story: story.append(Put(K, b"whose"))),
}


def again(story: Story, place: int) -> None:
    story.watch.events.insert(place, story.watch.events[place])
    story.watch.at.insert(place, story.watch.at[place])


def without(story: Story, place: int) -> None:
    del story.watch.events[place], story.watch.at[place]


def swapped(story: Story, place: int) -> None:
    events = story.watch.events
    events[place], events[place + 1] = events[place + 1], events[place]


def moved(story: Story, place: int, to: int) -> None:
    story.watch.events.insert(to, story.watch.events.pop(place))


def test_the_story_is_true() -> None:
    story = Story()
    verdict = story.history.check(story.log)
    assert verdict.valid
    assert str(verdict) == "valid: 17 operations, 5 events and 6 entries"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_its_rule_and_by_no_other(fault: str) -> None:
    rule, plant = FAULTS[fault]
    story = Story()
    plant(story)
    assert story.rules() == [rule]


def test_a_finding_says_who_saw_what_and_what_it_had_to_be() -> None:
    story = Story()
    change(story.two, values=[b"1", None])
    verdict = story.history.check(story.log)
    number = story.two.begun
    assert verdict.findings[0].operations == [number]
    assert str(verdict) == (
        "not valid: 1 findings in 17 operations, 5 events and 6 entries\n"
        f"stale: operation {number} saw b'k' = b'1', b'none' = None, the state behind entry 1, and had to see entry 2"
    )
    with pytest.raises(TypeError, match="valid"):
        bool(verdict)


# ---- order, by calls that overlap ------------------------------------------------------------------------------------


def test_commands_stand_in_the_log_in_the_order_of_their_calls_and_overlapping_ones_in_any() -> None:
    for overlap in (False, True):
        history, datas = History(), [encode(Put(b"%d" % number, b"")) for number in range(2)]
        first = history.begin_propose([datas[0]])
        second = history.begin_propose([datas[1]]) if overlap else None
        first.ok([ApplyResult(2, True)])
        (second or history.begin_propose([datas[1]])).ok([ApplyResult(1, True)])
        verdict = history.check([Entry(1, 1, datas[1]), Entry(2, 1, datas[0])])
        assert [finding.rule for finding in verdict.findings] == ([] if overlap else ["order"])


def test_commands_of_one_call_stand_next_to_each_other() -> None:
    history, datas = History(), [encode(Put(b"%d" % number, b"")) for number in range(3)]
    both, other = history.begin_propose(datas[:2]), history.begin_propose(datas[2:])
    both.ok([ApplyResult(1, True), ApplyResult(3, True)])
    other.ok([ApplyResult(2, True)])
    log = [Entry(1, 1, datas[0]), Entry(2, 1, datas[2]), Entry(3, 1, datas[1])]
    assert "order" in [finding.rule for finding in history.check(log).findings]


def test_two_proposals_of_the_same_command_have_an_entry_each() -> None:
    data = encode(Put(K, b"v"))
    for index in (1, 2):
        history = History()
        first, second = history.begin_propose([data]), history.begin_propose([data])
        first.ok([ApplyResult(1, True)])
        second.ok([ApplyResult(index, True)])
        found = {finding.rule for finding in history.check([Entry(1, 1, data), Entry(2, 1, data)]).findings}
        assert found == (set() if index == 2 else {"lost"})


def test_an_entry_of_an_unknown_proposal_is_not_seen_before_that() -> None:
    history, data = History(), encode(Put(K, b"v"))
    read = history.begin_get([K])
    read.ok([b"v"])
    history.begin_propose([data])
    assert [finding.rule for finding in history.check([Entry(1, 1, data)]).findings] == ["future"]
    assert history.check([Entry(1, 1, data)], others=True).valid, "it may be somebody else's"


def test_an_entry_without_a_command_needs_nobody_who_proposed_it() -> None:
    history, data = History(), encode(Put(K, b"v"))
    history.begin_propose([data]).ok([ApplyResult(2, True)])
    history.begin_get([K]).ok([b"v"], 3)
    log = [Entry(1, 1, b""), Entry(2, 1, data), Entry(3, 2, b"")]
    assert history.check(log).valid
    assert not history.check([*log, Entry(4, 2, data)]).valid


def test_a_local_read_obliges_its_own_session_and_nobody_else() -> None:
    history, data = History(), encode(Put(K, b"v"))
    history.begin_propose([data])
    history.begin_get([K], linearizable=False, session="a").ok([b"v"])
    history.begin_get([K], session="b").ok([None])
    assert history.check([Entry(1, 1, data)]).valid
    history.begin_get([K], session="a").ok([None])
    assert [finding.rule for finding in history.check([Entry(1, 1, data)]).findings] == ["back"]


def test_what_a_linearizable_read_saw_the_next_one_sees_too_in_any_session() -> None:
    """Though the write it saw goes on, and is not acknowledged."""
    for linearizable in (False, True):
        history, data = History(), encode(Put(K, b"v"))
        history.begin_propose([data])
        history.begin_get([K], session="a").ok([b"v"])
        history.begin_get([K], session="b", linearizable=linearizable).ok([None])
        found = [finding.rule for finding in history.check([Entry(1, 1, data)]).findings]
        assert found == (["stale"] if linearizable else [])


def test_the_events_of_one_entry_come_in_any_order_and_a_watcher_may_end_among_them() -> None:
    log = [Entry(index, 1, encode(one)) for index, one in enumerate([Open(b"a", 5), Open(b"b", 5)], 1)]
    log.append(Entry(3, 1, encode(Transfer(b"a", b"b", 1))))
    keys = sorted(key for _, key in replayed(log, Bank, Limits(), "fail").written(None, b"", 3, 3))
    state = MemoryStateMachine(Bank)
    state.start()
    run(lambda: state.apply_chunk(log))
    moved = [Event("put", key, state.get(key), None, 3) for key in keys]
    assert len(moved) == 2
    for events, through, missing in ((moved, 3, 0), (moved[::-1], 3, 0), (moved[1:], 0, 0), (moved[1:], 3, 1)):
        history = History()
        watch = history.begin_watch(3)
        for event in events:
            watch.saw(event)
        watch.ok(through)
        found = [finding.rule for finding in history.check(log, Bank, others=True).findings]
        assert found == ["event-missing"] * missing


def test_values_of_several_keys_are_those_of_one_index() -> None:
    log = [Entry(index, 1, encode(Put(key, b"%d" % index))) for index, key in enumerate([K, b"l", K, b"l"], 1)]
    for values, valid in (([b"1", b"2"], True), ([b"3", b"2"], True), ([b"1", b"4"], False), ([None, b"2"], False)):
        history = History()
        read = history.begin_get([K, b"l"], linearizable=False)
        read.ok(values)
        found = [finding.rule for finding in history.check(log, others=True).findings]
        assert found == ([] if valid else ["value"])


# ---- chunks that are applied -----------------------------------------------------------------------------------------


def test_entries_that_are_applied_again_say_so_and_count_from_the_first_time() -> None:
    history = History()
    log = [Entry(index, 1, encode(Put(K, b"%d" % index))) for index in range(1, 5)]
    failed = history.begin_apply(log[:3])
    failed.failed("no room")
    first = history.begin_apply(log[:2])
    history.begin_get([K], linearizable=False).ok([b"2"], 2)
    first.ok([ApplyResult(1, True), ApplyResult(2, True)])
    second = history.begin_apply(log[1:])
    second.ok([ApplyResult(2, True, already_applied=True), ApplyResult(3, True), ApplyResult(4, True)])
    assert history.check(log).valid
    second.results = [*second.results[:2], ApplyResult(3, True)]
    assert [finding.rule for finding in history.check(log).findings] == ["result"]


def test_a_chunk_is_seen_whole_or_not_at_all() -> None:
    log = [Entry(index, 1, encode(Put(K, b"%d" % index))) for index in range(1, 7)]
    for at, revision, rules in (
        *((index, index, [] if index in (0, 3, 6) else ["torn"]) for index in range(7)),
        *((index, None, [] if index in (0, 3, 6) else ["torn"]) for index in range(7)),
    ):
        history = History()
        for chunk in (log[:3], log[3:]):
            history.begin_apply(chunk)
        history.begin_get([K], linearizable=False).ok([b"%d" % at if at else None], revision)
        assert [finding.rule for finding in history.check(log).findings] == rules
        history.begin_apply(log[:at] or log)
        assert history.check(log).valid, "another chunk ended there"


def test_what_is_the_same_behind_a_chunk_and_inside_of_it_is_not_torn() -> None:
    log = [Entry(index, 1, encode(Put(b"%d" % (index % 2), b""))) for index in range(1, 5)]
    history = History()
    history.begin_apply(log)
    history.begin_get([b"1"], linearizable=False, session="a").ok([b""])
    history.begin_get([b"0", b"1"], linearizable=False, session="b").ok([None, b""])
    assert [finding.rule for finding in history.check(log).findings] == ["torn"]


def test_what_failed_to_be_applied_is_not_seen() -> None:
    history = History()
    log = [Entry(1, 1, encode(Put(K, b"v")))]
    history.begin_apply(log).failed("no room")
    history.begin_get([K]).ok([b"v"])
    assert [finding.rule for finding in history.check(log).findings] == ["future"]
    history.begin_apply(log).ok([ApplyResult(1, True, already_applied=True)])
    assert history.check(log).valid, "somebody had applied it, whom nobody recorded"


# ---- what it is not for ----------------------------------------------------------------------------------------------


def test_an_operation_ends_once_and_answers_what_was_asked() -> None:
    history = History()
    read, write = history.begin_get([K]), history.begin_propose([b""])
    with pytest.raises(HistoryError, match="1 keys, 2 values"):
        read.ok([None, None])
    with pytest.raises(HistoryError, match="1 commands, 0 results"):
        write.ok([])
    with pytest.raises(HistoryError, match="0 keys, 0 values, at None"):
        history.begin_view().ok([])
    read.ok([None])
    with pytest.raises(HistoryError, match="has ended already"):
        read.failed("late")
    with pytest.raises(HistoryError, match="has ended already"):
        read.ok([b"another"])
    assert read.values == [None], "a second answer changes nothing of the first"
    with pytest.raises(HistoryError, match="nothing"):
        history.begin_propose([])


def test_a_log_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(LogGapError):
        History().check([Entry(2, 1, b"")])
    with pytest.raises(BadEntryError):
        History().check([Entry(1, 1, b"junk")])
    verdict = History().check([Entry(1, 1, b"junk")], bad_entry="reject", others=True)
    assert verdict.valid and verdict.entries == 1


def test_findings_beyond_the_most_are_counted() -> None:
    history = History()
    for _ in range(100):
        history.begin_get([K]).ok([b"never"])
    verdict = history.check([], findings_max=3)
    assert (verdict.found, len(verdict.findings)) == (100, 3) and str(verdict).endswith("\nand 97 more")
