"""The command `load`, as real processes: what is a record, and what a kill or a signal leaves behind."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import Delete, Put, Reader, encode
from shardengine.engine.cli.progress import clock
from shardengine.engine.cli.records import format_tsv, parse_jsonl, parse_tsv
from tests.commands import WATCHDOG_S, cli, command, environment, records, running, started
from tests.killing import DEEP, note


@cache
def expected_facts(count: int) -> dict[str, Any]:
    """Index, count and digest of an uninterrupted load of the first `count` records, wherever it is."""
    with TemporaryDirectory() as folder:
        data = Path(folder) / "whole"
        assert cli("load", "-", "--data", data, "--shards", 1, stdin=records(1, count).decode()).code == 0
        facts: dict[str, Any] = cli("digest", "--data", data, "--json").facts
    assert (facts["index"], facts["entries"]) == (count, count)
    return facts


# --- load ---------------------------------------------------------------------------------------------------------


def test_the_same_command_again_loads_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    path.write_bytes(records(1, 2000))
    first = cli("load", path, "--data", tmp_path / "data", "--shards", 2, "--chunk", 300, "--json").facts
    assert (first["records"], first["skipped"], first["index"]) == (2000, 0, 2000)
    again = cli("load", path, "--data", tmp_path / "data", "--json").facts
    assert (again["records"], again["skipped"], again["index"], again["entries"]) == (0, 2000, 2000, 2000)
    path.write_bytes(records(1, 3000))
    more = cli("load", path, "--data", tmp_path / "data", "--chunk", 1, "--json").facts
    assert (more["records"], more["skipped"], more["index"]) == (1000, 2000, 3000)
    assert cli("digest", "--data", tmp_path / "data", "--json").facts == expected_facts(3000)


def test_empty_lines_move_the_index_and_hold_nothing(tmp_path: Path) -> None:
    ran = started("load", "-", "--data", tmp_path / "data", "--shards", 2, "--json", stdin="\n\na\t1\n\r\nb\t\n\n")
    assert (ran.facts["index"], ran.facts["entries"]) == (6, 2)
    assert cli("scan", "--data", tmp_path / "data").out == "a\t1\nb\t\n"


def test_jsonl_puts_and_deletes(tmp_path: Path) -> None:
    lines = [
        '{"key": "ä", "value": "1"}',
        '{"key": "b", "value": "two\\tthree"}',
        '{"op": "put", "key_hex": "00ff", "value_hex": "fe"}',
        '{"op": "delete", "key": "ä"}',
    ]
    ran = cli("load", "-", "--data", tmp_path / "d", "--shards", 2, "--format", "jsonl", stdin="\n".join(lines))
    assert ran.code == 0, ran.err
    scan = cli("scan", "--data", tmp_path / "d", "--json").out.splitlines()
    assert [json.loads(line) for line in scan] == [
        {"key_hex": "00ff", "value_hex": "fe"},
        {"key": "b", "value": "two\tthree"},
    ]


BAD = {
    "tsv": [
        ("no tab here", "no tab"),
        ("a\tb\tc", "a second tab"),
        ("a\\x\tb", r"\x is no escape"),
        ("a\tb\\", r"\ is no escape"),
        ("\tvalue", "line 4: "),
        ("k" * 481 + "\tv", "480"),
        ("k\t" + "v" * ((1 << 20) + 1), str(1 << 20)),
        ("v" * (8 << 20), "longer than"),
    ],
    "jsonl": [
        ('{"key": "a"', "truncated"),
        ('{"key": 1, "value": "b"}', "Expected `str"),
        ('{"key": "a", "colour": "b"}', "unknown field `colour`"),
        ('{"key": "a"}', "no `value`"),
        ('{"value": "a"}', "no `key`"),
        ('{"op": "delete", "key": "a", "value": "b"}', "a delete has no value"),
        ('{"op": "rename", "key": "a"}', "rename"),
        ('{"key": "a", "key_hex": "61", "value": "b"}', "both"),
        ('{"key_hex": "6", "value": "b"}', "not hexadecimal"),
        ('{"key": "\\ud800", "value": "b"}', "line 4: "),
    ],
}
"""Lines that are no records, and what is said of them."""


@pytest.mark.parametrize("form", BAD)
def test_a_bad_record_exits_1_names_its_line_and_leaves_what_came_before(tmp_path: Path, form: str) -> None:
    """One after the other in one directory, which is corrected in the end."""
    template = {"tsv": "k%d\tv", "jsonl": '{"key": "k%d", "value": "v"}'}[form]
    good = [template % n for n in range(6)]
    args = ("load", "-", "--data", tmp_path / "data", "--shards", 1, "--format", form, "--json")
    for line, said in BAD[form]:
        note(line[:100])
        ran = cli(*args, stdin="\n".join([*good[:3], line, *good[4:]]))
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("error: line 4: ")
        assert said in ran.err
        assert "lines before 4 are loaded: correct it" in ran.err
        with Reader(tmp_path / "data") as left:
            assert left.last_applied().index == 3
            assert dict(left.scan_prefix(b"").entries) == {b"k0": b"v", b"k1": b"v", b"k2": b"v"}
    corrected = cli(*args, stdin="\n".join(good))
    assert (corrected.code, corrected.facts["skipped"], corrected.facts["records"]) == (0, 3, 3)
    assert corrected.facts["entries"] == 6


def test_another_number_of_shards_than_the_directory_has_exits_3_with_what_to_do(tmp_path: Path) -> None:
    assert cli("load", "-", "--data", tmp_path / "data", "--shards", 1).code == 0
    ran = cli("load", "-", "--data", tmp_path / "data", "--shards", 2)
    assert ran.code == 3
    assert "hint: " in ran.err
    assert "reshard" in ran.err


def test_a_directory_in_use_exits_3_and_names_who_holds_it(tmp_path: Path) -> None:
    with running("load", "-", "--data", tmp_path / "data", "--shards", 2, "--json") as load:
        load.write(records(1, 20_000))
        ran = cli("snapshot", "--data", tmp_path / "data")
        assert ran.code == 3
        assert str(load.process.pid) in ran.err
        assert load.end().code == 0


def test_on_a_terminal_progress_says_rate_and_time_left(tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    path.write_bytes(records(1, 100_000))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("load", path, "--data", tmp_path / "data", "--shards", 2, "--json"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(TERM="xterm"),
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        out, _ = process.communicate(timeout=WATCHDOG_S)
    os.close(ours)
    assert (process.returncode, json.loads(out)["entries"]) == (0, 100_000)
    assert re.search(r"%, [0-9,]+ entries, [0-9,]+/s, \S+( s)? left", shown)


def read_terminal(fd: int) -> str:
    shown = b""
    while select.select([fd], [], [], WATCHDOG_S)[0]:
        try:
            shown += os.read(fd, 65_536)
        except OSError:  # the other side is closed
            break
    return shown.decode(errors="replace")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (125, "2:05"), (3609, "1:00:09")]
)
def test_time_left_reads_like_a_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


@given(key=st.binary(max_size=20), value=st.binary(max_size=40))
def test_every_record_survives_tsv(key: bytes, value: bytes) -> None:
    line = format_tsv(key, value)
    assert b"\n" not in line
    assert parse_tsv(line) == parse_tsv(line + b"\r") == encode(Put(key, value))


@given(key=st.binary(max_size=20), value=st.text(max_size=40))
def test_every_record_survives_jsonl(key: bytes, value: str) -> None:
    line = json.dumps({"key_hex": key.hex(), "value": value}).encode()
    assert parse_jsonl(line) == encode(Put(key, value.encode()))
    assert parse_jsonl(json.dumps({"op": "delete", "key_hex": key.hex()}).encode()) == encode(Delete(key))


# --- signals ------------------------------------------------------------------------------------------------------

TOTAL = 120_000 if DEEP else 60_000


def test_a_load_killed_in_the_middle_goes_on_and_loads_nothing_twice(tmp_path: Path) -> None:
    data = tmp_path / "data"
    args = ("load", "-", "--data", data, "--json", "--chunk", 1000)
    whole = records(1, TOTAL)
    reached = 0
    for shards, part in (("--shards=3", 3), ("--quiet", 2)):
        with running(*args, shards) as load:
            load.write(whole[: len(whole) // part])
            workers = [os.pidfd_open(pid) for pid in load.workers()]
            assert len(workers) == 3
            load.process.kill()
            for fd in workers:  # they end by themselves when their coordinator is gone
                assert select.select([fd], [], [], WATCHDOG_S)[0]
                os.close(fd)
        stats = cli("stats", "--data", data, "--json").facts
        assert reached < stats["last_applied"]["index"] == stats["entries"] < TOTAL
        reached = stats["entries"]
    last = cli(*args, stdin=whole.decode())
    skipped = last.facts["skipped"]
    assert skipped >= reached, "a start finishes what was decided; what is read before it may be less"
    assert (last.code, last.facts["records"]) == (0, TOTAL - skipped)
    assert cli("digest", "--data", data, "--json").facts == expected_facts(TOTAL)
    assert cli("verify", "--data", data).code == 0


@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True)]
)
def test_a_signal_during_load_stops_cleanly_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals, whole_group: bool
) -> None:
    data = tmp_path / "data"
    args = ("load", "-", "--data", data, "--shards", 2, "--json")
    whole = records(1, TOTAL)
    with running(*args) as load:
        load.write(whole[: len(whole) // 2])
        assert len(load.workers()) == 2
        (os.killpg if whole_group else os.kill)(load.process.pid, number)
        ran = load.end(close_stdin=False)
        assert load.workers() == []
    assert ran.code == 128 + number
    reached = ran.facts["index"]
    assert 0 < reached == ran.facts["records"] < TOTAL
    assert f"error: stopped by {number.name}" in ran.err
    assert f"all lines up to {reached} are loaded" in ran.err
    assert cli("verify", "--data", data).code == 0
    again = cli(*args, stdin=whole.decode())
    assert (again.facts["skipped"], again.facts["records"]) == (reached, TOTAL - reached)
    assert cli("digest", "--data", data, "--json").facts == expected_facts(TOTAL)
