"""`SyncNode`: the methods of a node, blocking, in any thread."""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardengine import (
    ApplyResult,
    CompareAndSwap,
    EngineLockedError,
    EngineStateError,
    EngineStoppedError,
    LogId,
    NodeStoppedError,
    Put,
    WrongThreadError,
    encode,
)
from shardengine.node import MemoryLog, Node, NodePolicy, SyncNode
from tests.inside import in_the_loop
from tests.model import Model, log_of
from tests.nodes import CONFIG

THREADS, TURNS = 16, 25


def node_at(place: Path) -> SyncNode:
    return SyncNode(place / "data", shards=2, config=CONFIG)


def test_every_public_method_of_a_node_is_there_with_its_arguments_and_its_result() -> None:
    names = {name for name in dir(Node) if not name.startswith("_")}
    assert {name for name in dir(SyncNode) if not name.startswith("_")} == names - {"aclose"} | {"close"}
    for name in names - {"aclose", "engine", "failure"} | {"__init__"}:
        assert inspect.signature(getattr(SyncNode, name)) == inspect.signature(getattr(Node, name)), name
        assert not inspect.iscoroutinefunction(getattr(SyncNode, name)), name
        assert getattr(SyncNode, name).__doc__ == getattr(Node, name).__doc__, name


def test_a_node_lives_through_all_of_it_and_starts_again(tmp_path: Path) -> None:
    threads = threading.enumerate()
    with node_at(tmp_path) as node:
        node.wait_ready(timeout=60)
        assert node.propose(Put(b"k", b"v")) == ApplyResult(1, True)
        results = node.propose_many(Put(b"m%d" % number, b"%d" % number) for number in range(20))
        assert [result.index for result in results] == list(range(2, 22))
        assert node.get(b"k") == node.get(b"k", at_least=21) == node.engine.get(b"k") == b"v"
        assert node.get_multi([b"m1", b"none"]) == [b"1", None]
        assert len(node.scan_prefix(b"m", limit=5, reverse=True).entries) == 5
        with node.view() as view:
            assert view.revision == 21
        assert node.barrier() == node.last_applied() == LogId(21, 2)
        assert not node.propose(CompareAndSwap(b"k", b"w", b"x")).succeeded
        info = node.snapshot()
        assert info.last_included.index == 22 and node.compact() >= 0
        status = node.status()
        assert (status.applied.index, status.failure, status.proposed) == (22, None, 0)
        assert node.is_running() and node.failure is None and bool(node.engine) and len(node.engine) == 21
        with pytest.raises(TimeoutError):
            node.get(b"k", at_least=99, timeout=0)
        with pytest.raises(EngineStateError, match="runs already"):
            node.start()
    for ask in (lambda: node.propose(b""), lambda: node.get(b"k"), node.barrier, node.status, node.snapshot):
        with pytest.raises(NodeStoppedError):
            ask()
    node.close()
    with node:
        assert node.get(b"k") == b"v" and node.propose(b"").index == 23
    assert threading.enumerate() == threads


def test_before_a_start_and_after_one_that_fails_it_refuses_by_name(tmp_path: Path) -> None:
    threads = threading.enumerate()
    node = node_at(tmp_path)
    for ask in (lambda: node.propose(b""), lambda: node.get(b"k"), node.barrier, lambda: node.engine.get(b"k")):
        with pytest.raises(EngineStateError, match="does not run"):
            ask()
    assert not node.is_running() and node.failure is None
    with node_at(tmp_path), pytest.raises(EngineLockedError):
        node.start()
    with node:
        assert node.propose(b"").succeeded
    assert threading.enumerate() == threads


def test_16_threads_propose_and_read_beside_a_model(tmp_path: Path) -> None:
    """Each reads its own writes at once, by a barrier and by their index; one key that all of them count up holds as
    many as succeeded; and the results, in the order of their indices, are those of a model."""
    told: list[tuple[int, bytes, ApplyResult]] = []
    log = MemoryLog()
    with SyncNode(tmp_path / "data", log=log, shards=2, config=CONFIG, policy=NodePolicy(linger_ms=0)) as node:

        def work(number: int) -> int:
            counted = 0
            for turn in range(TURNS):
                own = Put(b"own %d" % number, b"%d" % turn)
                result = node.propose(own)
                told.append((result.index, encode(own), result))
                by_index = node.engine.get(own.key), node.get(own.key, at_least=result.index)
                assert by_index == (own.value, own.value) and node.get(own.key) == own.value
                seen = node.get(b"count")
                count = CompareAndSwap(b"count", seen, b"%d" % (int(seen or 0) + 1))
                result = node.propose(count)
                told.append((result.index, encode(count), result))
                counted += result.succeeded
                assert int(node.get(b"count") or 0) >= int(seen or 0) + result.succeeded
            return counted

        with ThreadPoolExecutor(THREADS) as pool:
            counted = sum(pool.map(work, range(THREADS)))
        told.sort(key=lambda each: each[0])
        model = Model()
        assert [result for _, _, result in told] == model.apply(log_of([data for _, data, _ in told]))
        assert counted == int(node.get(b"count") or 0) > 0
        assert node.scan_prefix(b"").entries == model.scan(b"")


def test_what_is_applied_already_is_read_while_the_loop_is_busy(tmp_path: Path) -> None:
    going_on = threading.Event()
    with node_at(tmp_path) as node:
        index = node.propose(Put(b"k", b"v")).index
        in_the_loop(node, going_on.wait)
        assert node.engine.get(b"k") == node.get(b"k", at_least=index) == b"v"
        assert node.scan_prefix(b"", at_least=index).revision == index == node.last_applied().index
        going_on.set()


class Mute(MemoryLog):
    """A log that never says where it ends."""

    def __init__(self, asked: threading.Event) -> None:
        super().__init__()
        self._asked = asked

    async def last(self) -> int:
        self._asked.set()
        await asyncio.Event().wait()
        raise AssertionError


def test_a_close_ends_the_calls_that_wait(tmp_path: Path) -> None:
    asked = threading.Event()
    node = SyncNode(tmp_path / "data", log=Mute(asked), shards=2, config=CONFIG)
    with node, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(node.get, b"k", at_least=99) for _ in range(4)]
        waiting += [pool.submit(node.get, b"k") for _ in range(4)]
        assert asked.wait(60)
        node.close()
        for call in waiting:
            with pytest.raises(EngineStoppedError):
                call.result(60)


def test_a_call_from_its_own_thread_is_refused_by_name(tmp_path: Path) -> None:
    met: list[object] = []
    done = threading.Event()

    def ask() -> None:
        try:
            met.append(node.engine.get(b"k"))
            node.propose(b"")
        except WrongThreadError as error:
            met.append(error.hint)
        done.set()

    with node_at(tmp_path) as node:
        node.propose(Put(b"k", b"v"))
        in_the_loop(node, ask)
        assert done.wait(60)
    assert met == [b"v", "call from any other thread; reads may be made here, too"]
