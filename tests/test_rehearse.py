"""Rehearsals find what would make replicas differ, and name the first command that does."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Set
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardengine import (
    BadEntryError,
    ChunkFailedError,
    CompareAndSwap,
    ConfigError,
    EngineError,
    EngineStateError,
    Entry,
    KeyValue,
    LogGapError,
    LogId,
    Machine,
    MachineImportError,
    Put,
    Rehearsal,
    RehearsalError,
    UndeclaredKeyError,
    encode,
    rehearse,
)
from shardengine.adaptors import MemoryStateMachine
from shardengine.engine.adaptors.elsewhere import Task, traced_elsewhere
from shardengine.engine.adaptors.tracing import Step, lanes
from shardengine.engine.intake.split import Spanning, Split, Splitter
from shardengine.engine.intake.tail import normalised
from shardengine.shards.fast import Normal
from shardengine.shards.placement import shard_table, slot_of
from shardengine.shards.types import Limits
from tests import unruly
from tests.dated import READINGS, Due, Dues
from tests.fickle import ChecksByTheClock, ChecksOnce, DecodingFails, KeysFail, PartitionsFail
from tests.killing import WATCHDOG_S, environment
from tests.machines import Add, Ledger, Move, Reject, Stamp
from tests.model import Model, log_of
from tests.unruly import puts_of

KEYS = [b"a", b"b", b"c", b"d", b"a/1", b"e"]
NOWHERE: dict[str, Any] = {"hash_seeds": ()}


def found(machine: type[Machine], commands: list[Any] | None = None, **options: Any) -> RehearsalError:
    with pytest.raises(RehearsalError) as caught:
        rehearse(machine, puts_of(*KEYS) if commands is None else commands, **options)
    return caught.value


# ---- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "differs"),
    [
        (unruly.Clock, "state"),
        (unruly.Random, "result"),
        (unruly.Counting, "result"),
        (unruly.ModuleKept, "state"),
        (unruly.OtherKeys, "keys"),
        (unruly.SometimesFails, "error"),
        (unruly.SometimesDeletes, "state"),
        (unruly.SometimesRejects, "result"),
    ],
)
def test_a_command_that_does_not_do_the_same_twice_is_named(machine: type[Machine], differs: str) -> None:
    error = found(machine, [b"", *puts_of(b"a", b"b")], **NOWHERE)
    assert (error.index, error.differs, error.command) == (2, differs, "Put(key=b'a', value=b'a')")
    assert error.first != error.other
    assert "second time" in error.run
    assert error.message.startswith("entry 2, Put(key=b'a', value=b'a'): its ")
    if differs == "state":
        assert error.key == b"a"


def test_what_a_class_remembers_is_found() -> None:
    unruly.ClassCounting.seen.clear()
    error = found(unruly.ClassCounting, **NOWHERE)
    assert (error.index, error.differs, error.first, error.other) == (1, "result", True, False)


def test_a_command_that_apply_changes_is_found() -> None:
    error = found(unruly.Popping, [unruly.Pop(b"k", [1, 2])], **NOWHERE)
    assert (error.index, error.differs, error.first, error.other) == (1, "result", 2, 1)


def test_what_a_machine_keeps_and_repeats_is_found_where_shards_have_machines_of_their_own() -> None:
    error = found(unruly.FirstSeen, **NOWHERE)
    assert error.run.startswith("over 2 shards, in chunks of 16")
    assert (error.differs, error.first) == ("state", b"a")
    assert KEYS[error.index - 1] == error.key == error.other
    assert rehearse(unruly.FirstSeen, puts_of(*KEYS), shards=[1], **NOWHERE).entries == len(KEYS)


@pytest.mark.parametrize(
    ("machine", "differs"),
    [
        (unruly.SetOrder, "state"),
        (unruly.SlowClock, "state"),
        (unruly.Dated, "state"),
        (unruly.Process, "result"),
        (unruly.Worker, "result"),
        (unruly.OtherPartitions, "partitions"),
    ],
)
def test_what_another_process_does_otherwise_is_found(machine: type[Machine], differs: str) -> None:
    assert rehearse(machine, puts_of(*KEYS), **NOWHERE).entries == len(KEYS)
    error = found(machine, hash_seeds=[1])
    assert (error.index, error.differs) == (1, differs)
    assert error.run == "in another process, with PYTHONHASHSEED=1"


def test_commands_of_a_partition_that_change_places_are_found_and_the_first_is_named() -> None:
    unruly.Misplacing.made = 0
    error = found(unruly.Misplacing, puts_of(b"a", b"a"), shards=[2], chunks=[9], **NOWHERE)
    assert (error.differs, error.run) == ("order", "over 2 shards, in chunks of 9")
    assert (error.index, error.command, error.key) == (1, "Put(key=b'a', value=b'a')", b"a")
    assert (error.first, error.other) == ([1, 2], [2, 1])
    assert error.message.startswith("entry 1, Put(key=b'a', value=b'a'): its place among the writes of the key b'a' ")
    assert "partition_key" in error.hint


def refusal(machine: type[Machine], commands: list[Any]) -> EngineError | None:
    try:
        rehearse(machine, commands, shards=[2], chunks=[2], **NOWHERE)
    except EngineError as error:
        return error
    return None


@pytest.mark.parametrize("machine", [KeysFail, PartitionsFail, DecodingFails])
def test_a_machine_that_fails_from_any_call_on_is_told_by_name(machine: type[KeysFail]) -> None:
    """As a difference, or as an engine would say it."""
    kinds: set[str] = set()
    log = [encode(Put(key, b"") if machine.command is KeyValue.command else [1, key]) for key in (b"a", b"b", b"a")]
    calls = KeysFail.calls_left = 0
    while error := refusal(machine, log):
        assert error.facts["index"] in (1, 2, 3)
        assert "no keys any more" in str(error.facts)
        kinds.add(type(error).__name__ + str(error.facts.get("differs", "")))
        calls = KeysFail.calls_left = calls + 1
    assert calls > 10
    assert kinds == {"BadEntryError", "ChunkFailedError", "RehearsalErrorcheck", "RehearsalErrorerror"}


LONG = [Put(b"short", b""), Put(b"long", bytes(100)), Put(b"long", bytes(101))]


@pytest.mark.parametrize("machine", [ChecksByTheClock, ChecksOnce])
def test_a_check_that_does_not_say_the_same_in_every_run_is_found(machine: type[Machine]) -> None:
    error = found(machine, LONG, limits=Limits(value_bytes_max=64), bad_entry="reject", hash_seeds=[1])
    assert (error.index, error.differs) == (2, "check")
    assert None in (error.first, error.other)
    assert error.run == (
        "when it was run a second time, from its start"
        if machine is ChecksOnce
        else "in another process, with PYTHONHASHSEED=1"
    )


def test_every_clock_and_date_is_another_in_another_process() -> None:
    log = [Step(index, 1, 0, encode(put)) for index, put in enumerate(puts_of(*READINGS), 1)]
    traces = traced_elsewhere(Task("tests.dated:Watches", Limits(), log), 1, WATCHDOG_S)
    told = {key: value for trace in traces.values() for key, value in trace.writes}
    here = {key: str(read()).encode() for key, read in READINGS.items()}
    assert told.keys() == here.keys()
    assert {key for key, value in told.items() if value == here[key]} == set()


def test_every_process_has_the_order_of_sets_that_was_asked_for() -> None:
    assert [found(unruly.Seed, hash_seeds=[seed]).other for seed in (7, 8)] == [b"7", b"8"]


# ---- what an engine would refuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "kind", "said"),
    [
        (unruly.Trespasser, UndeclaredKeyError, "apply touched the key b'elsewhere'"),
        (unruly.Fails, ChunkFailedError, "LookupError: no c"),
    ],
)
def test_what_an_engine_would_refuse_is_refused_as_by_it(
    machine: type[Machine], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=f"entry 3 failed its chunk: {said}") as caught:
        rehearse(machine, puts_of(*KEYS), **NOWHERE)
    assert type(caught.value) is kind
    assert caught.value.index == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("machine", "commands", "said"),
    [
        (unruly.NoKeys, puts_of(b"a"), "entry 1: keys\\(\\) names no key"),
        (unruly.TextKeys, puts_of(b"a"), "entry 1: a key of str"),
        (KeyValue, [Put(b"a", b""), b"\xc1"], "entry 2: data is no command"),
    ],
)
def test_bad_entries_are_refused_as_by_an_engine(machine: type[Machine], commands: list[Any], said: str) -> None:
    with pytest.raises(BadEntryError, match=said):
        rehearse(machine, commands, **NOWHERE)
    assert rehearse(machine, commands, bad_entry="reject", **NOWHERE).rejected == 1


def test_machines_that_workers_could_not_import_are_refused() -> None:
    class Local(KeyValue):
        pass

    main = type("Main", (KeyValue,), {"__module__": "__main__"})
    for machine in (Local, main):
        with pytest.raises(MachineImportError, match="workers cannot import"):
            rehearse(machine, [])


def test_a_machine_that_another_process_cannot_import_or_make_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_module_of_this_process")
    machine = type("Ghost", (KeyValue,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(MachineImportError, match="No module named 'a_module_of_this_process'"):
        rehearse(machine, puts_of(b"a"))
    with pytest.raises(MachineImportError, match="RuntimeError: not here"):
        rehearse(unruly.Unmade, puts_of(b"a"))


def test_a_process_that_ends_otherwise_or_not_at_all_is_told() -> None:
    with pytest.raises(RehearsalError, match="ended with code 3: so long") as caught:
        rehearse(unruly.Exits, puts_of(b"a"))
    assert caught.value.code == 3
    with pytest.raises(RehearsalError, match=r"has not ended after 0\.5 s"):
        rehearse(unruly.NeverEnds, puts_of(b"a"), timeout_s=0.5)


def test_a_log_that_is_none_and_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(LogGapError, match="index 3 follows 1"):
        rehearse(KeyValue, [Entry(1, 1, b""), Entry(3, 1, b"")])
    for options in ({"shards": [0]}, {"shards": [257]}, {"chunks": [0]}, {"chunks": ["1"]}):
        with pytest.raises(ConfigError, match="holds"):
            rehearse(KeyValue, [], **options)


def test_a_worker_rehearses_nothing() -> None:
    """Else a module that does, as it is imported, would start processes without end."""
    program = "from shardengine.shards.worker import Process\nfrom shardengine import KeyValue, rehearse\n"
    program += "Process.is_worker = True\nrehearse(KeyValue, [])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert f"{EngineStateError.__name__}: this is a worker process" in done.stderr


# ---- what passes -----------------------------------------------------------------------------------------------------


def test_a_sound_machine_passes_and_the_report_says_what_was_done() -> None:
    commands = [Put(b"a", b"1"), CompareAndSwap(b"a", b"2", b"3"), b"", encode(Put(b"b", b"1"))]
    model = Model()
    model.apply(log_of([one if isinstance(one, bytes) else encode(one) for one in commands]))
    assert rehearse(KeyValue, commands, shards=[2, 3], chunks=[2]) == Rehearsal(
        entries=4,
        rejected=1,
        digest=model.digest(),
        runs=[
            "in log order, each command twice",
            "over 2 shards, in chunks of 2",
            "over 3 shards, in chunks of 2",
            "in another process, with PYTHONHASHSEED=1",
            "in another process, with PYTHONHASHSEED=2",
        ],
    )
    assert rehearse(KeyValue, []).entries == 0


def test_a_machine_whose_commands_bring_moments_along_passes() -> None:
    moments = [datetime.datetime(2026, 1, 31), datetime.datetime(1999, 12, 31, tzinfo=datetime.UTC)]
    assert rehearse(Dues, [Due(b"k", at) for at in moments], hash_seeds=[1]).entries == 2


def test_a_machine_that_writes_to_standard_output_and_remembers_what_is_always_so_passes() -> None:
    assert rehearse(unruly.Chatty, puts_of(*KEYS)).entries == len(KEYS)


async def test_entries_keep_their_index_term_and_clock() -> None:
    log = [Entry(7, 3, encode(Stamp(b"a")), 50), Entry(8, 4, encode(Stamp(b"b")), 20), Entry(9, 4, b"")]
    report = rehearse(Ledger, [*log, Stamp(b"c")])
    async with MemoryStateMachine(Ledger) as memory:
        memory.update_last_applied(LogId(6, 3))
        await memory.apply_chunk([*log, Entry(10, 4, encode(Stamp(b"c")))])
        assert (report.digest, report.entries) == (await memory.digest(), 4)


@given(
    st.lists(
        st.builds(Add, st.sampled_from([b"a/1", b"a/2", b"b", b"c", b"d"]), st.integers(-3, 9))
        | st.builds(Move, st.just(b"a/1"), st.just(b"a/2"), st.integers(-3, 9))
        | st.builds(Stamp, st.sampled_from([b"a/s", b"e"]))
        | st.builds(Reject, st.just(b"b"), st.just("no")),
        max_size=40,
    )
)
@settings(max_examples=30)
def test_a_sound_machine_of_ones_own_passes(commands: list[Any]) -> None:
    assert rehearse(Ledger, commands, chunks=[5], **NOWHERE).entries == len(commands)


@given(
    st.lists(
        st.builds(
            unruly.Transfer,
            st.sampled_from([b"a/1", b"a/2", b"b/1", b"c/1"]),
            st.sampled_from([b"a/1", b"d/1", b"e/1", b"e/2"]),
            st.integers(0, 9),
        ),
        max_size=40,
    )
)
@settings(max_examples=30)
def test_a_sound_machine_whose_commands_span_shards_passes(commands: list[Any]) -> None:
    assert rehearse(unruly.Transfers, commands, chunks=[5, 100], **NOWHERE).entries == len(commands)


# ---- the order of an engine ------------------------------------------------------------------------------------------

PARTITIONS = st.lists(st.sampled_from([b"%d" % number for number in range(8)]), min_size=1, max_size=3, unique=True)


def lanes_of(named: list[list[bytes]], shards: int) -> list[list[int]]:
    """Who runs what of a chunk whose commands name these keys."""
    machine = unruly.Touching()
    splitter = Splitter(machine, shards, Limits(), reject_bad=True, part_bytes_max=1 << 20)
    return lanes(splitter.split(normalised(log_of([encode(unruly.Touch(keys)) for keys in named]), 0)), shards)


@given(st.lists(PARTITIONS, min_size=1, max_size=30), st.sampled_from([1, 2, 3, 8]))
@settings(max_examples=300)
def test_each_partition_sees_its_commands_in_log_order_and_the_coordinator_takes_what_spans(
    partitions: list[list[bytes]], shards: int
) -> None:
    *own, last = lanes_of(partitions, shards)
    order = [place for lane in [*own, last] for place in lane]
    assert sorted(order) == list(range(len(partitions)))
    for partition in set[bytes]().union(*partitions):
        touching = [place for place in order if partition in partitions[place]]
        assert touching == sorted(touching)
    for lane in own:
        assert lane == sorted(lane)
    if shards == 1:
        assert last == []


def test_who_runs_what_follows_from_what_was_taken_before() -> None:
    table = shard_table(2)
    low, high = b"2", b"0"
    assert [table[slot_of(key)] for key in (low, high)] == [0, 1]
    assert lanes_of([[low], [high], [low, high], [high], [b"4"], [low]], 2)[-1] == [2, 3, 5]


def test_what_is_no_command_is_in_no_lane() -> None:
    assert lanes_of([[b"2"], [], [b"0"], [b"2", b"0"]], 2) == [[0], [2], [3]]


def test_a_rehearsal_runs_what_this_engine_would_when_its_rule_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one rule of who runs what: an engine's."""
    split = Splitter.split

    def wrong(self: Splitter, chunk: Normal, taken: Set[bytes] = frozenset()) -> Split:
        """Nothing is ever taken: what touches a spanning command's partitions stays with its shard."""
        return split(self, chunk, taken)._replace(owners=bytes(len(chunk.datas)), spanning=spanning_of(self, chunk))

    def spanning_of(splitter: Splitter, chunk: Normal) -> list[Spanning]:
        return [one for one in split(splitter, chunk).spanning if len(one.keys) > 1]

    log = [unruly.Touch([b"2", b"0"]), unruly.Touch([b"0"])]
    assert rehearse(unruly.Touching, log, **NOWHERE).entries == 2
    monkeypatch.setattr(Splitter, "split", wrong)
    error = found(unruly.Touching, log, **NOWHERE)
    assert (error.index, error.differs, error.key) == (1, "order", b"0")
