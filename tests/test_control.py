"""The control page: what it says is what its engine shows, and a torn one says nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import Engine, Entry, FileRefusedError, LogId, Put, encode
from shardengine.engine.storage import control
from shardengine.engine.storage.control import LIVE, REPLACED, STOPPED, ControlPage, ControlView
from shardengine.engine.storage.runmark import Boot, this_boot
from shardengine.shards.types import U64_MAX, Position
from tests.directories import puts

U64 = st.integers(0, U64_MAX)
ONE, OTHER = Position(7, 700, 3, 1_700_000_000_000), Position(8, 731, 4, 1_700_000_000_009)
SUMMED = 12  # words, the sum included


@pytest.fixture(params=[True, False], ids=["mapped", "written by calls"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ControlPage]:
    with closing(ControlPage(tmp_path / "control", through_map=request.param)) as page:
        yield page


def says(path: Path) -> Position | None:
    with closing(ControlView(path / "control")) as view:
        page = view.read()
        return None if page is None else page.position


def words_of(path: Path) -> list[int]:
    data = (path / "control").read_bytes()
    return memoryview(data[: len(data) // 8 * 8]).cast("Q")[:13].tolist()


def overwrite(path: Path, words: list[int]) -> None:
    with (path / "control").open("r+b") as file:
        file.write(b"".join(word.to_bytes(8, "little") for word in words))


# ---- the page alone --------------------------------------------------------------------------------------------------


def test_a_page_says_what_was_published_last_by_whom_and_that_it_lives(page: ControlPage, tmp_path: Path) -> None:
    assert says(tmp_path) is None, "nobody has begun"
    page.begin(ONE)
    with closing(ControlView(tmp_path / "control")) as view:
        first = view.read()
        assert first is not None and (first.position, first.state, first.pid) == (ONE, LIVE, os.getpid())
        assert first.same_boot and view.in_place()
        page.publish(OTHER)
        second = view.read()
        assert second is not None and (second.position, second.run, second.beat) == (OTHER, first.run, first.beat)
        assert second.sequence == view.sequence > first.sequence
        page.beat()
        third = view.read()
        assert third is not None and third.beat > second.beat and third.sequence == second.sequence
        page.end(REPLACED)
        page.end(STOPPED)
        last = view.read()
        assert last is not None and (last.position, last.state) == (OTHER, REPLACED)
        assert last.sequence > third.sequence


def test_the_next_run_goes_on_counting_and_is_another_one(page: ControlPage, tmp_path: Path) -> None:
    page.begin(ONE)
    page.end(STOPPED)
    with (
        closing(ControlView(tmp_path / "control")) as view,
        closing(ControlPage(tmp_path / "control", through_map=True)) as again,
    ):
        before = view.read()
        again.beat()
        again.close()
        assert view.read() == before, "it has not begun"
    with (
        closing(ControlView(tmp_path / "control")) as view,
        closing(ControlPage(tmp_path / "control", through_map=True)) as again,
    ):
        again.begin(ONE)
        after = view.read()
        assert before is not None and after is not None
        assert after.sequence > before.sequence and after.run != before.run and after.state == LIVE


@given(positions=st.lists(st.builds(Position, U64, U64, U64, U64), min_size=1, max_size=8))
def test_whatever_is_published_is_said(positions: list[Position], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("page")
    with closing(ControlPage(path / "control", through_map=True)) as page:
        page.begin(Position())
        for position in positions:
            page.publish(position)
            assert says(path) == position


def test_no_mixture_of_two_writes_is_taken_for_either(tmp_path: Path) -> None:
    """On some CPUs stores are seen in any order: every choice of old and new words that can be seen."""
    with closing(ControlPage(tmp_path / "control", through_map=True)) as page:
        page.begin(ONE)
        old = words_of(tmp_path)
        page.publish(OTHER)
        new = words_of(tmp_path)
    changed = [place for place in range(SUMMED) if old[place] != new[place]]
    assert changed == [1, 2, 3, 4, 5, 11]
    accepted = []
    for choice in product((old, new), repeat=len(changed)):
        words = list(old)
        for place, source in zip(changed, choice, strict=True):
            words[place] = source[place]
        overwrite(tmp_path, words)
        accepted += [words] if says(tmp_path) is not None else []
    assert accepted == [old, new]


def test_one_flipped_bit_in_a_summed_word_or_an_odd_sequence_says_nothing(tmp_path: Path) -> None:
    with closing(ControlPage(tmp_path / "control", through_map=True)) as page:
        page.begin(ONE)
    whole = words_of(tmp_path)
    for place, bit in product(range(SUMMED), range(64)):
        words = list(whole)
        words[place] ^= 1 << bit
        overwrite(tmp_path, words)
        assert says(tmp_path) is None, (place, bit)
    overwrite(tmp_path, whole)
    assert says(tmp_path) == ONE


@pytest.mark.parametrize("boot", ["another id", "no id, another time", "the same id, another time"])
def test_a_page_of_another_boot_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str) -> None:
    here = this_boot()
    there = {
        "another id": Boot("another", here.time),
        "no id, another time": Boot("", here.time - 60),
        "the same id, another time": Boot(here.id, here.time - 60),
    }[boot]
    monkeypatch.setattr(control, "this_boot", lambda: there)
    with closing(ControlPage(tmp_path / "control", through_map=True)) as page:
        page.begin(ONE)
    monkeypatch.undo()
    with closing(ControlView(tmp_path / "control")) as view:
        found = view.read()
        assert found is None if boot == "another id" else found is not None and not found.same_boot


def test_what_lies_in_its_place_is_no_page_or_refused(tmp_path: Path) -> None:
    with closing(ControlView(tmp_path / "control")) as missing:
        assert missing.read() is None and missing.in_place()
        (tmp_path / "control").write_bytes(b"short")
        assert not missing.in_place()
    assert says(tmp_path) is None
    with closing(ControlPage(tmp_path / "control", through_map=True)) as page:  # it takes the file that is there
        page.begin(ONE)
    assert says(tmp_path) == ONE
    (tmp_path / "control").rename(tmp_path / "elsewhere")
    (tmp_path / "control").symlink_to("elsewhere")
    for opening in (
        lambda: ControlView(tmp_path / "control"),
        lambda: ControlPage(tmp_path / "control", through_map=True),
    ):
        with pytest.raises(FileRefusedError, match="symbolic link"):
            opening()


def says_nothing_at(path: Path) -> bool:
    return says(path) is None


def test_a_full_disk_leaves_a_page_that_is_written_by_calls_behind_until_the_next_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with closing(ControlPage(tmp_path / "control", through_map=False)) as page:
        page.begin(ONE)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            page.publish(OTHER)
            assert says(tmp_path) == ONE
        page.beat()
        assert says(tmp_path) == OTHER


def test_a_disk_without_room_for_a_page_leaves_none_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        patch.setattr(os, "pwrite", full)
        page = ControlPage(tmp_path / "control", through_map=True)
        page.begin(ONE)
        page.publish(OTHER)
        assert says(tmp_path) is None
    with closing(page):
        page.beat()
        assert says(tmp_path) == OTHER


# ---- the page of an engine -------------------------------------------------------------------------------------------


def state_of(path: Path) -> tuple[int, LogId]:
    """State and place that the page of the current generation says."""
    generation = path / (path / "CURRENT").read_text()
    with closing(ControlView(generation / "control")) as view:
        page = view.read()
        assert page is not None
        return page.state, LogId(page.position.index, page.position.term)


async def test_every_publish_is_on_the_page_whatever_is_published(tmp_path: Path) -> None:
    path = tmp_path / "db"
    db = Engine(path, shards=3)
    db.start()
    assert state_of(path) == (LIVE, LogId(0, 0))
    await db.apply_chunk(puts(1, 50))
    assert state_of(path) == (LIVE, LogId(50, 1))
    await db.apply_chunk([Entry(51, 1, encode(Put(b"one shard's", b"v")))])
    assert state_of(path) == (LIVE, LogId(51, 1))
    await db.apply_chunk([Entry(52, 2, b"")])
    assert state_of(path) == (LIVE, LogId(52, 2))
    db.update_last_applied(LogId(60, 3))
    assert state_of(path) == (LIVE, LogId(60, 3))
    db.stop()
    assert state_of(path) == (STOPPED, LogId(60, 3))
    db.start()
    assert state_of(path) == (LIVE, LogId(60, 3))
    await db.aclose()


async def test_a_replacement_has_a_page_of_its_own_and_the_one_before_says_so(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with Engine(path, shards=2) as db:
        await db.apply_chunk(puts(1, 10))
        info = await db.create_snapshot()
        await db.apply_chunk(puts(11, 10))
        for replace, last in (
            (db.compact, LogId(20, 1)),
            (lambda: db.restore(info.path, force=True), LogId(10, 1)),
            (db.reset, LogId(0, 0)),
        ):
            generation = path / (path / "CURRENT").read_text()
            with closing(ControlView(generation / "control")) as before:
                await replace()
                page = before.read()
                assert page is not None and page.state == REPLACED
            assert state_of(path) == (LIVE, last)
    assert not list((path / "snapshots").rglob("control"))


@pytest.mark.parametrize("left", ["nothing", "junk", "a short file"])
async def test_a_directory_of_an_earlier_version_gets_its_page_when_it_is_started(tmp_path: Path, left: str) -> None:
    path = tmp_path / "db"
    async with Engine(path, shards=1) as db:
        await db.apply_chunk(puts(1, 10))
    (file,) = path.glob("gen-*/control")
    file.unlink()
    if left != "nothing":
        file.write_bytes(os.urandom(5 if left == "a short file" else 5_000))
    async with Engine(path) as db:
        assert state_of(path) == (LIVE, db.last_applied()) == (LIVE, LogId(10, 1))
