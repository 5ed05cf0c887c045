"""A history as a file: what is read is what was written, in a form that other checkers can take."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import ApplyResult, HistoryError, Put, encode
from shardengine.conformance import History
from shardengine.engine.conformance.operations import Operation
from tests.history_world import World

VALUES: list[Any] = [None, True, 7, 1.5, float("nan"), "ä", b"\x00\xff", [b"a", "a"], {"k": b"v"}, {1: "one"}, (1, 2)]


def told(operation: Operation) -> tuple[str, dict[str, Any]]:
    return type(operation).__name__, {
        name: getattr(operation, name) for name in operation.__struct_fields__ if name != "order"
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_history_that_is_read_again_is_the_same_and_judged_alike(tmp_path: Path, seed: int) -> None:
    world = World(random.Random(seed), operations=80)
    world.run()
    world.history.write(tmp_path / "history")
    again = History.read(tmp_path / "history")
    assert list(map(told, again.operations)) == list(map(told, world.history.operations))
    assert again.check(world.log) == world.history.check(world.log)
    again.begin_get([b"a"]).ok([world.states[-1].get(b"a")])
    assert again.check(world.log).valid, "it goes on where it ended"


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_whatever_a_machine_answers_is_kept(tmp_path: Path, value: Any) -> None:
    history = History()
    travelled = msgspec.msgpack.decode(msgspec.msgpack.encode(value), strict=False)
    history.begin_propose([b"\xff\x00"]).ok([ApplyResult(1, True, travelled)])
    history.write(tmp_path / "history")
    (operation,) = History.read(tmp_path / "history").operations
    assert repr(told(operation)) == repr(told(history.operations[0]))


def test_the_lines_are_those_of_a_jepsen_history(tmp_path: Path) -> None:
    history = History()
    write = history.begin_propose([encode(Put(b"k", b"\xff"))], session="one")
    read = history.begin_get([b"k"])
    write.ok([ApplyResult(1, True)])
    read.failed(TimeoutError("too late"))
    history.begin_propose([encode(Put(b"k", b""))]).unknown("nobody knows")
    history.begin_get([b"k"])
    history.write(tmp_path / "history")
    lines = [json.loads(line) for line in (tmp_path / "history").read_text().splitlines()]
    assert all(line.pop("time") > 0 for line in lines)
    assert [(line["n"], line["process"], line["type"], line["f"]) for line in lines] == [
        (1, 0, "invoke", "propose"),
        (2, 1, "invoke", "get"),
        (3, 0, "ok", "propose"),
        (4, 1, "fail", "get"),
        (5, 0, "invoke", "propose"),
        (6, 0, "info", "propose"),
        (7, 1, "invoke", "get"),
    ], "a process does one thing at a time, and nothing after an info"
    assert lines[0]["value"] == {"data": ["\x93\x01\xc4\x01k\xc4\x01\xff"], "commands": [[1, "k", "\xff"]]}
    assert lines[0]["session"] == "one" and "session" not in lines[1]
    assert lines[2]["value"]["results"][0]["index"] == 1
    assert lines[3]["error"] == "TimeoutError: too late"
    with pytest.raises(FileExistsError):
        history.write(tmp_path / "history")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        ('{"n": 1, "process": 0, "type": "invoke", "f": "get"}', "number 1 behind 3"),
        ('{"n": 4, "process": 0, "type": "invoke", "f": "get", "value": {}}', "two things at a time"),
        ('{"n": 4, "process": 0, "type": "ok", "f": "scan"}', "something else"),
        ('{"n": 4, "process": 0, "type": "event", "f": "get"}', "does not watch"),
        ('{"n": 4, "process": 0, "type": "done", "f": "get"}', "the type 'done'"),
        ('{"n": 4, "process": 0, "type": "ok", "f": "get", "value": {"values": ["\u0100"], "revision": 1}}', "Unicode"),
        ('{"n": 4, "process": 0, "type": "ok", "f": "get", "value": {"values": [5], "revision": 1}}', "encode"),
        ('{"n": 4, "process": 7, "type": "ok", "f": "get"}', "KeyError: 7"),
        ('{"n": 4, "process": 1, "type": "invoke", "f": "sing"}', "KeyError: 'sing'"),
        ('{"n": 4, "process": 1, "type": "invoke", "f": "get"}', "KeyError: 'keys'"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, line: str, said: str) -> None:
    history = History()
    history.begin_get([b"a"]).ok([None])
    history.begin_get([b"b"])
    history.write(tmp_path / "history")
    with (tmp_path / "history").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(HistoryError, match=r"line 4 of .*history is none of a history") as caught:
        History.read(tmp_path / "history")
    assert said in str(caught.value) and caught.value.line == 4


def test_an_empty_file_is_an_empty_history(tmp_path: Path) -> None:
    (tmp_path / "history").touch()
    assert History.read(tmp_path / "history").check([]).valid
