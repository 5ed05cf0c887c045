"""The commands about snapshots and shard counts, as a shell runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import cli

ROOT = Path(__file__).resolve().parent.parent


def shardengine(*arguments: object, input: str = "", code: int = 0) -> str:
    done = cli(*arguments, stdin=input)
    assert done.code == code, done.out + done.err
    return done.out if code == 0 else done.out + done.err


def facts(*arguments: object) -> Any:
    return json.loads(shardengine(*arguments, "--json"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "data"
    records = "".join(f"key{number}\tvalue{number}\n" for number in range(500))
    shardengine("load", "-", "--data", path, "--shards", 2, "--format", "tsv", input=records)
    return path


def test_a_snapshot_restores_into_another_shard_count_with_the_same_digest(data: Path, tmp_path: Path) -> None:
    taken = facts("snapshot", "--data", data)
    assert (taken["index"], taken["entries"], taken["shards"]) == (500, 500, 2)
    assert taken in facts("snapshots", "--data", data)["snapshots"]
    assert facts("verify", "--snapshot", taken["path"])["ok"]
    other = tmp_path / "other"
    assert facts("restore", taken["path"], "--data", other, "--shards", 5)["entries"] == 500
    assert facts("stats", "--data", other)["shards"] == 5
    assert facts("digest", "--data", other) == facts("digest", "--data", data)


def test_an_exported_snapshot_travels_as_one_file(data: Path, tmp_path: Path) -> None:
    taken = facts("snapshot", "--data", data)
    file, other = tmp_path / "one.file", tmp_path / "other"
    shardengine("export", taken["path"], file)
    shardengine("load", "-", "--data", other, "--shards", 1, "--format", "tsv", input="a\tb\n")
    path = facts("import", file, "--data", other)["path"]
    assert Path(path).parent == other / "snapshots"
    shardengine("restore", path, "--data", other)
    assert shardengine("get", "key7", "--data", other) == "value7\n"
    file.write_bytes(file.read_bytes()[:-5])
    assert "error:" in shardengine("import", file, "--data", other, code=3)


def test_resharding_keeps_every_record(data: Path, tmp_path: Path) -> None:
    before = facts("digest", "--data", data)
    assert facts("reshard", data, "--shards", 7, "--quiet")["before"] == 2
    assert facts("stats", "--data", data)["shards"] == 7
    assert facts("digest", "--data", data) == before
    assert facts("verify", "--data", data)["ok"]
    shardengine("reshard", data, "--shards", 2, "--quiet")
    assert cli("reshard", data, "--shards", 2).err == f"{data} has 2 shards already; nothing to do\n"


def test_a_damaged_snapshot_is_found_and_not_restored(data: Path, tmp_path: Path) -> None:
    taken = facts("snapshot", "--data", data)
    shardengine("export", taken["path"], tmp_path / "file")
    shardengine("load", "-", "--data", tmp_path / "other", "--shards", 1, "--format", "tsv", input="a\tb\n")
    copy = Path(facts("import", tmp_path / "file", "--data", tmp_path / "other")["path"])
    part = copy / "shard-001.mdb"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert "shard-001.mdb" in shardengine("verify", "--snapshot", copy, code=1)
    assert "shard-001.mdb" in shardengine("restore", copy, "--data", tmp_path / "other", code=3)
    assert shardengine("get", "a", "--data", tmp_path / "other") == "b\n"


def test_an_older_snapshot_wants_force(data: Path, tmp_path: Path) -> None:
    taken = facts("snapshot", "--data", data)
    other = tmp_path / "other"
    records = "".join(f"k{number}\tv\n" for number in range(600))
    shardengine("load", "-", "--data", other, "--shards", 2, "--format", "tsv", input=records)
    assert "--force" in shardengine("restore", "--help")
    assert "600" in shardengine("restore", taken["path"], "--data", other, code=3)
    assert facts("restore", taken["path"], "--data", other, "--force")["index"] == 500


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify",),
        ("snapshot", "--data", "nowhere"),
        ("snapshots", "--data", "nowhere"),
        ("restore", "nowhere", "--data", "x"),
        ("reshard", "nowhere", "--shards", "2"),
        ("reshard", ".", "--shards", "0"),
        ("export", "nowhere", "file"),
    ],
)
def test_wrong_use_is_exit_code_two(arguments: tuple[str, ...]) -> None:
    assert "Error" in shardengine(*arguments, code=2)


def test_export_writes_through_pipes_and_devices_and_replaces_nothing_unasked(data: Path, tmp_path: Path) -> None:
    taken, file = facts("snapshot", "--data", data)["path"], tmp_path / "file"
    assert facts("export", taken, file) == {"path": str(file)}
    content = file.read_bytes()
    file.write_bytes(b"precious")
    assert "--force" in shardengine("export", taken, file, code=2)
    assert file.read_bytes() == b"precious"
    shardengine("export", taken, file, "--force")
    assert file.read_bytes() == content
    link, fifo, null = tmp_path / "link", tmp_path / "fifo", Path("/dev/null")
    link.symlink_to("file")
    assert "symbolic link" in shardengine("export", taken, link, "--force", code=2)
    assert link.is_symlink()
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        shardengine("export", taken, fifo, "--force")
        assert reader.communicate(timeout=100)[0] == content
    assert fifo.is_fifo()
    before = null.stat()
    shardengine("export", taken, null, "--force")
    assert (null.stat().st_rdev, null.stat().st_ino) == (before.st_rdev, before.st_ino)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "file", "link"]


def test_a_dash_is_a_standard_stream_and_never_a_file(data: Path, tmp_path: Path) -> None:
    taken = facts("snapshot", "--data", data)["path"]
    program = 'cd "$2"; "$0" -m shardengine export "$1" - | "$0" -m shardengine restore - --data new --shards 3 --json'
    done = subprocess.run(
        ["/bin/sh", "-c", program, sys.executable, taken, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entries"] == 500
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_exported_file_is_verified_imported_and_restored_where_no_engine_was(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    shardengine("export", facts("snapshot", "--data", data)["path"], file)
    assert facts("verify", file) == {"ok": True, "findings": [], "index": 500, "term": 1, "shards": 2}
    path = facts("import", file, "--data", tmp_path / "imported", "--shards", 3)["path"]
    assert facts("verify", path)["ok"]
    assert facts("stats", "--data", tmp_path / "imported")["entries"] == 0
    (tmp_path / "empty").mkdir()
    assert facts("restore", file, "--data", tmp_path / "empty", "--shards", 3)["entries"] == 500
    assert facts("digest", "--data", tmp_path / "empty") == facts("digest", "--data", data)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    damaged = json.loads(shardengine("verify", file, "--json", code=1))
    assert (damaged["ok"], damaged["findings"][0]["shard"]) == (False, None)
    file.write_bytes(bytes(content[:-100]))
    assert not json.loads(shardengine("verify", file, "--json", code=1))["ok"]
    assert "holds no engine" in shardengine("verify", tmp_path, code=2)


def test_compacting_gives_back_what_deleted_records_left_and_changes_nothing_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    puts = "".join(f'{{"key": "k{number}", "value": "{"v" * 1000}"}}\n' for number in range(3000))
    deletes = "".join(f'{{"op": "delete", "key": "k{number}"}}\n' for number in range(2990))
    shardengine("load", "-", "--data", data, "--shards", 2, "--format", "jsonl", input=puts + deletes)
    before = facts("digest", "--data", data)
    ran = facts("compact", data)
    assert (ran["path"], ran["entries"]) == (str(data), 10)
    assert ran["bytes_after"] < ran["bytes_before"] - 1_000_000
    assert facts("digest", "--data", data) == before
    assert facts("verify", "--data", data)["ok"]
    assert "holds no engine" in shardengine("compact", tmp_path, code=2)
