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
from shardengine.shards.fast.reference import Normal, normal_form_in_python, sorted_puts_in_python, split_puts_in_python
from shardengine.shards.part import Run, pack, pack_runs
from shardengine.shards.placement import shard_table, slot_of
from shardengine.shards.types import U64_MAX

ROOT = Path(__file__).resolve().parent.parent
TAG = 1
SPLIT = [split_puts_in_python, fast.split_puts]
SORT = [sorted_puts_in_python, fast.sorted_puts]
TWINS = ["python", "chosen"]
LOG = (1 << 40, pack_runs([Run((1 << 40) + at, 7, U64_MAX - 9 + at) for at in (0, 1, 2, 5, 9)]))
"""Where the chunk stands: its first index, and its runs."""

KEYS = st.binary(min_size=1, max_size=40) | st.sampled_from([b"a", b"aa", b"aaaaaaaaa", b"aaaaaaaab", b"\xff" * 300])
VALUES = st.binary(max_size=300) | st.just(b"v" * 70_000)
PLAIN = st.builds(Put, KEYS, VALUES)
ANY = PLAIN | st.builds(Delete, KEYS) | st.builds(CompareAndSwap, KEYS, st.none() | VALUES, VALUES)


def part(datas: list[bytes]) -> memoryview:
    return memoryview(b"\xdd" + len(datas).to_bytes(4, "big") + b"".join(datas))


def test_this_run_tests_the_compiled_twin_where_it_is_demanded() -> None:
    assert fast.COMPILED or os.environ.get(fast.SWITCH) != "require"


@pytest.mark.parametrize("split", SPLIT, ids=TWINS)
@given(commands=st.lists(PLAIN, min_size=1, max_size=40), shards=st.sampled_from([1, 2, 3, 256]))
def test_a_split_gives_each_shard_its_own_puts_in_order(split: Any, commands: list[Put], shards: int) -> None:
    datas = [encode(command) for command in commands]
    table = shard_table(shards)
    parts = split(datas, TAG, 480, 1 << 20, table, shards, *LOG)
    expected: list[Any] = []
    for shard in range(shards):
        mine = [place for place, command in enumerate(commands) if table[slot_of(command.key)] == shard]
        expected.append(pack(*LOG, array("I", mine), [datas[place] for place in mine]) if mine else None)
    assert parts == expected


@pytest.mark.parametrize("sort", SORT, ids=TWINS)
@given(commands=st.lists(PLAIN, max_size=40))
def test_a_sort_gives_the_last_put_of_each_key_in_key_order(sort: Any, commands: list[Put]) -> None:
    last = {command.key: command.value for command in commands}
    longest = max([len(command.value) for command in commands], default=0)
    assert sort(part([encode(command) for command in commands]), TAG) == (sorted(last.items()), longest)


@pytest.mark.parametrize(("split", "sort"), list(zip(SPLIT, SORT, strict=True)), ids=TWINS)
@given(commands=st.lists(ANY, min_size=1, max_size=10))
def test_one_other_command_sends_all_of_them_the_long_way(split: Any, sort: Any, commands: list[Any]) -> None:
    datas = [encode(command) for command in commands]
    plain = all(isinstance(command, Put) for command in commands)
    assert (split(datas, TAG, 480, 1 << 20, shard_table(2), 2, *LOG) is not None) == plain
    assert (sort(part(datas), TAG) is not None) == plain


@pytest.mark.parametrize("split", SPLIT, ids=TWINS)
def test_a_put_over_a_limit_goes_the_long_way(split: Any) -> None:
    table = shard_table(2)
    for key, value, fits in [
        (b"", b"", False),
        (b"k" * 9, b"", False),
        (b"k" * 8, b"v" * 4, True),
        (b"k", b"v" * 5, False),
    ]:
        assert (split([encode(Put(key, value))], TAG, 8, 4, table, 2, *LOG) is not None) == fits


@pytest.mark.parametrize(("split", "sort"), list(zip(SPLIT, SORT, strict=True)), ids=TWINS)
@given(
    data=st.binary(max_size=20)
    | st.builds(lambda put, cut: encode(put)[:-cut], PLAIN, st.integers(1, 5))
    | st.builds(lambda put, more: encode(put) + more, PLAIN, st.binary(min_size=1, max_size=3))
)
def test_bytes_that_are_no_put_are_never_taken_for_one(split: Any, sort: Any, data: bytes) -> None:
    try:
        plain = isinstance(msgspec.msgpack.decode(data, type=Put), Put) and data[:2] == b"\x93\x01"
    except msgspec.MsgspecError:
        plain = False
    good = encode(Put(b"k", b"v"))
    if not plain:
        assert split([good, data], TAG, 480, 1 << 20, shard_table(2), 2, *LOG) is None
        assert sort(part([good, data]), TAG) is None


@given(data=st.binary(max_size=60))
def test_the_twins_agree_on_any_bytes(data: bytes) -> None:
    view = memoryview(b"\xdd" + data)
    assert fast.sorted_puts(view, TAG) == sorted_puts_in_python(view, TAG)
    arguments = ([data], TAG, 480, 1 << 20, shard_table(3), 3, *LOG)
    assert fast.split_puts(*arguments) == split_puts_in_python(*arguments)


@pytest.mark.parametrize("split", SPLIT, ids=TWINS)
@pytest.mark.parametrize(
    ("tag", "table", "shards"), [(1, b"", 1), (1, bytes(16384), 0), (1, bytes(16384), 257), (-1, bytes(16384), 1)]
)
def test_impossible_arguments_are_refused(split: Any, tag: int, table: bytes, shards: int) -> None:
    with pytest.raises(ValueError, match="16,384 slots"):
        split([], tag, 480, 1 << 20, table, shards, *LOG)


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
