"""The command line, as real processes: what it prints, and what it exits with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import WATCHDOG_S, cli, command, environment, records, running, started

COMMANDS = ["demo", "load", "get", "scan", "digest", "stats", "verify"]


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
    ran = started("--help")
    assert ran.code == 0
    assert "0 done, 1 the data says no, 2 wrong use, 3 the engine could not" in ran.out
    assert started("--version").out.startswith("shardengine ")


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
    from_environment = cli("load", "-", "--data", tmp_path / "data", SHARDENGINE_VIEWS_MAX="many")
    assert from_environment.code == 2
    assert "views_max = 'many' (environment variable SHARDENGINE_VIEWS_MAX)" in from_environment.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_how_to_get_it_and_the_engine_imports(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; "
        "import shardengine; from shardengine.engine.cli import main; sys.exit(main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=WATCHDOG_S, env=environment(), check=False
    )
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.decode() == f"error: the command line needs {missing}: pip install 'shardengine[cli]'\n"


# --- facts --------------------------------------------------------------------------------------------------------


def test_get_prints_the_value_and_exits_1_for_a_key_that_is_not_there(loaded: Path) -> None:
    assert started("get", "key-0000042", "--data", loaded).out == "value of 42\n"
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
    assert started("scan", "--data", loaded).out.encode() == records(1, 3000)


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
    digest = started("digest", "--data", loaded, "--json").facts
    assert (digest["index"], digest["term"], digest["entries"]) == (3000, 1, 3000)
    assert re.fullmatch("[0-9a-f]{32}", digest["digest"])
    stats = cli("stats", "--data", loaded, "--json").facts
    assert (stats["shards"], stats["entries"]) == (3, 3000)
    assert stats["last_applied"] == {"index": 3000, "term": 1}
    assert [shard["shard"] for shard in stats["per_shard"]] == [0, 1, 2]
    assert sum(shard["entries"] for shard in stats["per_shard"]) == 3000
    assert (stats["engine"], stats["pid"]) == ("stopped", None)
    assert stats["bytes_on_disk"] > len(records(1, 3000))
    assert cli("verify", "--data", loaded, "--json").facts == {"ok": True, "findings": []}


def test_digest_stats_and_verify_as_text(loaded: Path) -> None:
    assert re.fullmatch("[0-9a-f]{32}\n", cli("digest", "--data", loaded).out)
    assert "last_applied: index 3000, term 1\n" in cli("stats", "--data", loaded).out
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


# --- demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_kills_a_worker_goes_on_and_agrees_with_one_shard(tmp_path: Path) -> None:
    ran = started("demo", "--limit", 60_000, "--shards", 2, "--chunk", 1000, "--json", TMPDIR=str(tmp_path))
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


def test_the_demo_ends_with_its_facts_and_keeps_the_directory_it_was_given(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ran = cli("demo", "--data", data, "--limit", 20_000, "--shards", 3, "--quiet", TMPDIR=str(tmp_path))
    assert (ran.code, ran.err) == (0, "")
    for row in ("entries", "bytes", "shards", "entries_per_second", "bytes_on_disk", "restart_ms", "digest"):
        assert re.search(rf"^{row}: \S+$", ran.out, re.MULTILINE), row
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
