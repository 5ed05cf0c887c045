"""The command line where standard streams are closed, full, piped or asked for completions; and who may use it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shardengine.engine.cli.hints import in_command_words
from tests.commands import ROOT, WATCHDOG_S, cli, command, environment, records, started


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a long path and 20 records; only read from."""
    data = tmp_path_factory.mktemp("a-folder-whose-name-is-longer-than-any-column-of-a-table-would-be" * 2) / "data"
    assert cli("load", "-", "--data", data, "--shards", 2, stdin=records(1, 20).decode()).code == 0
    return data


def shell(line: str, *args: object, **env: str) -> tuple[int, str, str]:
    """`line` in a shell, where "$@" is the command with its arguments."""
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *command(*args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        env=environment(**env),
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


# --- closed and full ----------------------------------------------------------------------------------------------


def test_closed_streams_are_named_and_no_data_file_takes_their_place(loaded: Path) -> None:
    code, _, err = shell('"$@" >&-', "scan", "--data", loaded)
    assert (code, err.splitlines()[0]) == (3, "error: standard output: Bad file descriptor")
    assert shell('"$@" 2>&-', "scan", "--data", loaded) == (0, records(1, 20).decode(), "")
    assert shell('"$@" 2>&-', "get", "absent", "--data", loaded)[0] == 1
    assert shell('"$@" 2>&-', "get", "--data", loaded)[0] == 2
    code, _, err = shell('"$@" <&-', "load", "-", "--data", loaded)
    assert (code, err.splitlines()[0]) == (3, "error: standard input: Bad file descriptor")
    assert shell('"$@" <&- >&- 2>&-', "scan", "--data", loaded)[0] == 3
    assert cli("verify", "--data", loaded).out == "no damage found\n"


def test_a_full_disk_behind_standard_output_is_named(loaded: Path) -> None:
    code, _, err = shell('"$@" >/dev/full', "scan", "--data", loaded)
    assert (code, err) == (3, "error: standard output: No space left on device\nhint: free disk space\n")


def test_what_nobody_listens_to_leaves_the_exit_code_alone(loaded: Path) -> None:
    """A warning that is logged stays in the buffer of a standard error that is gone."""
    program = (
        "import logging, sys; from shardengine.engine.cli import main; "
        "logging.getLogger('shardengine').warning('a warning'); "
        "sys.exit(main(sys.argv[1:]))"
    )
    receive, send = os.pipe()
    os.close(receive)
    done = subprocess.run(
        [sys.executable, "-c", program, "digest", "--data", str(loaded)],
        stdout=subprocess.DEVNULL,
        stderr=send,
        cwd=ROOT,
        env=environment(),
        timeout=WATCHDOG_S,
        check=False,
    )
    os.close(send)
    assert done.returncode == 0


def test_nobody_listening_to_remarks_stops_no_load(tmp_path: Path) -> None:
    receive, send = os.pipe()
    os.close(receive)
    for _ in range(2):  # the second time it says that all was loaded before
        done = subprocess.run(
            command("load", "-", "--data", tmp_path / "data", "--shards", 1),
            input=records(1, 5),
            stdout=subprocess.DEVNULL,
            stderr=send,
            env=environment(),
            timeout=WATCHDOG_S,
            check=False,
        )
        assert done.returncode == 0
    os.close(send)
    assert cli("get", "key-0000005", "--data", tmp_path / "data").out == "value of 5\n"


# --- piped --------------------------------------------------------------------------------------------------------


def test_what_is_piped_is_neither_padded_nor_wrapped_nor_grouped(loaded: Path) -> None:
    assert f"path: {loaded}/snapshots/" in cli("snapshot", "--data", loaded).out
    stats = cli("stats", "--data", loaded).out.splitlines()
    assert all(re.fullmatch(r"[a-z_0-9 ]+: \S.*\S|[a-z_0-9 ]+: \S", line) for line in stats), stats
    paths = [line for line in cli("snapshots", "--data", loaded).out.splitlines() if line.startswith("path: ")]
    assert [Path(line.removeprefix("path: ")).is_dir() for line in paths] == [True]


def test_every_json_is_one_object_on_one_line(loaded: Path, tmp_path: Path) -> None:
    taken = cli("snapshot", "--data", loaded, "--json").facts["path"]
    commands: list[list[object]] = [
        ["snapshots", "--data", loaded],
        ["verify", taken],
        ["verify", "--data", loaded],
        ["export", taken, tmp_path / "file"],
        ["import", tmp_path / "file", "--data", tmp_path / "new"],
        ["restore", tmp_path / "file", "--data", tmp_path / "new"],
        ["stats", "--data", loaded],
        ["reshard", tmp_path / "new", "--shards", 3],
    ]
    for line in commands:
        ran = started(*line, "--json")
        assert ran.code == 0, ran.err
        assert ran.out.count("\n") == 1
        assert isinstance(ran.facts, dict), line


def test_names_that_are_no_utf8_come_out_as_the_bytes_they_are(tmp_path: Path) -> None:
    assert cli("load", "-", "--data", tmp_path / "d", "--shards", 1, stdin="a\t1\n").code == 0
    assert cli("snapshot", "--data", tmp_path / "d").code == 0
    data = os.fsencode(tmp_path) + b"/d\xff"
    (tmp_path / "d").rename(os.fsdecode(data))

    def listed(*args: str) -> bytes:
        line: list[str | bytes] = [*command("snapshots", *args, "--data"), data]
        return subprocess.run(line, stdout=subprocess.PIPE, env=environment(), timeout=WATCHDOG_S, check=True).stdout

    (found,) = json.loads(listed("--json"))["snapshots"]
    assert os.fsencode(found["path"]).startswith(data + b"/snapshots/")
    assert b"path: " + data + b"/snapshots/" in listed()


def test_paging_hints_are_arguments_that_a_shell_takes_whatever_the_keys_are(tmp_path: Path) -> None:
    keys = [b"\x00\xff", b"-dash", b"a b'c", b"a\tb", b"b", b"\xc3\xa4", b"\xe2\x80\xae"]
    text = "".join(json.dumps({"key_hex": key.hex(), "value": "v"}) + "\n" for key in keys)
    data = tmp_path / "da ta"
    assert cli("load", "-", "--data", data, "--shards", 2, "--format", "jsonl", stdin=text).code == 0
    found: list[bytes] = []
    line: list[object] = ["scan", "--data", data, "--limit", 2, "--json"]
    while line:
        ran = cli(*line)
        assert ran.code == 0, ran.err
        for row in map(json.loads, ran.out.splitlines()):
            found.append(bytes.fromhex(row["key_hex"]) if "key_hex" in row else row["key"].encode())
        line = list(shlex.split(ran.err.removeprefix("more follows; to go on: "))[1:])
    assert found == sorted(keys)


# --- options ------------------------------------------------------------------------------------------------------


def test_a_shell_gets_its_completions(tmp_path: Path) -> None:
    done = cli(_SHARDENGINE_COMPLETE="bash_source")
    assert (done.code, "_shardengine_completion" in done.out) == (0, True)
    done = cli(_SHARDENGINE_COMPLETE="bash_complete", COMP_WORDS="shardengine sna", COMP_CWORD="1")
    assert [line.partition(",")[2] for line in done.out.split()] == ["snapshot", "snapshots"]


def test_the_directory_may_come_from_the_environment(loaded: Path, tmp_path: Path) -> None:
    assert cli("get", "key-0000007", SHARDENGINE_DATA=str(loaded)).out == "value of 7\n"
    assert cli("get", "key-0000007", "--data", loaded, SHARDENGINE_DATA="elsewhere").code == 0
    empty = cli("get", "key-0000007", SHARDENGINE_DATA="")
    assert (empty.code, "--data" in empty.err) == (2, True)
    assert cli("verify", SHARDENGINE_DATA=str(loaded)).code == 0
    taken = cli("snapshot", "--json", SHARDENGINE_DATA=str(loaded)).facts["path"]
    assert cli("verify", taken, SHARDENGINE_DATA="elsewhere").code == 0
    assert cli("demo", "--limit", 10, "--quiet", SHARDENGINE_DATA=str(loaded), TMPDIR=str(tmp_path)).code == 0


def test_foreign_variables_are_named_and_with_quiet_they_are_not(loaded: Path) -> None:
    ran = cli("get", "key-0000007", "--data", loaded, SHARDENGINE_PORT="tcp://10.0.0.1:7", SHARDENGINE_DURABILITY="")
    assert (ran.code, ran.out) == (0, "value of 7\n")
    assert ran.err == "no setting is called so, ignored: SHARDENGINE_PORT\n"
    ran = cli("scan", "--limit", 1, "--quiet", "--data", loaded, SHARDENGINE_PORT="tcp://10.0.0.1:7")
    assert (ran.code, ran.err) == (0, "")


def test_a_directory_of_another_machine_opens_with_that_machine(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from shardengine import KeyValue\nclass Outer:\n  class Mine(KeyValue):\n    name = 'mine'\n"
    )
    there = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    args: tuple[object, ...] = ("--data", tmp_path / "data", "--machine", "mine:Outer.Mine")
    assert cli("load", "-", *args, "--shards", 2, stdin="a\t1\n", **there).code == 0
    assert cli("get", "a", *args, **there).out == "1\n"
    assert cli("verify", *args, **there).out == "no damage found\n"
    without = cli("get", "a", *args[:2])
    assert (without.code, "--machine MODULE:CLASS" in without.err) == (3, True)
    for wrong in ("mine", "mine:Absent", "absent:Mine", "mine:Outer", "os:path"):
        ran = cli("get", "a", "--data", tmp_path / "data", "--machine", wrong, **there)
        assert (ran.code, "--machine" in ran.err) == (2, True), wrong


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("raise map_bytes", "SHARDENGINE_MAP_BYTES=..."),
        ("restore(path, force=True) goes back", "--force"),
        ("open it with shards=3 or None, or convert it", "--shards 3 or without --shards"),
        (
            'feed it with after_power_loss="empty", or use durability="power"',
            "SHARDENGINE_AFTER_POWER_LOSS=..., SHARDENGINE_D",
        ),
    ],
)
def test_hints_speak_of_what_the_command_line_has(hint: str, said: str) -> None:
    assert said in in_command_words(hint)
    assert in_command_words("free disk space") == "free disk space"


def test_a_full_map_says_how_to_raise_it_from_the_command_line(tmp_path: Path) -> None:
    text = "".join(f"k{n}\t{'v' * 500_000}\n" for n in range(16))
    ran = cli("load", "-", "--data", tmp_path / "d", "--shards", 1, stdin=text, SHARDENGINE_MAP_BYTES=str(4 << 20))
    assert ran.code == 3
    assert "SHARDENGINE_MAP_BYTES=..." in ran.err
    again = cli("load", "-", "--data", tmp_path / "d", "--json", stdin=text)
    assert (again.code, again.facts["entries"]) == (0, 16)


# --- whose directory ----------------------------------------------------------------------------------------------

NOBODY = 65_534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_command_of_another_user_than_the_directorys_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    data, new = tmp_path / "data", tmp_path / "new"
    assert cli("load", "-", "--data", data, "--shards", 1, stdin="a\t1\n").code == 0
    taken = cli("snapshot", "--data", data, "--json").facts["path"]
    new.mkdir()
    for path in (new, data, *data.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    before = {path: path.stat().st_mtime_ns for path in (data, *data.rglob("*"))}
    commands: list[tuple[object, ...]] = [
        *((name, "--data", data) for name in ("scan", "digest", "stats", "verify", "snapshot")),
        ("get", "a", "--data", data),
        *(("load", "-", "--data", folder) for folder in (data, new)),
        *(("restore", taken, "--data", folder) for folder in (data, new)),
        *(("import", __file__, "--data", folder) for folder in (data, new)),
        ("reshard", data, "--shards", 2),
        ("demo", "--limit", 1, "--data", new),
    ]
    for line in commands:
        ran = cli(*line)
        assert (ran.code, ran.out) == (3, ""), line
        assert "belongs to user" in ran.err
        assert "hint: run it as that user: sudo -u " in ran.err
    assert {path: path.stat().st_mtime_ns for path in (data, *data.rglob("*"))} == before
    assert list(new.iterdir()) == []
    os.chown(data, 0, 0)  # a mount that root made, for instance
    assert "belongs to user" in cli("get", "a", "--data", data).err
    assert cli("snapshots", "--data", data).code == 0  # reads, and makes nothing


# --- progress -----------------------------------------------------------------------------------------------------


def test_progress_off_a_terminal_is_plain_lines_and_with_quiet_nothing() -> None:
    program = """
        import sys, time
        from shardengine.engine.cli import progress
        progress.PLAIN_INTERVAL_S = 0.0
        for quiet in (False, True):
            with progress.Progress("load", 1000, quiet=quiet) as shown:
                shown.update(5, 500)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        env=environment(),
        check=False,
    )
    assert re.fullmatch(r"load:  50 %, 5 entries, [\d,]+/s, \S+ s left\n", done.stderr), done.stderr
