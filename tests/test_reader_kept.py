"""What a reader does when nothing keeps the pages any more that it reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardengine import Engine, EngineStateError, Reader, StoreError, ViewClosedError
from shardengine.engine.read import attach, readerview
from shardengine.engine.read import view as view_module
from shardengine.engine.read.cut import Cut
from shardengine.engine.read.follow import Followed
from tests.directories import opened, puts
from tests.writing import CONFIG, KEYS, Writer

COUNT = 3_000  # more than a slice of a shard


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "db"

    async def fill(db: Engine) -> None:
        await db.apply_chunk(puts(1, COUNT))

    opened(path, fill, shards=2, config=CONFIG)
    return path


@pytest.fixture
def stopped(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "db"))


@pytest.fixture
def unkept(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader that may have no slots."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Reader(stopped) as reader:
        yield reader


def once(monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, before: Callable[[], object]) -> None:
    """`before` happens as `name` is called first."""
    original, left = getattr(kind, name), [before]

    def instead(*arguments: Any, **named: Any) -> Any:
        if left:
            left.pop()()
        return original(*arguments, **named)

    monkeypatch.setattr(kind, name, instead)


# ---- without slots ---------------------------------------------------------------------------------------------------

READS: list[Callable[[Any], object]] = [
    lambda state: state.get(b"k1"),
    lambda state: state.get_multi([b"k1", b"k2"]),
    lambda state: state.scan_prefix(b"k", limit=3),
    len,
    lambda state: state.digest(),
]


def test_a_view_without_slots_ends_as_an_engine_comes(stopped: Path, unkept: Reader) -> None:
    views = [unkept.view() for _ in READS]
    slices = unkept.view().cut().digest_slices()
    next(slices)
    with Writer(stopped, shards=2):
        with pytest.raises(ViewClosedError, match="an engine has come"):
            next(slices)
        for view, read in zip(views, READS, strict=True):
            with pytest.raises(ViewClosedError, match="an engine has come"):
                read(view)


@pytest.mark.parametrize(
    ("name", "read"), [("get", READS[0]), ("records", READS[2]), ("count", READS[3]), ("digest_slices", READS[4])]
)
def test_what_is_read_while_an_engine_comes_does_not_count(
    stopped: Path, unkept: Reader, monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[Any], object]
) -> None:
    writers: list[Writer] = []
    once(monkeypatch, Cut, name, lambda: writers.append(Writer(stopped, shards=2)))
    try:
        with pytest.raises(EngineStateError, match="an engine runs on"):
            read(unkept)
    finally:
        for writer in writers:
            with writer:
                pass


def test_what_is_read_while_an_engine_comes_and_goes_is_read_again(
    stopped: Path, unkept: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        with Writer(stopped, shards=2) as writer:
            writer.ask("flip", 1, 3)

    view = unkept.view()
    once(monkeypatch, Cut, "get", write)
    assert unkept.get(KEYS[0]) == b"3"
    with pytest.raises(ViewClosedError, match="an engine has come"):
        view.get(KEYS[0])


# ---- slots that are lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["view", "reader"])
def test_views_end_when_the_slots_were_taken_away_and_the_newest_state_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    with Writer(tmp_path / "db", shards=2) as writer, Reader(tmp_path / "db") as reader:
        writer.ask("flip", 1, 1)
        view = reader.view()
        lose_slots(tmp_path / "db", reader, writer)
        writer.ask("flip", 2, 5)
        monkeypatch.setattr(attach, "LOOK_S", 0)
        if first == "reader":
            assert reader.get(KEYS[0]) == b"6"
        with pytest.raises(ViewClosedError, match=r"did this process copy, or read, a lock\.mdb"):
            view.get(KEYS[0])
        assert (reader.get(KEYS[0]), reader.view().get(KEYS[1])) == (b"6", b"6")
        assert reader._followed is not None and all(store.keeps_slots() for store in reader._followed.stores)


def test_a_view_takes_locks_again_that_were_lost_while_its_slots_are_still_there(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "LOOK_S", 0)
    (table,) = stopped.glob("gen-*/shard-000/lock.mdb")
    with Reader(stopped) as reader, reader.view() as view:
        assert locks_on(table) == 2
        table.open().close()
        assert locks_on(table) == 0
        assert view.get(b"k1") == b"v1"
        assert locks_on(table) == 2


def locks_on(file: Path) -> int:
    """How many this process has, as the system lists them."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inode = str(file.stat().st_ino)
    return sum(words[-4] == str(os.getpid()) and words[-3].rpartition(":")[2] == inode for words in lines)


def lose_slots(path: Path, reader: Reader, writer: Writer) -> None:
    """As a copy of the directory by this process does."""
    for table in path.glob("gen-*/shard-*/lock.mdb"):
        table.open().close()
    assert reader._followed is not None
    while any(store.keeps_slots() for store in reader._followed.stores):  # until a tick of the engine
        writer.ask("noop")


def test_a_second_reader_is_refused_before_it_opens_anything(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[EngineStateError] = []

    def second() -> None:
        with pytest.raises(EngineStateError, match="has an engine or a reader") as caught:
            Reader(stopped)
        refused.append(caught.value)

    once(monkeypatch, Followed, "__init__", second)
    with Reader(stopped) as reader:
        assert len(refused) == 1 and len(reader) == COUNT


def test_a_reader_that_could_not_be_opened_is_in_nobodys_way(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise StoreError("a full table")

    once(monkeypatch, Followed, "__init__", fail)
    with pytest.raises(StoreError, match="a full table") as caught:
        Reader(stopped)
    with Reader(stopped) as reader:
        assert len(reader) == COUNT
    assert caught.value.__traceback__ is not None, "which keeps what failed alive"


# ---- what changes under a read ---------------------------------------------------------------------------------------


def test_a_digest_or_a_scan_begins_again_when_the_state_is_replaced_under_it(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(stopped) as reader:
        digest, records = reader.digest(), reader.scan_prefix(b"")
        once(monkeypatch, readerview, "digest_of", lambda: reader._let_go("another state has taken over"))
        assert reader.digest() == digest
        once(monkeypatch, view_module, "scanned", lambda: reader._let_go("another state has taken over"))
        assert reader.scan_prefix(b"") == records
        slices = reader.view().cut().digest_slices()
        reader._let_go("another state has taken over")
        with pytest.raises(ViewClosedError, match="another state has taken over"):
            next(slices)


def test_keys_may_come_from_who_reads_meanwhile(tmp_path: Path) -> None:
    with Writer(tmp_path / "db", shards=2) as writer, Reader(tmp_path / "db") as reader:

        def keys() -> Iterator[bytes]:
            for version, key in enumerate(KEYS[:3], 1):
                writer.ask("flip", version, 1)
                assert reader.get(key) == b"%d" % version
                yield key

        assert reader.get_multi(keys()) == [b"3"] * 3


def test_many_keys_are_read_at_one_index(stopped: Path) -> None:
    with Reader(stopped) as reader:
        assert reader.get_multi(b"k%d" % key for key in range(1, COUNT + 1)) == [
            b"v%d" % key for key in range(1, COUNT + 1)
        ]


def test_a_release_lets_go_of_views_that_were_dropped(stopped: Path) -> None:
    with Reader(stopped) as reader:
        view = reader.view()
        assert view.get(b"k1") == b"v1"
        del view
        reader.release()
        assert reader._followed is not None and not any(store._open for store in reader._followed.stores)
        assert reader.get(b"k1") == b"v1"


def test_a_file_that_is_removed_with_its_generation_is_looked_for_again(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise FileNotFoundError("data.mdb")

    with Reader(stopped) as reader:
        for ask in (reader.age, reader.stats):
            once(monkeypatch, Followed, "age", fail)
            assert ask()
        monkeypatch.setattr(Followed, "age", lambda _: fail())
        with pytest.raises(EngineStateError, match="replaced again and again"):
            reader.age()


def test_facts_are_of_one_run(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "LOOK_S", 1_000)
    with Reader(stopped) as reader:
        monkeypatch.setattr(Followed, "moved", lambda _: True)  # another run has begun since the last look
        assert reader.stats()["entries"] == COUNT
