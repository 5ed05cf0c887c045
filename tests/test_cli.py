"""The command line, as real processes: what it prints, what it exits with, and what a signal leaves behind."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Delete, Put, encode
from engine.cli.progress import clock
from engine.cli.records import format_tsv, parse_jsonl, parse_tsv

ROOT = Path(__file__).resolve().parent.parent
WATCHDOG_S = 120
COMMANDS = ["demo", "load", "get", "scan", "digest", "stats", "verify"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        return json.loads(self.out)


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SHARDENGINE_")}
    return {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **extra}


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "engine", *map(str, args)]


def cli(*args: object, stdin: str = "", **env: str) -> Ran:
    """Run a command to its end, with a watchdog."""
    done = subprocess.run(
        command(*args),
        input=stdin.encode(),
        capture_output=True,
        timeout=WATCHDOG_S,
        env=environment(**env),
        check=False,
    )
    ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in ran.err, ran.err
    return ran


class Running:
    """A command in a session of its own, fed through a pipe: a write that returns was read, but for a pipe's room."""

    def __init__(self, *args: object, **env: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command(*args), stdin=pipe, stdout=pipe, stderr=pipe, env=environment(**env), start_new_session=True
        )

    def write(self, data: bytes) -> None:
        """Feed standard input; a reader that ends in the middle is what some tests want."""
        assert self.process.stdin
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def error_line(self, containing: str) -> str:
        """The next line on standard error that contains a text."""
        assert self.process.stderr
        said = []
        for line in self.process.stderr:
            said.append(line.decode())
            if containing in said[-1]:
                return said[-1]
        raise AssertionError(f"never said {containing!r}: {said}")

    def workers(self) -> list[int]:
        """Process ids of its session, without its own."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != self.process.pid:
                try:
                    after_name = (folder / "stat").read_text().rpartition(") ")[2].split()
                except OSError:
                    continue
                if int(after_name[3]) == self.process.pid and after_name[0] != "Z":
                    found.append(int(folder.name))
        return found

    def end(self, *, close_stdin: bool = True) -> Ran:
        """Wait for the end. Without `close_stdin` the input stays open meanwhile, as a person's terminal would."""
        process = self.process
        assert process.stdin
        assert process.stdout
        assert process.stderr
        if not close_stdin:
            process.wait(WATCHDOG_S)
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None
        out, err = process.communicate(timeout=WATCHDOG_S)
        assert b"Traceback" not in err, err.decode()
        return Ran(process.returncode, out.decode(), err.decode())


@contextmanager
def running(*args: object, **env: str) -> Iterator[Running]:
    run = Running(*args, **env)
    watchdog = threading.Timer(WATCHDOG_S, run.process.kill)
    watchdog.start()
    try:
        yield run
    finally:
        watchdog.cancel()
        run.process.kill()
        run.process.wait()
        for stream in (run.process.stdin, run.process.stdout, run.process.stderr):
            if stream and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


def records(first: int, last: int) -> bytes:
    return b"".join(b"key-%07d\tvalue of %d\n" % (n, n) for n in range(first, last + 1))


def expected_facts(folder: Path, count: int) -> dict[str, Any]:
    """Index, count and digest of an uninterrupted load of the first `count` records."""
    path = folder / "whole.tsv"
    path.write_bytes(records(1, count))
    assert cli("load", path, "--data", folder / "whole", "--shards", 1).code == 0
    facts: dict[str, Any] = cli("digest", "--data", folder / "whole", "--json").facts
    assert (facts["index"], facts["entries"]) == (count, count)
    return facts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with 3,000 records on three shards; only read from."""
    data = tmp_path_factory.mktemp("loaded") / "data"
    ran = cli("load", "-", "--data", data, "--shards", 3, "--json", stdin=records(1, 3000).decode())
    assert ran.code == 0, ran.err
    assert ran.facts["records"] == ran.facts["entries"] == ran.facts["index"] == 3000
    return data


# --- use ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str) -> None:
    ran = cli(name, "--help")
    assert ran.code == 0
    assert f"Examples:\n    shardengine {name} " in ran.out or f"Examples:\n    shardengine {name}\n" in ran.out
    assert "--data DIR" in ran.out
    assert "--json" in ran.out


def test_the_manual_of_the_command_line_lists_its_exit_codes() -> None:
    ran = cli("--help")
    assert ran.code == 0
    assert "0 done, 1 the data says no, 2 wrong use, 3 the engine could not" in ran.out
    assert cli("--version").out.startswith("shardengine ")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Usage:"),
        (["frobnicate"], "No such command"),
        (["get", "k"], "--data"),
        (["get", "--data", "x"], "KEY"),
        (["digest", "--data", "x", "--frobnicate"], "No such option"),
        (["load", "absent.tsv", "--data", "x"], "absent.tsv"),
        (["load", "-", "--data", "x", "--format", "csv"], "csv"),
        (["load", "-", "--data", "x", "--shards", "0"], "--shards"),
        (["load", "-", "--data", "x", "--config", "absent.toml"], "absent.toml"),
        (["demo", "--shards", "1"], "--shards"),
    ],
)
def test_wrong_use_exits_2_and_says_what_is_wrong(args: list[str], said: str) -> None:
    ran = cli(*args)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


@pytest.mark.parametrize("args", [["get", "k"], ["scan"], ["digest"], ["stats"], ["verify"]])
def test_a_command_that_reads_creates_nothing_where_no_engine_is(tmp_path: Path, args: list[str]) -> None:
    ran = cli(*args, "--data", tmp_path / "nothing")
    assert ran.code == 2
    assert "holds no engine" in ran.err
    assert not (tmp_path / "nothing").exists()


def test_a_wrong_setting_exits_2_and_names_key_and_source(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("views_max = 0\n")
    from_file = cli("load", "-", "--data", tmp_path / "data", "--config", settings)
    assert from_file.code == 2
    assert f"views_max = 0 (file {settings})" in from_file.err
    from_environment = cli("load", "-", "--data", tmp_path / "data", SHARDENGINE_VIEWS_MX="3")
    assert from_environment.code == 2
    assert "did you mean SHARDENGINE_VIEWS_MAX?" in from_environment.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_how_to_get_it_and_the_engine_imports(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; import engine; from engine.cli import main; sys.exit(main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=WATCHDOG_S, env=environment(), check=False
    )
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.decode() == f"error: the command line needs {missing}: pip install 'shardengine[cli]'\n"


# --- facts --------------------------------------------------------------------------------------------------------


def test_get_prints_the_value_and_exits_1_for_a_key_that_is_not_there(loaded: Path) -> None:
    assert cli("get", "key-0000042", "--data", loaded).out == "value of 42\n"
    absent = cli("get", "key-x", "--data", loaded)
    assert (absent.code, absent.out) == (1, "")
    assert "no key key-x at index 3000" in absent.err


def test_get_as_json_says_whether_the_key_was_found_and_where_in_the_log(loaded: Path) -> None:
    found = cli("get", "key-0000042", "--data", loaded, "--json")
    assert found.facts == {"key": "key-0000042", "found": True, "value": "value of 42", "index": 3000}
    absent = cli("get", "key-x", "--data", loaded, "--json")
    assert (absent.code, absent.facts) == (1, {"key": "key-x", "found": False, "index": 3000})


def test_get_takes_and_prints_hexadecimal(loaded: Path) -> None:
    assert cli("get", b"key-0000042".hex(), "--hex", "--data", loaded).out == b"value of 42".hex() + "\n"
    ran = cli("get", "6g", "--hex", "--data", loaded)
    assert ran.code == 2
    assert "'6g' is not hexadecimal" in ran.err


def test_scan_prints_a_prefix_in_key_order_across_shards(loaded: Path) -> None:
    ran = cli("scan", "key-000001", "--data", loaded)
    assert ran.out.encode() == records(10, 19)
    assert ran.err == ""
    assert cli("scan", "--data", loaded).out.encode() == records(1, 3000)


def test_scan_says_where_to_go_on_when_the_limit_left_records_out(loaded: Path) -> None:
    first = cli("scan", "key-00000", "--data", loaded, "--limit", 50)
    assert first.out.encode() == records(1, 50)
    assert "--start-after key-0000050" in first.err
    rest = cli("scan", "key-00000", "--data", loaded, "--limit", 50, "--start-after", "key-0000050")
    assert (rest.out.encode(), rest.err) == (records(51, 99), "")


def test_scan_in_reverse_starts_at_the_end(loaded: Path) -> None:
    ran = cli("scan", "--data", loaded, "--reverse", "--limit", 2, "--hex")
    keys = [bytes.fromhex(line.split("\t")[0]) for line in ran.out.splitlines()]
    assert keys == [b"key-0003000", b"key-0002999"]
    assert b"key-0002999".hex() in ran.err


def test_what_scan_prints_loads_into_an_equal_engine_in_both_formats(loaded: Path, tmp_path: Path) -> None:
    digest = cli("digest", "--data", loaded).out
    for form, flags in (("tsv", []), ("jsonl", ["--json"]), ("jsonl", ["--json", "--hex"])):
        data = tmp_path / "-".join(("copy", form, *flags))
        text = cli("scan", "--data", loaded, *flags).out
        assert cli("load", "-", "--data", data, "--shards", 2, "--format", form, stdin=text).code == 0
        assert cli("digest", "--data", data).out == digest


def test_digest_stats_and_verify_as_json(loaded: Path) -> None:
    digest = cli("digest", "--data", loaded, "--json").facts
    assert (digest["index"], digest["term"], digest["entries"]) == (3000, 1, 3000)
    assert re.fullmatch("[0-9a-f]{32}", digest["digest"])
    stats = cli("stats", "--data", loaded, "--json").facts
    assert (stats["shards"], stats["entries"]) == (3, 3000)
    assert stats["last_applied"] == {"index": 3000, "term": 1}
    assert [worker["shard"] for worker in stats["workers"]] == [0, 1, 2]
    assert stats["bytes_on_disk"] > len(records(1, 3000))
    assert cli("verify", "--data", loaded, "--json").facts == {"ok": True, "findings": []}


def test_digest_stats_and_verify_as_text(loaded: Path) -> None:
    assert re.fullmatch("[0-9a-f]{32}\n", cli("digest", "--data", loaded).out)
    assert "last applied" in cli("stats", "--data", loaded).out
    assert cli("verify", "--data", loaded).out == "no damage found\n"


def test_a_reader_that_goes_away_ends_a_scan_quietly(loaded: Path) -> None:
    receive, send = os.pipe()
    os.close(receive)
    done = subprocess.run(
        command("scan", "--data", loaded),
        stdout=send,
        stderr=subprocess.PIPE,
        timeout=WATCHDOG_S,
        env=environment(),
        check=False,
    )
    os.close(send)
    assert (done.returncode, done.stderr) == (141, b"")


# --- verify -------------------------------------------------------------------------------------------------------


def test_verify_finds_overwritten_pages_and_names_the_shard(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert cli("load", "-", "--data", data, "--shards", 2, stdin=records(1, 3000).decode()).code == 0
    (file,) = data.glob("gen-*/shard-001/data.mdb")
    with file.open("r+b") as out:
        out.seek(2 * 4096)
        out.write(b"\xff" * (file.stat().st_size - 2 * 4096))
    ran = cli("verify", "--data", data, "--json")
    assert (ran.code, ran.facts["ok"]) == (1, False)
    assert {finding["shard"] for finding in ran.facts["findings"]} == {1}
    text = cli("verify", "--data", data)
    assert (text.code, text.out.split(":")[0]) == (1, "shard 1")


# --- load ---------------------------------------------------------------------------------------------------------


def test_the_same_command_again_loads_nothing_twice(loaded: Path, tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    path.write_bytes(records(1, 2000))
    first = cli("load", path, "--data", tmp_path / "data", "--shards", 2, "--chunk", 300, "--json").facts
    assert (first["records"], first["skipped"], first["index"]) == (2000, 0, 2000)
    again = cli("load", path, "--data", tmp_path / "data", "--json").facts
    assert (again["records"], again["skipped"], again["index"], again["entries"]) == (0, 2000, 2000, 2000)
    path.write_bytes(records(1, 3000))
    more = cli("load", path, "--data", tmp_path / "data", "--chunk", 1, "--json").facts
    assert (more["records"], more["skipped"], more["index"]) == (1000, 2000, 3000)
    assert cli("digest", "--data", tmp_path / "data").out == cli("digest", "--data", loaded).out


def test_empty_lines_move_the_index_and_hold_nothing(tmp_path: Path) -> None:
    ran = cli("load", "-", "--data", tmp_path / "data", "--shards", 2, "--json", stdin="\n\na\t1\n\r\nb\t\n\n")
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


@pytest.mark.parametrize(
    ("form", "line", "said"),
    [
        ("tsv", "no tab here", "no tab"),
        ("tsv", "a\tb\tc", "a second tab"),
        ("tsv", "a\\x\tb", r"\x is no escape"),
        ("tsv", "a\tb\\", r"\ is no escape"),
        ("tsv", "\tvalue", "line 4: "),
        ("tsv", "k" * 481 + "\tv", "480"),
        ("tsv", "k\t" + "v" * ((1 << 20) + 1), str(1 << 20)),
        ("tsv", "v" * (8 << 20), "longer than"),
        ("jsonl", '{"key": "a"', "truncated"),
        ("jsonl", '{"key": 1, "value": "b"}', "Expected `str"),
        ("jsonl", '{"key": "a", "colour": "b"}', "unknown field `colour`"),
        ("jsonl", '{"key": "a"}', "no `value`"),
        ("jsonl", '{"value": "a"}', "no `key`"),
        ("jsonl", '{"op": "delete", "key": "a", "value": "b"}', "a delete has no value"),
        ("jsonl", '{"op": "rename", "key": "a"}', "rename"),
        ("jsonl", '{"key": "a", "key_hex": "61", "value": "b"}', "both"),
        ("jsonl", '{"key_hex": "6", "value": "b"}', "not hexadecimal"),
        ("jsonl", '{"key": "\\ud800", "value": "b"}', "line 4: "),
    ],
)
def test_a_bad_record_exits_1_names_its_line_and_leaves_what_came_before(
    tmp_path: Path, form: str, line: str, said: str
) -> None:
    template = {"tsv": "k%d\tv", "jsonl": '{"key": "k%d", "value": "v"}'}[form]
    good = [template % n for n in range(6)]
    args = ("load", "-", "--data", tmp_path / "data", "--shards", 2, "--format", form, "--json")
    ran = cli(*args, stdin="\n".join([*good[:3], line, *good[4:]]))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: line 4: ")
    assert said in ran.err
    assert "lines before 4 are loaded: correct it" in ran.err
    corrected = cli(*args, stdin="\n".join(good))
    assert (corrected.code, corrected.facts["skipped"], corrected.facts["records"]) == (0, 3, 3)
    assert corrected.facts["entries"] == 6


def test_an_input_that_ends_before_the_directory_is_another_input(loaded: Path) -> None:
    ran = cli("load", "-", "--data", loaded, stdin="a\t1\n")
    assert ran.code == 1
    assert "ends at line 1, but the directory stands at index 3000" in ran.err


def test_another_number_of_shards_than_the_directory_has_exits_3_with_what_to_do(loaded: Path) -> None:
    ran = cli("load", "-", "--data", loaded, "--shards", 2, stdin="")
    assert ran.code == 3
    assert "hint: " in ran.err
    assert "reshard" in ran.err


def test_a_directory_in_use_exits_3_and_names_who_holds_it(tmp_path: Path) -> None:
    with running("load", "-", "--data", tmp_path / "data", "--shards", 2, "--json") as load:
        load.write(records(1, 20_000))
        ran = cli("stats", "--data", tmp_path / "data")
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

TOTAL = 120_000


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
    assert (last.code, last.facts["skipped"], last.facts["records"]) == (0, reached, TOTAL - reached)
    assert cli("digest", "--data", data, "--json").facts == expected_facts(tmp_path, TOTAL)
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
    assert cli("digest", "--data", data, "--json").facts == expected_facts(tmp_path, TOTAL)


# --- demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_kills_a_worker_goes_on_and_agrees_with_one_shard(tmp_path: Path) -> None:
    ran = cli("demo", "--limit", 60_000, "--shards", 2, "--chunk", 1000, "--json", TMPDIR=str(tmp_path))
    assert ran.code == 0, ran.err
    facts = ran.facts
    assert list(facts) == [
        "entries", "bytes", "shards", "entries_per_second", "bytes_on_disk", "restart_ms", "snapshot_at", "digest",
    ]  # fmt: skip
    assert (facts["entries"], facts["shards"]) == (60_000, 2)
    assert "killed worker" in ran.err
    assert re.search(r"came back as \d+; restarts: [1-9]", ran.err)
    assert "agree with those of a one-shard engine fed the same log" in ran.err
    assert "agree with those of 3 shards that were given the snapshot and the rest" in ran.err
    assert 20_000 <= facts["snapshot_at"] < 60_000
    assert list(tmp_path.iterdir()) == []


def test_the_demo_ends_with_a_table_and_keeps_the_directory_it_was_given(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ran = cli("demo", "--data", data, "--limit", 20_000, "--shards", 3, "--quiet", TMPDIR=str(tmp_path))
    assert (ran.code, ran.err) == (0, "")
    for row in ("entries", "bytes", "shards", "entries per second", "bytes on disk", "restart ms", "digest"):
        assert re.search(rf"│ {row} +│", ran.out), row
    assert list(tmp_path.iterdir()) == [data]
    assert cli("stats", "--data", data, "--json").facts["entries"] == 20_000
    again = cli("demo", "--data", data, "--limit", 10)
    assert again.code == 2
    assert "is not empty" in again.err


def test_a_demo_stopped_half_way_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    with running("demo", "--limit", 300_000, "--shards", 2, "--chunk", 500, TMPDIR=str(tmp_path)) as demo:
        demo.error_line("killed worker")
        os.killpg(demo.process.pid, signal.SIGTERM)
        ran = demo.end(close_stdin=False)
        assert demo.workers() == []
    assert (ran.code, ran.out) == (143, "")
    assert "stopped by SIGTERM" in ran.err
    assert list(tmp_path.iterdir()) == []
