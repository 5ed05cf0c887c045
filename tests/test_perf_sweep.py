"""`perf sweep` and `perf stages`: what they apply and what they say of it; and that a wrong engine gives no figures."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from perf import cells, peers, quick
from perf.__main__ import main
from perf.cells import Cell, Ran
from perf.clocks import ELSEWHERE, WORKER, Clock, read
from perf.counters import counting
from perf.report import CheckError
from perf.shifting import Shift
from perf.streams import COMMANDS, KEYS, SPANNED_MAX, Pieces, Stream, largest_share, made
from shardengine import CompareAndSwap, Engine, Entry, Put, load_config
from shardengine.adaptors import MemoryStateMachine
from shardengine.engine.commit.packing import Packing
from shardengine.shards.placement import shard_of, slot_of
from tests.figures import helper_ends
from tests.killing import ROOT, WATCHDOG_S, environment

TINY = ["--entries", "200", "--chunk", "50", "--value-bytes", "20", "--rounds", "1"]
SWEEP = ["sweep", "--shards", "2", *TINY]
STAGES = ["stages", "--shards", "2", *TINY]
MODEL = ["model", "--check", *TINY]


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_stream_leads_where_it_says_and_its_writes_alone_lead_there_too(keys: str, command: str) -> None:
    found = made(Stream(400, 20, keys, command, seed=1))
    async with MemoryStateMachine(found.stream.machine) as place:
        for chunk in found.chunks(70):
            await place.apply_chunk(chunk)
        assert (len(place), await place.digest()) == (found.records, found.digest)
    pieces = list(Pieces(found.stream, 70).chunks())
    assert len(pieces) == 6 and len({pair for pairs in pieces for pair in pairs}) <= 800
    assert len(dict(pair for pairs in pieces for pair in pairs)) == found.records
    assert made(found.stream) == found, "the same at every call"


def drawn(keys: str, command: str) -> list[Any]:
    return [command for command, _ in Stream(5_000, 20, keys, command, seed=3).steps()]


def test_keys_come_in_the_order_that_was_asked_for() -> None:
    order = {keys: [put.key for put in drawn(keys, "put")] for keys in KEYS}
    assert all(one < next_ for one, next_ in pairwise(order["ordered"]))
    assert len(set(order["random"])) == 5_000 and order["random"] != sorted(order["random"])
    assert Counter(order["zipfian"]).most_common(1)[0][1] > 400, "the first of 5,000 comes up in 10 % of all draws"
    hottest = sum(count for _, count in Counter(order["hot"]).most_common(100))
    assert 4_400 < hottest < 4_600


def test_commands_are_those_that_were_asked_for_and_their_two_keys_lie_on_two_shards() -> None:
    kinds = Counter(type(command) for command in drawn("random", "mixed"))
    assert 2_850 < kinds[Put] < 3_150 and 1_400 < kinds[CompareAndSwap] < 1_600 and 400 < kinds[Shift] < 600
    for command in drawn("zipfian", "spanning"):
        slots = slot_of(command.first), slot_of(command.second)
        assert all(len({shard_of(slot, shards) for slot in slots}) == 2 for shards in range(2, SPANNED_MAX + 1))
    rejected = sum(command.expected == b"" for command in drawn("random", "cas"))
    assert 400 < rejected < 600


def test_the_largest_share_is_that_of_the_shard_with_the_most_writes_group_by_group() -> None:
    first, last = 0, 16_383
    assert largest_share([first, last, first, first], 2, 4) == 0.75
    assert largest_share([first, last, first, first, last], 2, 2) == (0.5 + 1 + 1) / 3
    assert largest_share([first, last, first], 1, 2) == 1


# ---- how many shards -------------------------------------------------------------------------------------------------


def ran(rate: float, busy: float = 1.0, coordinator: float = 0.1) -> Ran:
    return Ran(1_000, 1_000 / rate, coordinator * 1_000 / rate, (busy - coordinator) * 1_000 / rate)


@pytest.mark.parametrize(
    ("rates", "busy", "coordinator", "said"),
    [
        (
            {1: [100, 102] * 2, 2: [160, 163] * 2, 3: [157, 160] * 2},
            1.9,
            0.3,
            "2 shards: 1.60 times the throughput of 1 shard; 3 gain nothing (0.98), "
            "since 1.9 of 2 cores are busy with what there is",
        ),
        (
            {1: [100], 2: [101], 3: [102]},
            1.2,
            0.95,
            "1 shard; 2 or 3 gain nothing (1.01, 1.02), since the coordinator has its core busy (0.95)",
        ),
        (
            {1: [100], 2: [60], 3: [70], 4: [80]},
            0.5,
            0.2,
            "1 shard; 2 to 4 gain nothing (0.60, 0.70, 0.80), "
            "since shards wait for each other, or for the disk (0.5 of 2 cores are busy)",
        ),
        (
            {1: [100], 2: [150], 3: [240]},
            1.0,
            0.2,
            "3 shards: 2.40 times the throughput of 1 shard (too few rounds to tell that from noise); "
            "more were not tried",
        ),
    ],
)
def test_the_answer_is_the_fewest_shards_that_pay_with_the_reason(
    rates: dict[int, list[float]], busy: float, coordinator: float, said: str
) -> None:
    runs = {count: [ran(rate, busy, coordinator) for rate in rounds] for count, rounds in rates.items()}
    assert quick.answer(runs, 2).sentence == said


def test_the_answer_says_when_others_had_the_cores() -> None:
    runs = {count: [Ran(1_000, 10, 1.0, 1.0, lacking=15.0)] for count in (1, 2)}
    assert quick.answer(runs, 2).sentence == (
        "1 shard; 2 gain nothing (1.00), since others have the cores: 0.2 of 2 are to be had, and 1.5 more are wanted"
    )


def test_shard_counts_to_try_end_one_above_the_cores_and_are_few() -> None:
    assert quick.candidates(1) == [1, 2] and quick.candidates(2) == [1, 2, 3]
    assert quick.candidates(64) == [1, 2, 3, 4, 6, 8, 16, 32, 63, 64, 65]


# ---- clocks ----------------------------------------------------------------------------------------------------------


def test_the_time_of_a_stage_is_its_own_and_all_stages_add_up_to_all_time() -> None:
    began, counts = time.monotonic_ns(), array("q", bytes(8 * Clock.size(WORKER)))
    clock = Clock(counts, WORKER)
    inner = clock.wrapped(lambda: sum(range(50_000)), "put")
    outer = clock.wrapped(lambda: inner() + sum(range(1_000_000)), "decode")
    assert outer() == sum(range(50_000)) + sum(range(1_000_000))
    with pytest.raises(ZeroDivisionError):
        clock.wrapped(lambda: 1 // 0, "run")()
    clock.to(clock.place(ELSEWHERE))
    found = read(counts, WORKER)
    assert found is not None and found.times["commit"] == (0, 0)
    assert all(min(found.times[stage]) > 0 for stage in ("put", "decode", "run", ELSEWHERE))
    assert found.times["decode"][1] > 2 * found.times["put"][1], "of twenty times the CPU's work"
    assert began <= found.last - sum(wall for wall, _ in found.times.values()) <= found.last <= time.monotonic_ns()
    counts[2] += 1
    assert read(counts, WORKER) is None, "it was changed meanwhile"


def test_nothing_is_wrapped_but_while_it_is_counted(tmp_path: Path) -> None:
    pack = Packing.pack
    with counting(tmp_path):
        assert Packing.pack is not pack
    assert Packing.pack is pack


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_sweep_prints_a_row_for_each_side_and_writes_the_same(tmp_path: Path) -> None:
    output, table = tmp_path / "out", tmp_path / "csv"
    told = subprocess.run(
        [sys.executable, "-m", "perf", *SWEEP, "--pin", "cores", "--json", str(output), "--csv", str(table)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=WATCHDOG_S,
    )
    facts = json.loads(output.read_text())
    assert (facts["format"], facts["command"]) == (1, "sweep") and facts["facts"]["cores"] >= 1
    rows, written = facts["rows"], list(csv.DictReader(table.open()))
    assert [row["side"] for row in rows] == [row["side"] for row in written] == ["engine", "py-lmdb", "limit"]
    printed = [line for line in told.stdout.splitlines() if line.startswith(("engine ", "py-lmdb ", "limit "))]
    for line, row, flat in zip(printed, rows, written, strict=True):
        assert f" {row['entries_per_s']:,.0f} " in line and row["pin"] == flat["pin"] == "cores"
        assert float(flat["entries_per_s_min"]) == min(row["entries_per_s_samples"])
    assert rows[0]["over_py_lmdb"] > 0 and rows[0]["over_limit"] > 0
    assert "round 1 of 1, 3 of 3: limit, 2 shards" in told.stderr and "behind each of 3 runs" in told.stdout


def test_who_is_bound_to_cores_is_so_for_the_block_only() -> None:
    usable = cells.cores()
    for pin, core in (("cores", usable[0]), ("one", usable[0])):
        with cells.pinned(pin, []):
            assert os.sched_getaffinity(0) == {core}
        assert os.sched_getaffinity(0) == set(usable)


def test_quick_says_how_many_shards_of_each_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["sweep", "--quick", "--shards", "1,2", "--keys", "random,ordered", *TINY, "--json", str(output)]
    assert main(arguments) == 0
    told, facts = capsys.readouterr().out, json.loads(output.read_text())
    answers = facts["settings"]["answers"]
    assert [answer["keys"] for answer in answers] == ["random", "ordered"]
    for answer in answers:
        assert answer["answer_shards"] in (1, 2) and f"keys {answer['keys']}: {answer['sentence']}" in told


def test_stages_add_up_to_what_the_processes_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main([*STAGES, "--command", "mixed", "--json", str(output)]) == 0
    told, facts = capsys.readouterr().out, json.loads(output.read_text())
    rows = {(row["process"], row["stage"]): row for row in facts["rows"]}
    assert {process for process, _ in rows} == {"engine", "coordinator", "worker 0", "worker 1", "workers"}
    for process in ("coordinator", "worker 0", "worker 1", "workers"):
        whole = rows[process, "all"]
        stages = [row for (name, stage), row in rows.items() if name == process and stage != "all"]
        summed = sum(row["wall_ns_per_entry"] for row in stages)
        assert summed == pytest.approx(whole["wall_ns_per_entry"], rel=0.01)
        assert whole["sum_of_stages_wall_ns_per_entry"] == pytest.approx(summed)
    assert rows["workers", "run"]["cpu_ns_per_entry"] > 0 and rows["coordinator", "run"]["cpu_ns_per_entry"] > 0
    assert rows["engine", "all"]["entries_per_group"] >= 50
    assert "a worker, mean of all" in told and "elsewhere (unexplained)" in told and "the stages add up to" in told


@helper_ends()
def test_sizes_are_the_engine_s_and_in_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"group_bytes": 1 << 20, "ring_bytes": 1 << 22}
    cell = Cell("engine", 2, 50, 4, 20, "random", "put", "process", "none", **sizes)
    assert (cell.config().group_bytes_max, cell.config().ring_bytes) == tuple(sizes.values())
    assert cell.beside("limit").config() == load_config()
    asked = [f"--{name.replace('_', '-')}={size},0" for name, size in sizes.items()]
    assert main([*SWEEP, *asked, "--json", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out").read_text())["rows"]
    found = [(row["group_bytes"], row["ring_bytes"]) for row in rows if row["side"] == "engine"]
    assert found == [(1 << 20, 1 << 22), (1 << 20, 0), (0, 1 << 22), (0, 0)] and len(rows) == 6
    assert " group_bytes  ring_bytes " in capsys.readouterr().out


@pytest.mark.parametrize("command", [SWEEP, ["sweep", "--quick", *TINY], STAGES], ids=" ".join)
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--ring-bytes", "5000"], ", ring_bytes 5,000: ring_bytes = 5000 (argument ring_bytes): expected "),
        (["--ring-bytes", "65536", "--value-bytes", "4000"], ", ring_bytes 65,536: "),
    ],
)
def test_what_an_engine_refuses_is_refused_by_name(
    command: list[str], asked: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, work = tmp_path / "out", tmp_path / "work"
    work.mkdir()
    assert main([*command, *asked, "--json", str(output), "--dir", str(work)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and not output.exists() and list(work.iterdir()) == []
    assert said in told.err.splitlines()[-1]


def test_more_runs_than_meant_are_refused_before_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--shards", "1,2,3,4", "--window", "1,2,4", "--keys", "random,hot", "--rounds", "9"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err == "that is 306 runs, more than 300: ask for less, or say --yes\n"


# ---- a wrong engine --------------------------------------------------------------------------------------------------

Wrong = Callable[[Sequence[Entry]], list[Entry]]


def loses_an_entry(chunk: Sequence[Entry]) -> list[Entry]:
    return [Entry(one.index, one.term, b"" if one.index == 7 else one.data) for one in chunk]


def applies_another_twice(chunk: Sequence[Entry]) -> list[Entry]:
    """In its place: the index is right."""
    datas = {one.index: one.data for one in chunk}
    return [Entry(index, 1, datas[6] if index == 7 else data) for index, data in datas.items()]


def applies_one_twice(chunk: Sequence[Entry]) -> list[Entry]:
    """And all behind it one later."""
    found = []
    for one in chunk:
        found += [Entry(one.index + (one.index > 7), one.term, one.data)]
        found += [Entry(8, one.term, one.data)] if one.index == 7 else []
    return found


@pytest.mark.parametrize("arguments", [SWEEP, ["sweep", "--quick", *TINY], STAGES, MODEL], ids=" ".join)
@pytest.mark.parametrize(
    ("wrong", "command"), [(loses_an_entry, "put"), (applies_another_twice, "spanning"), (applies_one_twice, "put")]
)
def test_a_wrong_engine_gives_no_figures(
    arguments: list[str],
    wrong: Wrong,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    apply_chunk = Engine.apply_chunk

    def wrongly(db: Engine, chunk: Sequence[Entry]) -> Awaitable[Any]:
        return apply_chunk(db, wrong(chunk))

    monkeypatch.setattr(Engine, "apply_chunk", wrongly)
    output, work = tmp_path / "out", tmp_path / "work"
    work.mkdir()
    assert main([*arguments, "--command", command, "--json", str(output), "--dir", str(work)]) == 1
    told = capsys.readouterr()
    assert told.out == "" and not output.exists() and list(work.iterdir()) == []
    assert "check failed: " in told.err and "entries/s" not in told.err


@pytest.mark.parametrize("side", ["py-lmdb", "limit"])
def test_what_stands_beside_the_engine_is_checked_too(
    side: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = made(Stream(100, 20, "random", "put", 1))
    cell = Cell(side, 1, 50, 1, 20, "random", "put", "process", "none")
    lossy = peers.Raced(1.0, 1.0, 99, found.digest)
    monkeypatch.setattr(peers, "single", lambda *_: lossy)
    monkeypatch.setattr(peers, "limit", lambda *_: lossy)
    with pytest.raises(CheckError, match=f"{side}.*: 99 records of digest .*, expected 100 of "):
        cells.written(tmp_path, cell, found)
