"""`load --results`: what every entry answers, in order, up to the last one applied; and the time that entries get."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import select
import signal
import subprocess
import termios
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import ApplyResult
from shardengine.engine.cli.load import TimeType
from shardengine.engine.cli.results import line_of
from tests.commands import WATCHDOG_S, Running, cli, command, environment, running

BANK = ("--machine", "shardengine.machines.bank:Bank")
BOARD = ("--machine", "shardengine.machines.leaderboard:Leaderboard")
QUEUE = ("--machine", "shardengine.machines.queue:Queue")
LEDGER = ("--machine", "tests.machines:Ledger")
OPEN = '{"op": "open", "account": "a", "amount": 7}\n'
ASK = '{"op": "balance", "account": "a"}\n'


def told(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def adds(count: int) -> str:
    return '{"op": "add", "key": "k", "amount": 1}\n' * count


def sums(first: int, last: int) -> list[dict[str, int]]:
    """What the ledger answers to `adds`, with nothing else in its log."""
    return [{"index": index, "value": index} for index in range(first, last + 1)]


# --- lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "members"),
    [
        (None, {"value": None}),
        ([True, 1 << 63, 0.5, "a"], {"value": [True, 1 << 63, 0.5, "a"]}),
        ([(1, b"b\xc3\xa4"), "ä"], {"value": [[1, "bä"], "ä"]}),
        ([[1, b"\xff"], "ab", b"ab", None], {"value_hex": [[1, "ff"], "6162", "6162", None]}),
        ({"n": b"\xff", "m": {"x": 1.0}}, {"value_hex": {"n": "ff", "m": {"x": 1.0}}}),
        ({b"k": 1, 2: []}, {"value": [["k", 1], [2, []]]}),
        ([math.nan, -math.inf], {"value": ["nan", "-inf"]}),
        ([datetime(2026, 1, 2, tzinfo=UTC), b"\xff"], {"value_hex": [b"2026-01-02 00:00:00+00:00".hex(), "ff"]}),
    ],
)
def test_a_line_says_what_an_entry_answered(value: object, members: dict[str, object]) -> None:
    line = line_of(ApplyResult(7, True, value))
    assert (line.count(b"\n"), line[-1:], json.loads(line)) == (1, b"\n", {"index": 7, **members})


@given(value=st.recursive(st.binary(max_size=4) | st.integers(0, 9), lambda inner: st.lists(inner, max_size=4)))
def test_bytes_are_read_back_from_a_line_as_commands_are_read(value: object) -> None:
    def read(item: object, from_hex: bool) -> object:
        if isinstance(item, list):
            return [read(each, from_hex) for each in item]
        return (bytes.fromhex(item) if from_hex else item.encode()) if isinstance(item, str) else item

    found = json.loads(line_of(ApplyResult(1, True, value)))
    (name,) = found.keys() - {"index"}
    assert read(found[name], name == "value_hex") == value


def test_a_rejection_is_told_with_its_reason() -> None:
    assert json.loads(line_of(ApplyResult(2, False, reason='no "ä"\n'))) == {"index": 2, "rejected": 'no "ä"\n'}


# --- where they go ------------------------------------------------------------------------------------------------


def test_results_go_to_a_file_in_the_order_of_the_log_and_the_summary_where_it_was(tmp_path: Path) -> None:
    lines = [f'{{"op": "submit", "board": "b", "player_hex": "ff", "score": {n}}}\n' for n in (5, 3, 8)]
    text = "".join([*lines, "\n", '{"op": "top", "board": "b"}\n', '{"op": "around", "board": "b", "player": "x"}\n'])
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 2, *BOARD, "--results", tmp_path / "r", "--chunk", 2)
    ran = cli(*args, "--json", stdin=text)
    assert (ran.code, ran.err, ran.facts["records"], ran.facts["rejected"]) == (0, "", 6, 1)
    assert told((tmp_path / "r").read_text()) == [
        *({"index": index, "value": index != 2} for index in (1, 2, 3)),
        {"index": 4, "value": None},
        {"index": 5, "value_hex": [[1, "ff", 8]]},
        {"index": 6, "rejected": "no player b'x' on board b'b'"},
    ]


def test_on_standard_output_are_results_and_nothing_else(tmp_path: Path) -> None:
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 2, *BANK, "--append", "--results", "-")
    ran = cli(*args, stdin=OPEN + ASK)
    assert (ran.code, told(ran.out)) == (0, [{"index": 1, "value": None}, {"index": 2, "value": 7}])
    assert ran.err.startswith("records 2, skipped 0, rejected 0, index 2, ")
    again = cli(*args, "--json", stdin=ASK)
    assert (told(again.out), json.loads(again.err.splitlines()[-1])["records"]) == ([{"index": 3, "value": 7}], 1)
    quiet = cli(*args, "--quiet", stdin=ASK)
    assert (told(quiet.out), quiet.err) == ([{"index": 4, "value": 7}], "")


def test_a_file_that_is_there_is_gone_on_with_behind_its_last_whole_line(tmp_path: Path) -> None:
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 1, *LEDGER, "--results", tmp_path / "r")
    expected = ""
    for count, left in ((3, ""), (5, '{"ind'), (6, '{"index":6,"value":'), (7, "")):
        with (tmp_path / "r").open("a") as file:
            file.write(left)
        assert cli(*args, stdin=adds(count)).code == 0
        expected = "".join(f'{{"index":{n},"value":{n}}}\n' for n in range(1, count + 1))
        assert (tmp_path / "r").read_text() == expected
    assert cli(*args, stdin=adds(7)).code == 0
    assert (tmp_path / "r").read_text() == expected


def test_results_that_would_spoil_another_file_are_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    data, file = tmp_path / "d", tmp_path / "commands"
    file.write_text(adds(2))
    args = ("load", file, "--data", data, "--shards", 1, *LEDGER, "--results")
    other = tmp_path / "other"
    other.write_text("no newline")
    for target, said in ((other, "holds something else than results"), (file, "is what is loaded")):
        before = target.read_text()
        ran = cli(*args, target)
        assert (ran.code, f"{target} {said}" in ran.err, target.read_text()) == (2, True, before)
    appended = subprocess.run(
        ["/bin/sh", "-c", '"$@" >> "$0"', file, *command(*args, "-")],
        env=environment(),
        timeout=WATCHDOG_S,
        check=False,
    )
    assert (appended.returncode, file.read_text()) == (2, adds(2))
    assert cli(*args, tmp_path).code == 2
    missing = cli(*args, tmp_path / "none" / "r")
    assert (missing.code, f"error: {tmp_path}/none/r: No such file" in missing.err) == (3, True)
    assert not data.exists()


# --- ended early --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["{", '{"op": "stamp", "key": ""}'])
def test_a_bad_line_leaves_the_results_of_all_before_it(tmp_path: Path, bad: str) -> None:
    """One that is no command, and one that the engine refuses with its chunk."""
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 2, *LEDGER, "--results", "-", "--chunk", 4)
    ran = cli(*args, stdin=adds(6) + bad + "\n" + adds(3))
    assert (ran.code, told(ran.out)) == (1, sums(1, 6))
    assert ran.err.startswith("error: line 7: ")


def test_a_signal_leaves_the_results_of_all_that_is_applied(tmp_path: Path) -> None:
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 2, *LEDGER, "--results", tmp_path / "r", "--json")
    with running(*args, "--chunk", 500) as load:
        load.write(adds(30_000).encode())
        os.kill(load.process.pid, signal.SIGINT)
        ran = load.end(close_stdin=False)
    assert (ran.code, "error: stopped by SIGINT" in ran.err) == (130, True)
    assert told((tmp_path / "r").read_text()) == sums(1, ran.facts["index"])
    again = cli(*args, stdin=adds(35_000))
    assert (again.code, again.facts["index"]) == (0, 35_000)
    assert told((tmp_path / "r").read_text()) == sums(1, 35_000)


def test_a_disk_that_is_full_of_results_ends_the_load_and_is_named(tmp_path: Path) -> None:
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 1, *LEDGER, "--chunk", 10, "--json")
    ran = cli(*args, "--results", "/dev/full", stdin=adds(1000))
    loaded = ran.facts["index"]
    assert (ran.code, 10 <= loaded < 1000) == (3, True)
    assert ran.err.splitlines()[0] == "error: /dev/full: No space left on device: the results from entry 1 on are lost"
    assert f"hint: free disk space; all lines up to {loaded} are loaded" in ran.err
    again = cli(*args, "--results", tmp_path / "r", stdin=adds(1000))
    assert (again.facts["skipped"], told((tmp_path / "r").read_text())) == (loaded, sums(loaded + 1, 1000))


def test_results_that_end_with_something_else_are_told_too(tmp_path: Path) -> None:
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 1, *LEDGER, "--chunk", 10, "--results", "/dev/full")
    ran = cli(*args, stdin=adds(3) + "{\n")
    assert ran.code == 1
    first, second = ran.err.splitlines()[:2]
    assert first == "/dev/full: No space left on device: the results from entry 1 on are lost"
    assert second.startswith("error: line 4: ")


@pytest.mark.parametrize("target", ["-", "fifo"])
def test_a_reader_that_has_enough_ends_the_load_as_a_signal_does(tmp_path: Path, target: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 1, *LEDGER, "--results")
    with running(*args, fifo if target == "fifo" else "-") as load:
        assert load.process.stdout is not None
        with fifo.open() if target == "fifo" else os.fdopen(os.dup(load.process.stdout.fileno())) as reader:
            load.write(adds(1).encode())
            assert json.loads(reader.readline()) == {"index": 1, "value": 1}
            if target == "-":
                load.process.stdout.close()
                load.process.stdout = subprocess.DEVNULL  # type: ignore[assignment]
        load.write(adds(1).encode())
        assert load.process.wait(WATCHDOG_S) == 141
        assert load.process.stderr is not None
        err = load.process.stderr.read().decode()
        load.process.stdout = None
    assert "error: stopped by SIGPIPE\nhint: " in err
    assert "the results from entry 2 on are lost; all lines up to 2 are loaded; the same command goes on" in err


def test_a_closed_standard_output_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    line = command("load", "-", "--data", tmp_path / "d", *LEDGER, "--results", "-")
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *line],
        input=adds(1).encode(),
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=WATCHDOG_S,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (3, b"error: standard output: Bad file descriptor")
    assert not (tmp_path / "d").exists()


def waiting_bytes(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")


def catches(pid: int, number: signal.Signals) -> bool:
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def test_a_second_signal_ends_a_load_whose_results_nobody_takes(tmp_path: Path) -> None:
    with running("load", "-", "--data", tmp_path / "d", "--shards", 1, *LEDGER, "--results", "-") as load:
        load.write(adds(4_000).encode())  # more results than a pipe holds, and not too much to read
        assert load.process.stdout is not None
        while waiting_bytes(load.process.stdout.fileno()) < 60_000:  # the pipe is as good as full
            assert load.process.poll() is None
        load.process.send_signal(signal.SIGINT)
        while catches(load.process.pid, signal.SIGTERM):  # the first signal has not arrived
            assert load.process.poll() is None
        load.process.send_signal(signal.SIGINT)
        assert load.process.wait(WATCHDOG_S) == 130
        assert load.workers() == []
    assert cli("verify", "--data", tmp_path / "d", *LEDGER).code == 0


# --- typed by hand ------------------------------------------------------------------------------------------------


def answer(load: Running) -> Any:
    assert load.process.stdout is not None
    return json.loads(load.process.stdout.readline())


def test_an_answer_comes_while_the_input_is_still_open(tmp_path: Path) -> None:
    with running("load", "-", "--data", tmp_path / "d", "--shards", 2, *BANK, "--results", "-") as load:
        load.write(OPEN.encode())
        assert answer(load) == {"index": 1, "value": None}
        load.write(ASK.encode())
        assert answer(load) == {"index": 2, "value": 7}
        assert load.end().code == 0


def test_a_line_that_the_engine_refuses_ends_a_load_that_waits_for_the_next(tmp_path: Path) -> None:
    with running("load", "-", "--data", tmp_path / "d", "--shards", 2, *BANK) as load:
        load.write(b'{"op": "balance", "account": ""}\n')
        ran = load.end(close_stdin=False)
    assert (ran.code, ran.err.startswith("error: line 1: ")) == (1, True)


def test_what_is_typed_at_a_terminal_is_never_taken_for_what_was_typed_before(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 1, *LEDGER, "--results", "-", "--quiet")
    for first in (1, 3):
        with subprocess.Popen(
            command(*args), stdin=theirs, stdout=subprocess.PIPE, env=environment(), start_new_session=True
        ) as process:
            assert process.stdout is not None
            for index in (first, first + 1):
                os.write(ours, adds(1).encode())
                assert select.select([process.stdout], [], [], WATCHDOG_S)[0]
                assert json.loads(process.stdout.readline()) == {"index": index, "value": index}
            os.write(ours, b"\x04")
            assert process.wait(WATCHDOG_S) == 0
    os.close(theirs)
    os.close(ours)


# --- time ---------------------------------------------------------------------------------------------------------


def test_entries_carry_the_time_that_is_asked_for_and_none_by_default(tmp_path: Path) -> None:
    args = ("load", "-", "--data", tmp_path / "d", "--shards", 2, *QUEUE, "--append", "--results", "-", "--quiet")
    lease = '{"op": "lease", "queue": "q", "consumer": "c", "ttl_ms": 500}\n'
    held, ready = [{"index": 0, "value": []}], [{"index": 0, "value": [[0, "job"]]}]
    assert cli(*args, stdin='{"op": "push", "queue": "q", "body": "job"}\n').code == 0
    for time_ms, expected in (
        (("--time-ms", 1000), ready),
        (("--time-ms", 1499), held),
        ((), held),
        (("--time-ms", 1500), ready),
        (("--time-ms", "none"), held),
        (("--time-ms", "now"), ready),
        (("--time-ms", 2000), held),
    ):
        ran = cli(*args, *time_ms, stdin=lease)
        assert [{**each, "index": 0} for each in told(ran.out)] == expected, (time_ms, ran.err)


def test_now_is_the_clock_of_the_system_each_time_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = TimeType().convert("now", None, None)
    for nanoseconds, expected in ((1_999_999, 1), (5_000_000, 5)):
        monkeypatch.setattr(time, "time_ns", lambda found=nanoseconds: found)
        assert clock() == expected


@pytest.mark.parametrize("wrong", ["", "-1", "1.5", "later", "\u0661", str(1 << 64)])
def test_a_time_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(click.BadParameter, match="is neither now, none, nor a number of 64 bits"):
        TimeType().convert(wrong, None, None)
    assert TimeType().convert(str((1 << 64) - 1), None, None)() == (1 << 64) - 1
