"""The command `log`, as a shell runs it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from shardengine import run
from shardengine.engine.node.frames import Frame, FrameIds, encode_frame
from shardengine.engine.node.local.looking import overview, walk
from shardengine.engine.node.local.segments import LOCK
from tests.commands import cli, started
from tests.local_logs import SEGMENT, content, copied, opened, records, small

DATAS = [[b"%d of %d" % (number, count) + bytes(150) for number in range(count)] for count in range(1, 6)] * 4
ENTRIES = sum(map(len, DATAS))
LAST = len(DATAS)


async def write(path: Path) -> None:
    log, ids = small(path), FrameIds()
    await log.open()
    for datas in DATAS:
        await log.append([encode_frame(Frame(next(ids), datas))])
    await log.aclose()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a log in `log`; only read from."""
    path = tmp_path_factory.mktemp("node")
    run(lambda: write(path / "log"))
    return path


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_log_is_described_by_its_directory_or_its_nodes_and_nothing_is_changed(node: Path) -> None:
    before = content(node / "log")
    ran = cli("log", node, "--json")
    assert ran == started("log", node / "log", "--json") and (ran.code, ran.err) == (0, "")
    facts = ran.facts
    segments = len(list((node / "log").glob("*.log")))
    assert (facts["segments"], facts["bytes"]) == (segments, segments * SEGMENT) and segments > 2
    assert (facts["first"], facts["last"], facts["closed"]) == (1, LAST, True)
    assert len(facts["identity"]) == 32 and facts["first_time"] <= facts["last_time"]
    assert f"last: {LAST}\n" in cli("log", node).out
    assert content(node / "log") == before


def test_every_record_and_frame_is_verified(node: Path) -> None:
    facts = cli("log", node, "--verify", "--json").facts
    assert (facts["ok"], facts["frames"], facts["entries"], facts["verified_up_to"]) == (True, LAST, ENTRIES, LAST)


def test_damage_exits_1_and_names_file_and_offset(node: Path, tmp_path: Path) -> None:
    file, record, _ = records(node / "log")[7]
    spoilt = copied(node / "log", tmp_path / "spoilt")
    with (spoilt / file.name).open("r+b") as damaged:
        damaged.seek(record.at + 60)
        damaged.write(b"?")
    ran = cli("log", spoilt, "--verify", "--json")
    assert ran.code == 1 and (ran.facts["ok"], ran.facts["offset"]) == (False, record.at)
    assert ran.facts["path"] == str(spoilt / file.name)
    ran = cli("log", spoilt, "--dump")
    assert ran.code == 1 and lines(ran.out)[-1]["position"] == 7
    assert f"{file.name}, offset {record.at}" in ran.err


def test_a_frame_that_is_none_is_found_though_its_record_is_whole(tmp_path: Path) -> None:
    async def foreign() -> None:
        log = small(tmp_path / "log")
        await log.open()
        await log.append([b"no frame"])
        await log.aclose()

    run(foreign)
    assert cli("log", tmp_path).code == 0
    ran = cli("log", tmp_path, "--verify", "--json")
    assert ran.code == 1 and (ran.facts["position"], ran.facts["offset"]) == (1, 64)


def test_every_entry_is_dumped_as_one_line_of_json(node: Path) -> None:
    found = lines(cli("log", node, "--dump").out)
    assert [base64.b64decode(line["data"]) for line in found] == [data for datas in DATAS for data in datas]
    assert [line["number"] for line in found] == [number for datas in DATAS for number in range(len(datas))]
    assert [line["position"] for line in found] == [at for at, datas in enumerate(DATAS, 1) for _ in datas]
    assert len({line["frame"] for line in found}) == LAST and all(len(line["frame"]) == 32 for line in found)
    assert sorted(line["time_ms"] for line in found) == [line["time_ms"] for line in found]


def test_a_dump_begins_and_ends_where_it_is_told(node: Path) -> None:
    whole = lines(cli("log", node, "--dump").out)
    ran = cli("log", node, "--dump", "--after", 9, "--limit", 7)
    assert lines(ran.out) == [line for line in whole if line["position"] > 9][:7]
    assert "--after 11" in ran.err
    assert lines(cli("log", node, "--dump", "--after", LAST).out) == []


def test_a_log_is_read_while_a_process_appends_to_it(tmp_path: Path) -> None:
    async def beside() -> None:
        log, ids = small(tmp_path / "log"), FrameIds()
        await log.open()
        await log.append([encode_frame(Frame(next(ids), [b"first"]))])
        before = content(tmp_path / "log")
        lock = (tmp_path / "log" / LOCK).read_bytes()
        ran = cli("log", tmp_path, "--verify", "--json")
        assert (ran.code, ran.facts["last"], ran.facts["closed"]) == (0, 1, False)
        assert "read up to position 1: the log is open" in ran.err
        assert content(tmp_path / "log") == before and (tmp_path / "log" / LOCK).read_bytes() == lock
        await log.append([encode_frame(Frame(next(ids), [b"second"]))])
        assert [line["position"] for line in lines(cli("log", tmp_path, "--dump", "--quiet").out)] == [1, 2]
        await log.aclose()

    run(beside)


async def test_who_looks_sees_rising_positions_and_no_damage_while_the_log_is_written_and_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)
    ended, seen = threading.Event(), list[int]()

    def look() -> None:
        while not ended.is_set():
            positions = [record.position for _, record in walk(tmp_path / "log")]
            assert positions == sorted(set(positions))
            seen.append(overview(tmp_path / "log").last)

    async with opened(tmp_path / "log") as log:
        looking = asyncio.create_task(asyncio.to_thread(look))
        for number in range(800):
            positions = await log.append([bytes(number % 300)] * (1 + number % 5))
            if number % 50 == 0:
                await log.truncate_before(max(1, positions[-1] - 100))
        ended.set()
        await looking
    assert seen == sorted(seen) and len(seen) > 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--verify", "--dump"], "one at a time"), (["--after", "3"], "belong to --dump"), (["--limit", "0"], "--limit")],
)
def test_wrong_use_is_refused(node: Path, arguments: list[str], said: str) -> None:
    ran = cli("log", node, *arguments)
    assert ran.code == 2 and said in ran.err


def test_a_directory_without_a_log_is_refused(tmp_path: Path) -> None:
    ran = cli("log", tmp_path)
    assert ran.code == 2 and "holds no log" in ran.err
    assert not list(tmp_path.iterdir())
    assert "shardengine log node --verify" in cli("log", "--help").out
