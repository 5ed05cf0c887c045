"""`SyncEngine`: the methods of an engine, blocking, in any thread."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from shardengine import (
    Engine,
    EngineConfig,
    EngineError,
    EngineLockedError,
    EngineStateError,
    EngineStoppedError,
    Entry,
    HardState,
    LogGapError,
    LogId,
    Put,
    SnapshotMetadata,
    SnapshotPolicy,
    SyncEngine,
    TooManyViewsError,
    ViewClosedError,
    WrongThreadError,
    encode,
)
from shardengine.engine.storage.runmark import read_mark
from shardengine.engine.sync.portal import Portal
from tests import dying
from tests.inside import one_turn
from tests.model import Model, log_of

LOG = log_of([encode(Put(b"k%04d" % number, b"v%d" % number)) for number in range(1_500)])
BLOCKING = {"aclose": "close", "flush_async": "flush", "__aenter__": "__enter__", "__aexit__": "__exit__"}


def in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


# ---- the same methods ------------------------------------------------------------------------------------------------


def test_every_public_method_of_an_engine_is_there_with_its_arguments_and_its_result() -> None:
    names = {name for name in dir(Engine) if not name.startswith("_")}
    ours = {name for name in dir(SyncEngine) if not name.startswith("_")}
    assert ours == {BLOCKING.get(name, name) for name in names}
    for name in [*sorted(names - {"aclose", "flush_async"}), "__init__", "__len__", "__bool__"]:
        assert inspect.signature(getattr(SyncEngine, name)) == inspect.signature(getattr(Engine, name)), name
        assert not inspect.iscoroutinefunction(getattr(SyncEngine, name)), name
    for name in ours:
        assert inspect.getdoc(getattr(SyncEngine, name)) or name == "is_empty", name
    assert SyncEngine.apply_chunk.__doc__ == Engine.apply_chunk.__doc__


def test_a_directory_lives_through_all_of_it(tmp_path: Path) -> None:
    model = Model()
    with SyncEngine(tmp_path / "db", shards=2) as db:
        assert list(in_thread(lambda: db.apply_chunk(LOG[:1_000]))) == model.apply(LOG[:1_000])
        db.check(LOG[1_000].data)
        db.apply_chunk(LOG[1_000:])
        model.apply(LOG[1_000:])
        db.wait_applied(1_500)
        assert db.last_applied() == LogId(1_500, 1) and db.entry_term(7) == 1 and db.durable() == LogId(0, 0)
        assert db.digest() == model.digest() and len(db) == 1_500 and not db.is_empty() and bool(db)
        assert db.scan_prefix(b"k").entries == model.scan(b"k")
        assert db.scan_prefix(b"k", limit=700).entries == model.scan(b"k")[:700]
        assert db.scan_prefix(b"k", 600, reverse=True).entries == model.scan(b"k")[:-601:-1]
        assert db.scan_prefix(b"k", start_after=b"k1490").entries == model.scan(b"k")[1491:]
        assert db.get_multi(iter([b"k0001", b"none"])) == [b"v1", None]
        assert db.get_multi(model.data) == list(model.data.values())
        db.flush()
        db.save_hard_state(HardState(3, "a"))
        db.set_snapshot_policy(SnapshotPolicy())
        info = db.create_snapshot()
        checksum = db.generate_snapshot_data(tmp_path / "copy", LogId(1_500, 1))
        assert db.snapshots() == [info] and db.durable() == info.last_included == LogId(1_500, 1)
        db.compact()
        db.restore(tmp_path / "copy", force=True)
        db.reset()
        assert db.is_empty()
        db.apply_snapshot_from_file(SnapshotMetadata(info.last_included, checksum), tmp_path / "copy")
        db.update_last_applied(LogId(1_600, 1))
        db.persist_last_applied(LogId(1_700, 2))
        assert db.lease_background_cleanup() == [] and db.stats()["entries"] == 1_500
        metadata = db.snapshot_metadata()
        assert metadata is not None
        db.update_last_snapshot_metadata(metadata)
        db.persist_last_snapshot_metadata(metadata)
    again = SyncEngine(tmp_path / "db")
    assert again.start().last_applied == LogId(1_700, 2) and again.hard_state() == HardState(3, "a")
    assert again.digest() == model.digest()
    again.close()


# ---- life ------------------------------------------------------------------------------------------------------------


def asks(db: SyncEngine) -> list[Callable[[], Any]]:
    """Calls that need a running engine: reads, and such as cross, awaited there or not."""
    return [
        lambda: db.get(b"k"),
        lambda: db.get_multi([b"k"]),
        lambda: db.scan_prefix(b"k"),
        db.view,
        lambda: len(db),
        db.last_applied,
        lambda: db.apply_chunk(LOG[:1]),
        lambda: db.apply_chunk([]),
        lambda: db.wait_applied(1),
        db.digest,
        lambda: db.check(b""),
        db.stats,
        db.flush,
    ]


def test_outside_of_its_run_it_refuses_by_name_and_leaves_no_thread(tmp_path: Path) -> None:
    threads = threading.enumerate()
    db = SyncEngine(tmp_path / "db", shards=2)
    for ask in asks(db):
        with pytest.raises(EngineStateError, match="not open"):
            ask()
    db.stop()
    db.close()
    assert not db.is_running() and db.snapshots() == []
    with db:
        assert db.is_running()
        with pytest.raises(EngineStateError, match="runs already"):
            db.start()
        with pytest.raises(EngineStateError, match="stop"):
            db.close_storage()
        db.apply_chunk(LOG[:5])
        view = db.view()
    for ask in asks(db):
        with pytest.raises(EngineStoppedError):
            ask()
    with pytest.raises(ViewClosedError):
        view.get(b"k0001")
    db.close()
    assert db.start().last_applied == LogId(5, 1)
    db.stop()
    assert threading.enumerate() == threads


def test_a_start_that_fails_says_why_and_may_be_tried_again(tmp_path: Path) -> None:
    threads = threading.enumerate()
    db = SyncEngine(tmp_path / "db", shards=2)
    with SyncEngine(tmp_path / "db", shards=2):
        with pytest.raises(EngineLockedError):
            db.start()
        assert len(threading.enumerate()) == len(threads) + 1, "that of the other one"
    with pytest.raises(EngineStateError, match="not open"):
        db.get(b"k")
    with db:
        assert db.is_empty()
    assert threading.enumerate() == threads


def test_errors_are_those_of_the_engine_and_nothing_is_accepted(tmp_path: Path) -> None:
    with SyncEngine(tmp_path / "db", shards=2) as db:
        with pytest.raises(LogGapError):
            db.apply_chunk(LOG[3:5])
        with pytest.raises(TimeoutError):
            db.wait_applied(1, timeout=0)
        with pytest.raises(TypeError, match="a key is bytes"):
            db.get("k")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="limit"):
            db.scan_prefix(b"", limit=-1)
        assert db.last_applied().index == 0


def test_many_threads_start_stop_and_close_at_once_and_one_thread_at_most_is_left_to_end(tmp_path: Path) -> None:
    threads = threading.enumerate()
    db = SyncEngine(tmp_path / "db", shards=2)
    unforeseen: list[BaseException] = []

    def meddle(number: int) -> None:
        calls: list[Callable[[], object]] = [db.start, db.stop, db.close, lambda: db.wait_applied(1_000)]
        for turn in range(4):
            try:
                calls[(number + turn) % len(calls)]()
            except EngineStateError:
                pass
            except BaseException as error:
                unforeseen.append(error)

    meddlers = [threading.Thread(target=meddle, args=(number,)) for number in range(6)]
    for meddler in meddlers:
        meddler.start()
    while any(meddler.is_alive() for meddler in meddlers):
        db.stop()  # who waits for an entry that never comes
    db.close()
    assert not unforeseen and threading.enumerate() == threads
    mark = read_mark(tmp_path / "db")
    assert mark is None or mark.clean


def test_a_stop_ends_the_calls_that_wait(tmp_path: Path) -> None:
    with SyncEngine(tmp_path / "db", shards=2) as db, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(db.wait_applied, 99) for _ in range(8)]
        db.stop()
        for call in waiting:
            with pytest.raises(EngineStoppedError):
                call.result(60)


def test_what_was_asked_for_before_a_close_has_its_outcome() -> None:
    begun = threading.Event()

    async def nothing() -> None: ...

    async def lengthy() -> int:
        begun.set()
        for _ in range(1_000):
            await one_turn()
        return 7

    portal = Portal("portal", nullcontext(), nothing, 60)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(portal.call, lengthy) for _ in range(4)]
        begun.wait()
        portal.close()
        portal.close()
        outcomes = [call.exception() or call.result() for call in asked]
    assert 7 in outcomes and all(outcome == 7 or isinstance(outcome, EngineStoppedError) for outcome in outcomes)


# ---- who waits -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a worker waits for, in a command on a key that begins with `wait`."""
    monkeypatch.setenv(dying.ENVIRONMENT, str(tmp_path))
    path = tmp_path / dying.GATE
    os.mkfifo(path)
    return path


@pytest.fixture
def interrupted() -> Iterator[None]:
    """SIGUSR1 is a Ctrl-C."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("interrupted")
def test_a_ctrl_c_ends_the_waiting_and_not_what_was_accepted(tmp_path: Path, gate: Path) -> None:
    opened: list[int] = []

    def interrupt() -> None:
        opened.append(os.open(gate, os.O_WRONLY))  # when the worker stands there
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    with SyncEngine(tmp_path / "db", shards=2, machine=dying.Dying) as db, ThreadPoolExecutor(2) as pool:
        other = pool.submit(db.wait_applied, 1)
        asking = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            db.apply_chunk([Entry(1, 1, encode(Put(b"wait", b"v")))])
        assert not other.done() and db.get(b"wait") is None
        os.write(opened[0], b"x")
        other.result(60)
        assert db.get(b"wait") == b"v"
        asking.result(60)
        os.close(opened[0])


def test_a_call_from_its_own_thread_is_refused_by_name_and_a_read_is_not(tmp_path: Path) -> None:
    met: list[object] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for ask in (lambda: db.get(b"k0001"), db.stats, db.stop, db.start, db.digest):
                try:
                    met.append(ask())
                except EngineError as error:
                    met.append(type(error))

    handler, log = Handler(), logging.getLogger("shardengine")
    with SyncEngine(tmp_path / "db", shards=2) as db:
        db.apply_chunk(LOG[:10])
        db.create_snapshot()
        log.addHandler(handler)
        level = log.level
        log.setLevel(logging.INFO)
        try:
            db.restore(db.snapshots()[0].path)
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
        assert met[:5] == [b"v1", *[WrongThreadError] * 4]
        assert db.is_running()


# ---- views and scans -------------------------------------------------------------------------------------------------


def test_a_view_is_read_and_closed_by_any_thread(tmp_path: Path) -> None:
    with SyncEngine(tmp_path / "db", shards=2, config=EngineConfig(views_max=2)) as db:
        db.apply_chunk(LOG[:1_000])
        view = in_thread(db.view)
        db.apply_chunk(LOG[1_000:])
        for read in (in_thread, lambda work: work()):
            assert read(lambda: view.get(b"k0999")) == b"v999" and read(lambda: view.get(b"k1000")) is None
            assert read(lambda: view.get_multi(b"k%04d" % number for number in range(1_001)))[-2:] == [b"v999", None]
            assert (
                len(read(lambda: view.scan_prefix(b"k")).entries) == read(lambda: len(view)) == view.revision == 1_000
            )
        with db.view(), pytest.raises(TooManyViewsError):
            db.view()
        assert db.stats()["views"] == 1
        in_thread(view.close)
        assert (db.stats()["views"], db.stats()["pinned_cuts"]) == (0, 0)
        with pytest.raises(ViewClosedError):
            view.scan_prefix(b"k")


def test_scans_by_others_see_one_state_whatever_replaces_it(tmp_path: Path) -> None:
    with SyncEngine(tmp_path / "db", shards=2) as db, ThreadPoolExecutor(4) as pool:
        db.apply_chunk(LOG)
        whole = db.scan_prefix(b"").entries
        ending = threading.Event()

        def scan() -> int:
            scans = 0
            while not ending.is_set():
                assert db.scan_prefix(b"").entries == whole and db.get_multi(LOG_KEYS) == LOG_VALUES
                scans += 1
            return scans

        scanning = [pool.submit(scan) for _ in range(4)]
        for _ in range(3):
            db.compact()
        ending.set()
        assert all(call.result(60) for call in scanning)
        assert db.stats()["pinned_cuts"] == 0


LOG_KEYS = [b"k%04d" % number for number in range(1_500)]
LOG_VALUES: list[bytes | None] = [b"v%d" % number for number in range(1_500)]
