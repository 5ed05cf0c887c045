"""The commands that measure: what they are given is what they say, and a wrong answer gives no figures."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from perf import bare, besides, disks, machines, places, proposing, transactions
from perf import node as perf_node
from perf.__main__ import _COMMANDS as COMMANDS
from perf.__main__ import main, parser
from perf.bars import Bar, bars
from perf.calls import Amount, closed_loop, one_by_one, percentile
from perf.report import CheckError
from perf.transfers import OPENED_WITH, Accounts
from perf.workloads import Workload, workloads
from perf.zipf import Zipf
from shardengine import Engine, Entry, Put, encode
from shardengine.adaptors import MemoryStateMachine
from shardengine.machines.bank import Bank, Transfer
from shardengine.node import LocalLog, Logged, SyncNode
from shardengine.shards.placement import shard_of, slot_of
from shardengine.shards.transaction import Tx

TRANSACTIONS = ["transactions", "--keys", "500", "--entries", "300", "--chunk", "100", "--shares", "0,20", "--rounds=1"]
NODE = ["node", "--proposals", "40", "--callers", "4", "--shards", "1", "--value-bytes", "20", "--rounds", "1"]
READS = ["reads", "--keys", "300", "--gets", "50", "--rounds", "3", "--shards", "2", "--threads", "2"]
PEERS = ["peers", "--entries", "300", "--chunk", "100", "--rounds", "2", "--shards", "2", "--value-bytes", "20"]
MACHINES = ["machines", "--keys", "500", "--entries", "300", "--chunk", "100", "--rounds", "2"]


# ---- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [0.0, 0.5, 0.99, 2.0])
def test_ranks_come_up_as_often_as_their_weights_say(skew: float) -> None:
    draws, count = 100_000, 50
    found = Counter(Zipf(count, skew, seed=3).draw(draws))
    weights = [(rank + 1) ** -skew for rank in range(count)]
    expected = [draws * weight / sum(weights) for weight in weights]
    assert set(found) <= set(range(count))
    squares = sum((found[rank] - mean) ** 2 / mean for rank, mean in enumerate(expected))
    assert squares < 95, "chi-square with 49 degrees of freedom: beyond that once in 10,000 seeds"


def test_a_hot_rank_of_a_million_comes_up_as_often_as_documented() -> None:
    found = Counter(Zipf(1_000_000, 0.99, seed=1).draw(50_000))
    assert 0.060 < found[0] / 50_000 < 0.070
    assert len(found) > 10_000


def test_the_same_seed_draws_the_same_and_another_one_does_not() -> None:
    drawn = [Zipf(1000, 0.99, seed).draw(20) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("skew", [0.0, 0.99])
@pytest.mark.parametrize("percent", [0.0, 10.0, 100.0])
def test_the_share_of_transfers_over_two_shards_is_what_was_asked_for(skew: float, percent: float) -> None:
    accounts, decode = Accounts(2_000, [1, 2, 4], 5), msgspec.msgpack.Decoder(Bank.command).decode
    entries = accounts.transfers(Zipf(2_000, skew, 5), percent, 1_000, first=7)
    assert [entry.index for entry in entries] == list(range(7, 1_007))
    spans = 0
    for transfer in (decode(entry.data) for entry in entries):
        assert isinstance(transfer, Transfer) and transfer.source != transfer.target
        slots = slot_of(transfer.source), slot_of(transfer.target)
        over = {len({shard_of(slot, shards) for slot in slots}) > 1 for shards in (2, 4)}
        assert len(over) == 1, "under every shard count above one, or under none"
        spans += over == {True}
    assert abs(spans / 10 - percent) <= (4 if 0 < percent < 100 else 0)
    assert sum(accounts.balances) == 2_000 * OPENED_WITH


def test_accounts_that_cannot_lie_as_asked_for_are_an_error_and_no_endless_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("perf.transfers._TRIES", 3_000)
    with pytest.raises(CheckError, match="no two of 1 accounts lie on one shard"):
        Accounts(1, [2], 1).transfers(Zipf(1, 0, 1), 0, 1, first=1)


# ---- what the machines are given -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given() -> dict[str, Workload]:
    return {workload.name: workload for workload in workloads(keys=2_500, entries=3_000, chunk=700, seed=1)}


@pytest.mark.parametrize("name", ["bank", "leaderboard", "queue", "limiter"])
async def test_what_a_machine_is_given_is_one_log_in_which_its_commands_do_something(
    given: dict[str, Workload], name: str
) -> None:
    workload = given[name]
    chunks = workload.first + workload.chunks
    entries = list(chain.from_iterable(chunks))
    assert [entry.index for entry in entries] == list(range(1, len(entries) + 1)) and workload.entries == 3_000
    assert max(map(len, chunks)) == 700 and entries[0].time_ms < entries[-1].time_ms
    async with MemoryStateMachine(workload.machine) as place:
        outcomes = [[result.succeeded for result in await place.apply_chunk(chunk)] for chunk in chunks]
    prepared = list(chain.from_iterable(outcomes[: len(workload.first)]))
    assert all(prepared) and len(prepared) == (2_500 if name in ("bank", "limiter") else 0)
    succeeded = sum(chain.from_iterable(outcomes[len(workload.first) :]))
    assert 0 < 3_000 - succeeded < 600 if name == "limiter" else succeeded == 3_000


def test_over_lmdb_deletions_and_rejections_count_too(given: dict[str, Workload], tmp_path: Path) -> None:
    for name in ("queue", "limiter"):
        workload = given[name]
        _, digest = places.over_lmdb(tmp_path / name, workload.machine, workload.first, workload.chunks)
        one_chunk = [list(chain.from_iterable(workload.first + workload.chunks))]
        assert places.over_lmdb(tmp_path / f"{name}-at-once", workload.machine, [], one_chunk)[1] == digest


# ---- calls -----------------------------------------------------------------------------------------------------------


async def test_callers_share_the_commands_in_order_and_a_tenth_comes_before_the_clock_starts() -> None:
    calls, together = list[tuple[int, int]](), 0

    async def call(first: int, end: int) -> None:
        nonlocal together
        calls.append((first, end))
        under_way.add(first)
        together = max(together, len(under_way))
        await asyncio.sleep(0)
        under_way.discard(first)

    under_way = set[int]()
    took = await closed_loop(call, 3, 4, Amount(40, 60))
    assert calls == [(first, first + 4) for first in range(0, 44, 4)] and together == 3
    assert (took.given, took.timed, len(took.calls_ns)) == (44, 40, 10)


def test_the_seconds_end_a_stretch_but_not_before_its_first_call() -> None:
    calls = list[tuple[int, int]]()
    took = one_by_one(lambda *call: calls.append(call), 3, Amount(1_000_000, 1e-9))
    assert calls == [(0, 3), (3, 6)] and (took.given, took.timed) == (6, 3)


def test_a_percentile_is_a_time_that_was_measured() -> None:
    times = [1_000 * number for number in range(1_000, 0, -1)]
    assert [percentile(times, percent) for percent in (0, 50, 99, 99.9, 100)] == [1, 500, 990, 999, 1_000]
    assert percentile([7_000], 99.9) == 7


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_transactions_prints_a_row_for_each_case_and_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRANSACTIONS, "--skews", "0,0.99", "--json", str(tmp_path / "out")]) == 0
    told, facts = capsys.readouterr().out, json.loads((tmp_path / "out").read_text())
    cases = [(one["skew"], one["spanning_percent"], one["shards"]) for one in facts["transactions"]]
    assert cases == [(skew, share, shards) for skew in (0, 0.99) for share in (0, 20) for shards in (1, 2)]
    rows = [line for line in told.splitlines() if line.startswith(("uniform ", "zipfian 0.99 "))]
    for row, one in zip(rows, facts["transactions"], strict=True):
        assert f" {one['entries_per_second']:,.0f} " in row and f" {one['coordinator_percent']:.1f} %" in row
        spans = one["shards"] > 1 and one["spanning_percent"] > 0
        assert one["exchanges_per_group"] == (1 if spans else 0)
        assert one["coordinator_percent"] > 10 if spans else one["coordinator_percent"] == 0
        assert one["over_first_share"] == 1 or one["spanning_percent"]
        assert one["coordinator_cpu_ns"] > 0
    assert f"digest {facts['digest']} of all shard counts" in told and facts["machine"]["cores"] >= 1


def test_machines_prints_a_row_for_each_and_writes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MACHINES, "--json", str(tmp_path / "out")]) == 0
    told, facts = capsys.readouterr().out, json.loads((tmp_path / "out").read_text())
    assert [one["machine"] for one in facts["machines"]] == ["bank", "leaderboard", "queue", "limiter"]
    for one in facts["machines"]:
        (row,) = (line for line in told.splitlines() if line.startswith(one["machine"]))
        assert all(f" {rate:,.0f} " in row for rate in one["entries_per_second"].values()), row
        assert {side: len(times) for side, times in one["seconds"].items()} == dict.fromkeys(machines.SIDES, 2)
        assert one["engine_over_memory"] > 0 and one["engine_over_py_lmdb"] > 0


def test_node_prints_a_row_for_each_side_and_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*NODE, "--json", str(tmp_path / "out")]) == 0
    told, facts = capsys.readouterr().out, json.loads((tmp_path / "out").read_text())
    rows = {(row["callers"], row["side"]): row for row in facts["node"]}
    assert list(rows) == [(callers, side) for callers in ("1", "4", "1 x 256", "8 x 256") for side in perf_node.SIDES]
    printed = [line for line in told.splitlines() if line.startswith(("1 ", "4 ", "8 "))]
    for line, row in zip(printed, facts["node"], strict=True):
        assert f" {row['proposals_per_second']:,.0f} " in line and f" {row['p99_9_us']:,.0f} " in line
        assert len(row["rates"]) == 1 and 0 < row["p50_us"] <= row["p99_us"] <= row["p99_9_us"]
    assert {row["frames"] for (callers, _), row in rows.items() if callers == "1"} == {40}, "a put each"
    assert rows["4", "node"]["entries_per_frame"] > 1 and rows["1 x 256", "node"]["entries_per_frame"] == 40
    assert rows["1", "write + fdatasync"]["over_write"] == rows["1", "SQLite"]["over_sqlite"] == 1
    assert f"{facts['fdatasync_us']:,.1f} us" in told and facts["machine"]["cores"] >= 1


def test_reads_prints_a_row_for_each_read_and_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*READS, "--json", str(tmp_path / "out")]) == 0
    told, facts = capsys.readouterr().out, json.loads((tmp_path / "out").read_text())
    rows = [(row["read"], row["threads"]) for row in facts["reads"]]
    reads = [("Engine.get", 1), ("SyncEngine.get", 2), ("SyncNode.get, at_least", 1), ("Reader.get", 1)]
    assert rows == reads
    printed = [line for line in told.splitlines() if line.startswith("2 ")]
    for line, row in zip(printed, facts["reads"], strict=True):
        assert f" {row['read']} " in line and f" {row['get_ns']:,.0f} " in line
        assert len(row["ns"]) == len(row["txn_ns"]) == 3 and min(row["ns"] + row["txn_ns"]) > 0


def test_peers_prints_a_row_for_each_side_draws_a_bar_for_it_and_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PEERS, "--json", str(tmp_path / "out"), "--svg", str(tmp_path / "svg")]) == 0
    told, facts = capsys.readouterr().out, json.loads((tmp_path / "out").read_text())
    sides = [row["side"] for row in facts["peers"]]
    assert sides == ["engine, 2 shards", *besides.ADAPTORS, *bare.BARE]
    texts = [text.text for text in ElementTree.parse(tmp_path / "svg").iter("{http://www.w3.org/2000/svg}text")]
    for row in facts["peers"]:
        rate = f"{row['entries_per_second']:,.0f}"
        assert any(line.startswith(f"{row['side']} ") and f" {rate} " in line for line in told.splitlines())
        assert texts[texts.index(row["side"]) + 1] == rate and len(row["seconds"]) == 2
    assert f"digest {facts['digest']}" in told and facts["machine"]["rocksdict"]


def test_only_peers_needs_rocksdict_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "perf.besides")
    monkeypatch.delitem(sys.modules, "perf.bare")
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    assert main(PEERS) == 2
    assert "pip install 'shardengine[rocksdb]'" in capsys.readouterr().err


def test_a_chart_holds_whatever_text_it_is_given() -> None:
    names = ['a < b & "c"', "</text><script>"]
    drawn = bars(names[0], names[1], names, [Bar(name, number, name, number) for number, name in enumerate(names)])
    texts = [text.text for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [*names, *names, names[0], names[0], names[1], names[1]]
    assert "prefers-color-scheme: dark" in drawn and "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


def refused(arguments: list[str], directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said when the figures are refused."""
    output = directory / "out"
    assert main([*arguments, "--json", str(output), "--dir", str(directory)]) == 1
    told = capsys.readouterr()
    assert told.out == "" and list(directory.iterdir()) == []
    return told.err


def test_a_wrong_balance_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Accounts.transfers

    def wrong(accounts: Accounts, *arguments: Any) -> list[Entry]:
        accounts.balances[3] += 1
        return made(accounts, *arguments)

    monkeypatch.setattr(Accounts, "transfers", wrong)
    assert "check failed: 1 shards: digest " in refused([*TRANSACTIONS, "--skews", "0"], tmp_path, capsys)


def test_money_that_comes_from_nowhere_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transactions, "OPENED_WITH", OPENED_WITH - 1)
    said = refused([*TRANSACTIONS, "--skews", "0", "--shards", "2"], tmp_path, capsys)
    assert "2 shards: the accounts hold 500000000000, and were opened with 499999999500" in said


def forgetful(write: Callable[[Any, Tx], None]) -> Callable[[Any, Tx], None]:
    def less(txn: Any, transaction: Tx) -> None:
        transaction.writes.pop(next(iter(transaction.writes)))
        write(txn, transaction)

    return less


def test_a_place_that_loses_a_write_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(places, "_write", forgetful(places._write))
    assert "check failed: bank: py-lmdb ends at digest " in refused(MACHINES, tmp_path, capsys)


def test_an_engine_that_loses_a_put_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply_chunk, other = Engine.apply_chunk, encode(Put(b"another", b"value"))

    def wrong(db: Engine, chunk: Sequence[Entry]) -> Awaitable[Any]:
        return apply_chunk(db, [Entry(one.index, one.term, one.data if one.index != 7 else other) for one in chunk])

    monkeypatch.setattr(Engine, "apply_chunk", wrong)
    assert "check failed: node: digest " in refused(NODE, tmp_path, capsys)


class Forgetful(LocalLog):
    """Gives back all frames but one."""

    async def read(self, after: int) -> AsyncGenerator[Logged, None]:
        async for logged in super().read(after):
            if logged.position != 7:
                yield logged


def test_a_log_that_lost_a_frame_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proposing, "LocalLog", Forgetful)
    said = refused(NODE, tmp_path, capsys)
    assert "check failed: node: its log holds 43 commands, which are not the 44 that were acknowledged" in said


def test_a_file_that_lacks_a_write_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lossy = SimpleNamespace(pwrite=lambda _, data, at: len(data), fsync=os.fsync, fdatasync=os.fdatasync)
    monkeypatch.setattr(disks, "os", lossy)
    assert "check failed: write and fdatasync: the file holds other bytes" in refused(NODE, tmp_path, capsys)


def test_a_table_that_lacks_a_row_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disks, "_PUT", "INSERT OR REPLACE INTO puts VALUES (substr(?, 1, 1), ?)")
    assert "check failed: SQLite: " in refused(NODE, tmp_path, capsys)


def test_a_read_that_finds_something_else_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    get = Engine.get
    monkeypatch.setattr(Engine, "get", lambda db, key: (get(db, key) or b"x")[1:])
    said = refused(READS, tmp_path, capsys)
    assert "check failed: Engine.get: 300 of 300 records are not as they were put" in said


def test_another_process_that_lacks_a_record_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    propose_many = SyncNode.propose_many
    monkeypatch.setattr(SyncNode, "propose_many", lambda node, commands: propose_many(node, commands[1:]))
    assert "check failed: txn.get: 1 of 300 records are not" in refused(READS, tmp_path, capsys)


def test_a_store_that_lacks_a_record_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = bare.BARE["SQLite"]
    monkeypatch.setitem(bare.BARE, "SQLite", lambda path, chunks: over(path, chunks[1:]))
    assert "check failed: SQLite: digest " in refused(PEERS, tmp_path, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_in_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args([command, "--help"])
    told = capsys.readouterr().out
    assert left.value.code == 0 and f"examples:\n  python -m perf {command}" in told
    for example in (line.split("#")[0].split()[3:] for line in told.splitlines() if line.startswith("  python -m ")):
        parser().parse_args(example)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--shares", "0,101", "101 is no share of 100 percent"),
        ("--shares", "-1", "-1 is no share of 100 percent"),
        ("--skews", "11", "11 is not between 0 and 10"),
        ("--shards", "2,0", "0 is less than 1"),
        ("--keys", "many", "invalid"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["transactions", option, value])
    told = capsys.readouterr().err
    assert left.value.code == 2 and option in told and said in told
