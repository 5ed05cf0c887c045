"""A reader of a directory, in the test's own process: the engine has stopped, or runs in another one."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardengine import (
    Engine,
    EngineConfig,
    EngineError,
    EngineStateError,
    FileRefusedError,
    ForkedError,
    FormatError,
    KeyValue,
    LogId,
    MachineMismatchError,
    Reader,
    ScanResult,
    StateUntrustedError,
    StoreError,
    StoreMismatchError,
    TooManyViewsError,
    ViewClosedError,
)
from shardengine.engine.read import attach, follow, readerview
from shardengine.engine.verify import verify_live
from shardengine.machines.bank import Bank
from tests.directories import contents, die_after_deciding, die_in_mid_run, opened, puts, reboot
from tests.model import Model
from tests.writing import CONFIG

COUNT = 300


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `COUNT` records on three shards; only read from."""
    path = tmp_path_factory.mktemp("stopped") / "db"

    async def fill(db: Engine) -> None:
        await db.apply_chunk(puts(1, COUNT))

    opened(path, fill, shards=3, config=CONFIG)
    return path


@pytest.fixture
def reader(stopped: Path) -> Iterator[Reader]:
    with Reader(stopped) as reader:
        yield reader


# ---- a directory at rest ---------------------------------------------------------------------------------------------


def test_every_read_of_a_stopped_directory_is_as_the_engines(stopped: Path, reader: Reader) -> None:
    model = Model()
    model.apply(puts(1, COUNT))
    assert reader.last_applied() == LogId(COUNT, 1)
    assert (len(reader), reader.is_empty(), bool(reader)) == (COUNT, False, True)
    assert reader.get(b"k7") == b"v7" and reader.get(b"absent") is None and reader.get(b"") is None
    assert reader.get_multi([b"k1", b"absent", b"k300"]) == [b"v1", None, b"v300"]
    assert reader.digest() == model.digest()
    scans = [
        (prefix, limit, after, reverse)
        for prefix in (b"", b"k", b"k1", b"k29", b"x")
        for limit in (None, 1, 7)
        for after in (None, b"k15", b"k2")
        for reverse in (False, True)
    ]
    read = [reader.scan_prefix(*scan) for scan in scans]
    with reader.view() as view:
        assert [view.scan_prefix(*scan) for scan in scans] == read
        assert (len(view), view.digest(), view.revision) == (COUNT, model.digest(), COUNT)
        assert view.last_applied == LogId(COUNT, 1)
    reader.close()
    opened(stopped, lambda db: compared(db, scans, read))


Scan = tuple[bytes, int | None, bytes | None, bool]


async def compared(db: Engine, scans: list[Scan], read: list[ScanResult]) -> None:
    assert [db.scan_prefix(*scan) for scan in scans] == read


def test_a_reader_writes_nothing_but_its_slots(stopped: Path) -> None:
    before = contents(stopped)
    with Reader(stopped) as reader:
        assert len(reader) == COUNT
    after = contents(stopped)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {
        name for name in after if name.endswith("lock.mdb")
    }


def test_a_stopped_directory_tells_its_age_and_what_else_files_tell(stopped: Path, reader: Reader) -> None:
    age = reader.age()
    assert age is not None and age > 0
    facts = reader.stats()
    assert (facts["engine"], facts["pid"], facts["shards"], facts["entries"]) == ("stopped", None, 3, COUNT)
    assert facts["last_applied"] == {"index": COUNT, "term": 1}
    assert sum(shard["entries"] for shard in facts["per_shard"]) == COUNT
    with pytest.raises(TimeoutError, match=f"stood at index {COUNT}, not {COUNT + 1}, after 0.01 s"):
        reader.wait_applied(COUNT + 1, 0.01)
    reader.wait_applied(COUNT, 0)


def test_a_key_that_is_none_is_refused_as_by_an_engine(reader: Reader) -> None:
    with pytest.raises(TypeError, match="a key is bytes, not str"):
        reader.get("k1")  # type: ignore[arg-type]


def test_a_closed_reader_reads_nothing_and_its_views_end(stopped: Path) -> None:
    reader = Reader(stopped)
    view = reader.view()
    reader.close()
    reader.close()
    uses: list[Callable[[], object]] = [
        lambda: reader.get(b"k1"),
        lambda: len(reader),
        reader.view,
        reader.age,
        reader.last_applied,
        reader.stats,
    ]
    for use in uses:
        with pytest.raises(EngineStateError, match="the reader was closed"):
            use()
    with pytest.raises(ViewClosedError, match="the reader was closed"):
        view.get(b"k1")
    view.close()
    with Reader(stopped) as again:
        assert again.get(b"k1") == b"v1"


def test_views_are_counted_and_grow_old(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Reader(stopped, config=EngineConfig(views_max=2, view_age_max_ms=1_000)) as reader:
        first, second = reader.view(), reader.view()
        with pytest.raises(TooManyViewsError, match="2 views are open"):
            reader.view()
        second.close()
        monkeypatch.setattr(readerview, "time", Later(1.5))
        with pytest.raises(ViewClosedError, match="older than view_age_max_ms=1000"):
            first.get(b"k1")
        monkeypatch.undo()
        third = reader.view()
        monkeypatch.setattr(readerview, "time", Later(1.5))
        monkeypatch.setattr(attach, "time", Later(1.5))
        assert reader.get(b"k1") == b"v1" and third.closed


class Later:
    """The clock of a later moment."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def monotonic(self) -> float:
        import time

        return time.monotonic() + self._seconds


def test_any_thread_may_read_and_close_views(reader: Reader) -> None:
    wrong: list[object] = []

    def read() -> None:
        for number in range(1, 200):
            with reader.view() as view:
                if reader.get(b"k%d" % number) != b"v%d" % number or view.get(b"k1") != b"v1":
                    wrong.append(number)
        reader.release()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and reader.stats()["entries"] == COUNT


def test_a_digest_ends_when_what_it_reads_does(reader: Reader) -> None:
    view = reader.view()
    slices = view.cut().digest_slices()
    next(slices)
    view.close()
    with pytest.raises(ViewClosedError, match="it was closed"):
        view.digest()


def test_a_forked_child_cannot_use_a_reader_nor_end_it_nor_make_one(stopped: Path, reader: Reader) -> None:
    view = reader.view()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        refused = 0
        uses: list[Callable[[], object]] = [
            lambda: reader.get(b"k1"),
            lambda: view.get(b"k1"),
            reader.age,
            view.digest,
            reader.release,
            lambda: reader.generation,
            lambda: Reader(stopped),
        ]
        for use in uses:
            try:
                use()
            except (ForkedError, EngineStateError):
                refused += 1
        reader.close()
        view.close()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert (reader.get(b"k1"), view.get(b"k1")) == (b"v1", b"v1")


def test_a_process_has_one_reader_of_a_directory_or_an_engine(stopped: Path, reader: Reader) -> None:
    with pytest.raises(EngineStateError, match="has an engine or a reader"):
        Reader(stopped / ".." / stopped.name)
    with pytest.raises(StoreError, match="already open in this process") as caught:
        opened(stopped)
    assert "one engine or reader of a directory per process" in caught.value.hint
    assert reader.get(b"k1") == b"v1"
    reader.close()
    db = Engine(stopped)
    db.start()
    with pytest.raises(EngineStateError, match="has an engine or a reader"):
        Reader(stopped)
    assert db.get(b"k1") == b"v1"
    db.stop()
    db.close_storage()


def test_a_reader_that_is_dropped_gives_the_directory_back(stopped: Path) -> None:
    with Reader(stopped).view() as view:
        assert view.get(b"k1") == b"v1", "a view keeps its reader"
        with pytest.raises(EngineStateError, match="has an engine or a reader"):
            Reader(stopped)
    del view
    with Reader(stopped) as reader:
        assert reader.get(b"k2") == b"v2"


def test_a_reader_goes_by_what_current_names_though_no_page_says_that_anything_was_replaced(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine may have died between the flip and the word on the page."""
    path = tmp_path / "db"
    shutil.copytree(stopped, path)
    shutil.copytree(path / "gen-000001", path / "gen-000002")
    monkeypatch.setattr(attach, "LOOK_S", 0)
    with Reader(path) as reader:
        view = reader.view()
        assert (reader.get(b"k1"), reader.generation.path.name) == (b"v1", "gen-000001")
        (path / "CURRENT").write_text("gen-000002")
        assert (reader.get(b"k1"), reader.generation.path.name) == (b"v1", "gen-000002")
        with pytest.raises(ViewClosedError, match="another state"):
            view.get(b"k1")


class Elsewhere(KeyValue):
    """As a machine whose `partition_key` has changed."""

    def partition_key(self, key: bytes) -> bytes:
        return key[::-1]


def test_a_check_of_one_cut_names_every_shard_with_a_record_that_lies_elsewhere(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (live := verify_live(stopped)).findings == [] and live.entries == COUNT
    with pytest.raises(MachineMismatchError, match="partition_key is not the one"):
        verify_live(stopped, Elsewhere)
    monkeypatch.setattr(follow, "check_samples", lambda *_: None)  # it looks at a few keys, and may miss it
    findings = verify_live(stopped, Elsewhere).findings
    assert [finding.shard for finding in findings] == [0, 1, 2]
    assert all("belongs to shard" in finding.problem for finding in findings)


# ---- what is no directory of ours ------------------------------------------------------------------------------------


def test_what_holds_no_engine_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FormatError, match="is no data directory"):
            Reader(path)
    (tmp_path / "config").write_text("something else")
    with pytest.raises(FormatError, match="not readable"):
        Reader(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config"]


def test_another_machine_or_a_directory_without_a_state_is_refused(stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(MachineMismatchError, match="belongs to machine"):
        Reader(stopped, Bank)
    die_in_mid_run(tmp_path / "db")
    (tmp_path / "db" / "CURRENT").write_text("gen-000009")
    with pytest.raises(FormatError, match="gen-000009, which is not there"):
        Reader(tmp_path / "db")
    (tmp_path / "db" / "CURRENT").write_text("gen-000001")
    (file,) = (tmp_path / "db").glob("gen-*/shard-001/data.mdb")
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")
    with pytest.raises(FileRefusedError, match="symbolic link"):
        Reader(tmp_path / "db")
    file.unlink()
    other = file.parent.parent / "shard-000" / "data.mdb"
    file.write_bytes(other.read_bytes())
    with pytest.raises(StoreMismatchError, match="belongs to shard 0, not 1"):
        Reader(tmp_path / "db")


def test_a_state_that_the_machine_may_have_lost_is_not_read_before_a_start_has_judged_it(tmp_path: Path) -> None:
    path = tmp_path / "db"
    die_in_mid_run(path)
    with Reader(path) as reader:
        assert (reader.last_applied(), reader.stats()["engine"]) == (LogId(10, 1), "gone")
    (page,) = path.glob("gen-*/control")
    page.unlink()
    with Reader(path) as reader:  # as an earlier version leaves it
        assert (reader.last_applied(), reader.age() is None) == (LogId(10, 1), False)
    reboot(path)
    with pytest.raises(StateUntrustedError, match="before the state was synced"):
        Reader(path)


def test_without_a_page_a_decided_group_that_no_shard_has_is_a_matter_of_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    die_after_deciding(path)
    with Reader(path) as reader:
        assert reader.last_applied() == LogId(10, 1), "what was published last"
    monkeypatch.setattr(follow, "TRIES_MAX", 12)
    (page,) = path.glob("gen-*/control")
    page.unlink()
    with pytest.raises(EngineError, match="died within a commit"):
        Reader(path)
