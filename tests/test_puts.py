"""The short cut for plain puts: the compiled twin answers as its specification in Python, and both as the long way."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import BadEntryError, CompareAndSwap, Delete, Entry, LogGapError, LogOrderError, Put, encode
from shardengine.engine.intake.tail import normalised
from shardengine.shards import fast
from shardengine.shards.fast.reference import (
    Normal,
    fill_parts_in_python,
    normal_form_in_python,
    sorted_puts_in_python,
    weigh_puts_in_python,
)
from shardengine.shards.part import Run, lengths, pack, pack_runs
from shardengine.shards.placement import shard_table, slot_of
from shardengine.shards.types import U64_MAX

ROOT = Path(__file__).resolve().parent.parent
TAG = 1
WEIGH = [weigh_puts_in_python, fast.weigh_puts]
FILL = [fill_parts_in_python, fast.fill_parts]
SORT = [sorted_puts_in_python, fast.sorted_puts]
TWINS = ["python", "chosen"]
LOG = (1 << 40, pack_runs([Run((1 << 40) + at, 7, U64_MAX - 9 + at) for at in (0, 1, 2, 5, 9)]))
"""Where the chunk stands: its first index, and its runs."""
GUARD = 64

KEYS = st.binary(min_size=1, max_size=40) | st.sampled_from([b"a", b"aa", b"aaaaaaaaa", b"aaaaaaaab", b"\xff" * 300])
VALUES = st.binary(max_size=300) | st.just(b"v" * 70_000)
PLAIN = st.builds(Put, KEYS, VALUES)
ANY = PLAIN | st.builds(Delete, KEYS) | st.builds(CompareAndSwap, KEYS, st.none() | VALUES, VALUES)


def part(datas: list[bytes]) -> memoryview:
    return memoryview(b"\xdd" + len(datas).to_bytes(4, "big") + b"".join(datas))


def test_this_run_tests_the_compiled_twin_where_it_is_demanded() -> None:
    assert fast.COMPILED or os.environ.get(fast.SWITCH) != "require"


def parts_of(datas: list[bytes], owners: bytes) -> dict[int, bytes]:
    """The parts of a chunk, the long way."""
    places = {
        shard: [place for place, owner in enumerate(owners) if owner == shard and datas[place]] for shard in set(owners)
    }
    return {
        shard: pack(*LOG, array("I", mine), [datas[place] for place in mine]) for shard, mine in places.items() if mine
    }


def views_of(room: dict[int, int]) -> tuple[bytearray, dict[int, memoryview]]:
    """Memory for parts with so much room, one behind the other, and what lies around each: to be seen untouched."""
    memory = bytearray(b"#" * (sum(room.values()) + GUARD * (len(room) + 1)))
    views: dict[int, memoryview] = {}
    at = GUARD
    for shard, length in room.items():
        views[shard] = memoryview(memory)[at : at + length]
        at += length + GUARD
    return memory, views


def around(parts: list[bytes]) -> bytes:
    """How `views_of` leaves memory once `parts` are written."""
    return b"".join([b"#" * GUARD + part for part in parts]) + b"#" * GUARD


@pytest.mark.parametrize(("weigh", "fill"), list(zip(WEIGH, FILL, strict=True)), ids=TWINS)
@given(commands=st.lists(PLAIN, min_size=1, max_size=40), shards=st.sampled_from([1, 2, 3, 256]))
def test_a_split_gives_each_shard_its_own_puts_in_order(
    weigh: Any, fill: Any, commands: list[Put], shards: int
) -> None:
    datas = [encode(command) for command in commands]
    table = shard_table(shards)
    owners, found = weigh(datas, TAG, 480, 1 << 20, table, shards, *LOG)
    assert list(owners) == [table[slot_of(command.key)] for command in commands]
    expected = parts_of(datas, owners)
    assert found == [len(expected.get(shard, b"")) for shard in range(shards)]
    memory, views = views_of({shard: length for shard, length in enumerate(found) if length})
    for _ in range(2):
        fill(datas, owners, *LOG, views)
        assert memory == around([expected[shard] for shard in views])


OWNED = st.lists(st.tuples(st.binary(max_size=70), st.sampled_from([0, 1, 2, 255])), max_size=20)


@pytest.mark.parametrize("fill", FILL, ids=TWINS)
@given(owned=OWNED)
def test_parts_are_filled_with_any_data_and_what_has_none_is_in_no_part(
    fill: Any, owned: list[tuple[bytes, int]]
) -> None:
    datas, owners = [data for data, _ in owned], bytes(owner for _, owner in owned)
    expected = parts_of(datas, owners)
    assert lengths(datas, owners, 256, *LOG) == [len(expected.get(shard, b"")) for shard in range(256)]
    memory, views = views_of({shard: len(part) for shard, part in expected.items()})
    fill(datas, owners, *LOG, views)
    assert memory == around(list(expected.values()))


FILLED = ([b"abc", b"de", b"", b"f"], bytes([0, 1, 7, 0]), *LOG)
FITTING = {0: 24 + 2 * 24 + 2 * 4 + 5 + 4, 1: 24 + 24 + 4 + 5 + 2}


@pytest.mark.parametrize("fill", FILL, ids=TWINS)
@given(room=st.dictionaries(st.integers(-1, 300), st.integers(0, 120), max_size=3) | st.just(FITTING))
def test_views_that_do_not_fit_the_parts_are_refused_and_nothing_is_written(fill: Any, room: dict[int, int]) -> None:
    for changed in (room, {**FITTING, **room}, FITTING):
        memory, views = views_of(changed)
        if changed == FITTING:
            fill(*FILLED, views)
            expected = parts_of(*FILLED[:2])
            assert memory == around([expected[shard] for shard in changed])
        else:
            with pytest.raises(ValueError, match="fill_parts"):
                fill(*FILLED, views)
            assert set(memory) == {ord("#")}


UNFIT: dict[str, tuple[Any, ...]] = {
    "an owner too few": (FILLED[0], FILLED[1][:-1], *LOG),
    "an owner too many": (FILLED[0], FILLED[1] + b"\0", *LOG),
    "an owner without a view": (FILLED[0], bytes([0, 1, 7, 2]), *LOG),
    "other owners": (FILLED[0], bytes([1, 0, 7, 0]), *LOG),
    "other data": ([b"abc", b"de", b"", b"ff"], *FILLED[1:]),
    "data that is no bytes": ([b"abc", b"de", b"", bytearray(b"f")], *FILLED[1:]),
    "data that is nothing": ([b"abc", b"de", b"", None], *FILLED[1:]),
    "data where there was none": ([b"abc", b"de", b"x", b"f"], *FILLED[1:]),
    "no run": (*FILLED[:3], b""),
    "half a run": (*FILLED[:3], LOG[1][:-1]),
    "fewer runs": (*FILLED[:3], LOG[1][:24]),
}


@pytest.mark.parametrize("fill", FILL, ids=TWINS)
@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_together_is_refused_and_nothing_is_written(fill: Any, name: str) -> None:
    memory, views = views_of(FITTING)
    with pytest.raises(ValueError, match="fill_parts"):
        fill(*UNFIT[name], views)
    assert set(memory) == {ord("#")}


@pytest.mark.parametrize("fill", FILL, ids=TWINS)
def test_a_view_that_cannot_be_written_is_refused(fill: Any) -> None:
    memory, views = views_of(FITTING)
    for view in (memoryview(bytes(FITTING[1])), views[1].toreadonly()):
        with pytest.raises(ValueError, match="fill_parts"):
            fill(*FILLED, {0: views[0], 1: view})
    assert set(memory) == {ord("#")}


@pytest.mark.parametrize("sort", SORT, ids=TWINS)
@given(commands=st.lists(PLAIN, max_size=40))
def test_a_sort_gives_the_last_put_of_each_key_in_key_order(sort: Any, commands: list[Put]) -> None:
    last = {command.key: command.value for command in commands}
    longest = max([len(command.value) for command in commands], default=0)
    assert sort(part([encode(command) for command in commands]), TAG) == (sorted(last.items()), longest)


@pytest.mark.parametrize(("weigh", "sort"), list(zip(WEIGH, SORT, strict=True)), ids=TWINS)
@given(commands=st.lists(ANY, min_size=1, max_size=10))
def test_one_other_command_sends_all_of_them_the_long_way(weigh: Any, sort: Any, commands: list[Any]) -> None:
    datas = [encode(command) for command in commands]
    plain = all(isinstance(command, Put) for command in commands)
    assert (weigh(datas, TAG, 480, 1 << 20, shard_table(2), 2, *LOG) is not None) == plain
    assert (sort(part(datas), TAG) is not None) == plain


@pytest.mark.parametrize("weigh", WEIGH, ids=TWINS)
def test_a_put_over_a_limit_goes_the_long_way(weigh: Any) -> None:
    table = shard_table(2)
    for key, value, fits in [
        (b"", b"", False),
        (b"k" * 9, b"", False),
        (b"k" * 8, b"v" * 4, True),
        (b"k", b"v" * 5, False),
    ]:
        assert (weigh([encode(Put(key, value))], TAG, 8, 4, table, 2, *LOG) is not None) == fits


@pytest.mark.parametrize(("weigh", "sort"), list(zip(WEIGH, SORT, strict=True)), ids=TWINS)
@given(
    data=st.binary(max_size=20)
    | st.builds(lambda put, cut: encode(put)[:-cut], PLAIN, st.integers(1, 5))
    | st.builds(lambda put, more: encode(put) + more, PLAIN, st.binary(min_size=1, max_size=3))
)
def test_bytes_that_are_no_put_are_never_taken_for_one(weigh: Any, sort: Any, data: bytes) -> None:
    try:
        plain = isinstance(msgspec.msgpack.decode(data, type=Put), Put) and data[:2] == b"\x93\x01"
    except msgspec.MsgspecError:
        plain = False
    good = encode(Put(b"k", b"v"))
    if not plain:
        assert weigh([good, data], TAG, 480, 1 << 20, shard_table(2), 2, *LOG) is None
        assert sort(part([good, data]), TAG) is None


@given(data=st.binary(max_size=60))
def test_the_twins_agree_on_any_bytes(data: bytes) -> None:
    view = memoryview(b"\xdd" + data)
    assert fast.sorted_puts(view, TAG) == sorted_puts_in_python(view, TAG)
    arguments = ([data], TAG, 480, 1 << 20, shard_table(3), 3, *LOG)
    assert fast.weigh_puts(*arguments) == weigh_puts_in_python(*arguments)


@pytest.mark.parametrize("weigh", WEIGH, ids=TWINS)
@pytest.mark.parametrize(
    ("tag", "table", "shards"), [(1, b"", 1), (1, bytes(16384), 0), (1, bytes(16384), 257), (-1, bytes(16384), 1)]
)
def test_impossible_arguments_are_refused(weigh: Any, tag: int, table: bytes, shards: int) -> None:
    with pytest.raises(ValueError, match="16,384 slots"):
        weigh([], tag, 480, 1 << 20, table, shards, *LOG)


@pytest.mark.parametrize("weigh", WEIGH, ids=TWINS)
def test_a_table_that_names_other_shards_and_runs_that_are_not_whole_are_refused(weigh: Any) -> None:
    datas = [encode(Put(b"k", b"v"))]
    with pytest.raises(ValueError, match="slots to shard 2"):
        weigh(datas, TAG, 480, 1 << 20, b"\2" * 16384, 2, *LOG)
    for runs in (b"", LOG[1][:-1]):
        with pytest.raises(ValueError, match="no whole run"):
            weigh(datas, TAG, 480, 1 << 20, shard_table(2), 2, LOG[0], runs)


def imported(switch: str, *program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), fast.SWITCH: switch}
    code = "; ".join([*program, "from shardengine.shards import fast", "print(fast.COMPILED)"])
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_start_and_the_stats_say_which_twin_is_used(tmp_path: Path) -> None:
    program = (
        "import logging, sys; from shardengine import Engine; logging.basicConfig(level=logging.INFO); "
        "db = Engine(sys.argv[1], shards=2); db.start(); print(db.stats()['puts']); db.stop(); db.close_storage()"
    )
    for switch, said in (("off", "python"), (os.environ.get(fast.SWITCH, "auto"), "compiled" * fast.COMPILED)):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), fast.SWITCH: switch}
        command = [sys.executable, "-c", program, str(tmp_path / switch)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert ran.stdout.strip() == (said or "python"), ran.stderr
        assert ("split and sorted in Python" in ran.stderr) == (ran.stdout == "python\n")


def test_the_switch_demands_the_compiled_twin_or_leaves_it_alone() -> None:
    missing = "import sys; sys.modules['shardengine.shards.fast._puts'] = None"
    assert imported("off").stdout == "False\n"
    assert "ModuleNotFoundError" in imported("require", missing).stderr
    assert imported("auto", missing).stdout == "False\n"


FORMS = [normal_form_in_python, fast.normal_form]
U64 = st.integers(0, U64_MAX)
ROWS = st.lists(st.tuples(st.booleans(), U64 | st.integers(0, 5), st.binary(max_size=9)), min_size=1, max_size=9)


class Odd(Entry, frozen=True):
    pass


@pytest.mark.parametrize("normal_form", FORMS, ids=TWINS)
@given(first=st.integers(0, U64_MAX - 9), term=st.integers(0, U64_MAX - 9), clock=U64 | st.just(3), rows=ROWS)
def test_a_chunk_is_brought_into_its_normal_form(
    normal_form: Any, first: int, term: int, clock: int, rows: list[tuple[bool, int, bytes]]
) -> None:
    entries: list[Entry] = []
    runs: list[Run] = []
    turns: list[tuple[int, int]] = []
    latest = clock
    for index, (rises, time_ms, data) in enumerate(rows, first):
        term += rises
        entries.append(Entry(index, term, data, time_ms))
        latest = max(latest, time_ms)
        if not turns or turns[-1][1] != term:
            turns.append((index, term))
        if not runs or (runs[-1].term, runs[-1].clock) != (term, latest):
            runs.append(Run(index, term, latest))
    expected = Normal(first, [data for _, _, data in rows], turns, latest, pack_runs(runs))
    for chunk in (entries, tuple(entries)):
        assert normal_form(chunk, clock) == expected
    assert expected.last == entries[-1].index
    assert [expected.term_of(entry.index) for entry in entries] == [entry.term for entry in entries]


def test_entries_of_a_class_of_their_own_have_a_normal_form_too() -> None:
    own, plain = [Odd(1, 1, b"a"), Odd(2, 1, b"b")], [Entry(1, 1, b"a"), Entry(2, 1, b"b")]
    assert fast.normal_form(own, 0) == fast.normal_form(plain, 0) != None  # noqa: E711


WITHOUT_ONE: dict[str, list[Any]] = {
    "nothing": [],
    "a gap": [Entry(1, 1, b""), Entry(3, 1, b"")],
    "an index again": [Entry(1, 1, b""), Entry(1, 1, b"")],
    "a falling index": [Entry(2, 1, b""), Entry(1, 1, b"")],
    "an index that goes around": [Entry(U64_MAX, 1, b""), Entry(0, 1, b"")],
    "a falling term": [Entry(1, 2, b""), Entry(2, 1, b"")],
    "a term of another type": [Entry(1, 1, b""), Entry(2, True, b"")],
    "no entry": [Entry(1, 1, b""), None],
    "an index that is a bool": [Entry(True, 1, b"")],
    "an index that is a float": [Entry(1.0, 1, b"")],  # type: ignore[arg-type]
    "a time that is a float": [Entry(1, 1, b"", 0.0)],  # type: ignore[arg-type]
    "a negative term": [Entry(1, -1, b"")],
    "a term of 65 bits": [Entry(1, U64_MAX + 1, b"")],
    "a time of 65 bits": [Entry(1, 1, b"", U64_MAX + 1)],
    "a negative time": [Entry(1, 1, b""), Entry(2, 1, b"", -1)],
    "data that is no bytes": [Entry(1, 1, bytearray(b"x"))],  # type: ignore[arg-type]
}


@pytest.mark.parametrize("normal_form", FORMS, ids=TWINS)
@pytest.mark.parametrize("name", WITHOUT_ONE)
def test_what_is_no_chunk_has_no_normal_form_and_is_refused_by_name(normal_form: Any, name: str) -> None:
    chunk = WITHOUT_ONE[name]
    assert normal_form(chunk, 0) is None
    if chunk:
        with pytest.raises((LogGapError, LogOrderError, BadEntryError)):
            normalised(chunk, 0)
