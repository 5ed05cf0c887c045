"""`put`, `delete` and `cas` go through the log of the node in a directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardengine.node import MemoryLog, Node
from tests.commands import cli, started


def test_a_key_is_put_swapped_and_deleted_through_the_log(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "fruit"))
    assert started("put", "apple", "red", *data, "--shards", "2").out == "index: 1\nposition: 1\n"
    ran = cli("cas", "apple", "green", "--expected", "red", *data, "--json")
    assert json.loads(ran.out) == {"key": "apple", "succeeded": True, "index": 2, "position": 2}
    assert cli("get", "apple", *data).out == "green\n"
    ran = cli("cas", "apple", "blue", "--expected", "red", *data)
    assert (ran.code, ran.out) == (1, "") and ran.err == "error: compare failed, at index 3\n"
    assert started("cas", "ff00", "00", "--absent", "--hex", *data).code == 0
    assert cli("cas", "ff00", "00", "--absent", "--hex", *data).code == 1
    assert started("delete", "apple", *data).code == 0
    assert cli("get", "apple", *data).code == 1
    assert cli("verify", *data).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("put", "apple"), 2, "Missing argument 'VALUE'"),
        (("cas", "apple", "red"), 2, "--expected, or --absent"),
        (("cas", "apple", "red", "--expected", "x", "--absent"), 2, "--expected, or --absent"),
        (("put", "zz", "00", "--hex"), 2, "'zz' is not hexadecimal"),
        (("put", "", "red"), 3, "a key of 0 bytes"),
        (("put", "k" * 481, "red"), 3, "a key of 481 bytes"),
    ],
)
def test_what_cannot_be_proposed_is_refused_and_no_entry_of_the_log(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ran = cli(*arguments, "--data", str(tmp_path / "fruit"), "--shards", "1")
    assert ran.code == code and said in ran.err and ran.out == ""
    assert cli("put", "k", "v", "--data", str(tmp_path / "fruit")).out.startswith("index: 1\n")


async def test_a_directory_that_is_in_use_or_fed_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "fruit"))
    async with Node(tmp_path / "fruit", log=MemoryLog(), shards=1):
        ran = cli("put", "k", "v", *data)
        assert ran.code == 3 and "is held by process" in ran.err
    ran = cli("put", "k", "v", *data)
    assert ran.code == 3 and "was made from the log" in ran.err
    (tmp_path / "lines").write_text("a\tb\n")
    ran = cli("load", str(tmp_path / "lines"), *data)
    assert ran.code == 2 and "is a node's" in ran.err
    loaded = ("--data", str(tmp_path / "loaded"))
    assert cli("load", str(tmp_path / "lines"), *loaded, "--shards", "1").code == 0
    ran = cli("put", "k", "v", *loaded)
    assert ran.code == 3 and "was fed without a node" in ran.err
    assert cli("get", "a", *loaded).out == "b\n"
