"""What a local log makes of damaged files: a torn end is cut, all else is told with its place, and nothing changed."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest

from shardengine import FormatError, LogDamagedError
from shardengine.engine.node.layout import HEAD_BYTES, Record
from shardengine.engine.node.opening import ABOUT, CLOSED, FORMAT, About, list_segments, read_about
from shardengine.engine.node.segments import name_of
from shardengine.engine.storage.files import write_checked
from tests.local_logs import SEGMENT, content, copied, filled, frames, records, small

CHANCE = random.Random(7)
FRAMES = [CHANCE.randbytes(size) for size in (5, 16, 0, 11)]


@pytest.fixture(autouse=True)
def nothing_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at here is in files, wherever they are."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)


def spoil(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


def flip(file: Path, at: int) -> None:
    """Change one bit of the byte there."""
    spoil(file, at, bytes([file.read_bytes()[at] ^ 1 << CHANCE.randrange(8)]))


async def refused(path: Path) -> LogDamagedError:
    """Opening it is, and changes nothing."""
    before = content(path)
    with pytest.raises(LogDamagedError) as caught:
        await small(path).open()
    assert content(path) == before
    return caught.value


async def cut_to(path: Path, expected: list[bytes]) -> None:
    """These are found; behind them all is zero, and the log goes on."""
    assert await frames(path) == expected
    file, _, end = records(path)[-1] if expected else (path / name_of(1), None, HEAD_BYTES)
    assert not file.read_bytes()[end:].strip(b"\0")
    log = small(path)
    await log.open()
    assert await log.append([b"next"]) == [len(expected) + 1]
    await log.aclose()
    assert await frames(path) == [*expected, b"next"]


async def test_a_last_record_that_is_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    await filled(tmp_path / "log", *([frame] for frame in FRAMES))
    file, last, end = records(tmp_path / "log")[-1]
    whole = file.read_bytes()
    for at in range(last.at, end):
        for begin, stop in ((at, end), (last.at, at + 1)):  # the end is missing, or the beginning is
            torn = copied(tmp_path / "log", tmp_path / "torn")
            spoil(torn / file.name, begin, bytes(stop - begin))
            lost = whole[begin:stop].strip(b"\0") != b""
            if at % 16 == 0 or not lost:
                await cut_to(torn, FRAMES[:-1] if lost else FRAMES)
            else:
                assert await frames(torn) == FRAMES[:-1]


async def test_a_flipped_bit_in_any_byte_of_what_was_on_the_disk_is_damage_with_its_place(tmp_path: Path) -> None:
    await filled(tmp_path / "log", *([frame] for frame in FRAMES))
    known = records(tmp_path / "log")
    for file, record, end in known[:-1]:
        for at in range(record.at, end):
            spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
            flip(spoilt / file.name, at)
            error = await refused(spoilt)
            assert (error.path, error.offset) == (str(spoilt / file.name), record.at)
            assert f"offset {record.at}" in str(error)


async def test_a_flipped_bit_in_any_byte_of_a_head_is_damage(tmp_path: Path) -> None:
    await filled(tmp_path / "log", FRAMES)
    for at in range(HEAD_BYTES):
        spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
        flip(spoilt / name_of(1), at)
        assert (await refused(spoilt)).offset == 0


async def test_what_was_written_together_is_cut_from_its_first_damaged_record_on(tmp_path: Path) -> None:
    await filled(tmp_path / "log", [b"before"], FRAMES)
    for number, (file, record, _) in enumerate(records(tmp_path / "log")):
        spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
        flip(spoilt / file.name, record.at)
        if number == 0:
            assert (await refused(spoilt)).offset == record.at
        else:
            await cut_to(spoilt, [b"before", *FRAMES][:number])


async def test_damage_to_any_record_of_a_log_that_was_closed_is_told(tmp_path: Path) -> None:
    await filled(tmp_path / "log", [b"before"], FRAMES)
    write_checked(tmp_path / "log" / CLOSED, {"last": 1 + len(FRAMES)})
    assert await frames(copied(tmp_path / "log", tmp_path / "whole")) == [b"before", *FRAMES]
    for file, record, _ in records(tmp_path / "log"):
        spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
        flip(spoilt / file.name, record.at)
        assert (await refused(spoilt)).offset == record.at


async def test_a_record_is_none_in_another_place_segment_or_log(tmp_path: Path) -> None:
    await filled(tmp_path / "log", *([frame] for frame in FRAMES))
    await filled(tmp_path / "other", *([frame] for frame in FRAMES))
    file, last, end = records(tmp_path / "log")[-1]
    data = file.read_bytes()[last.at : end]
    behind = copied(tmp_path / "log", tmp_path / "behind")
    spoil(behind / file.name, end, data)
    await cut_to(behind, FRAMES)
    other = copied(tmp_path / "other", tmp_path / "changed")
    spoil(other / file.name, last.at, data)
    await cut_to(other, FRAMES[:-1])


async def test_a_record_that_is_whole_and_comes_out_of_order_is_damage(tmp_path: Path) -> None:
    await filled(tmp_path / "log", [b"first"])
    about = read_about(tmp_path / "log")
    assert about is not None
    (segment,) = list_segments(tmp_path / "log", about)
    _, _, end = records(tmp_path / "log")[0]
    for position in (0, 1, 3):
        spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
        spoil(spoilt / name_of(1), end, segment.codec.encode(Record(end, position, 1, 0, b"other")))
        assert (await refused(spoilt)).offset == end


async def test_a_frame_that_holds_the_bytes_of_a_log_does_not_pass_for_its_records(tmp_path: Path) -> None:
    await filled(tmp_path / "log", [b"before"], [b"first"])
    inside = (tmp_path / "log" / name_of(1)).read_bytes()[HEAD_BYTES:500]
    log = small(tmp_path / "log")
    await log.open()
    await log.append([inside])
    await log.aclose()
    (tmp_path / "log" / CLOSED).unlink()
    file, last, _ = records(tmp_path / "log")[-1]
    flip(file, last.at)
    await cut_to(tmp_path / "log", [b"before", b"first"])


async def many(path: Path) -> list[bytes]:
    """A log of several segments."""
    calls = [[bytes([number]) * 700] for number in range(1, 20)]
    await filled(path, *calls)
    return [frame for (frame,) in calls]


async def test_a_torn_end_before_the_newest_segment_is_damage(tmp_path: Path) -> None:
    await many(tmp_path / "log")
    known = records(tmp_path / "log")
    ends = [one for one, behind in pairwise(known) if one[0] != behind[0]]
    assert len(ends) >= 3
    for file, record, end in ends:
        spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
        spoil(spoilt / file.name, record.at, bytes(end - record.at))
        error = await refused(spoilt)
        assert (error.path, error.offset) == (str(spoilt / file.name), record.at)


async def test_a_missing_segment_is_damage_unless_it_is_one_of_the_oldest(tmp_path: Path) -> None:
    written = await many(tmp_path / "log")
    names = sorted(file.name for file in (tmp_path / "log").glob("*.log"))
    for name in names[1:-1]:
        spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
        (spoilt / name).unlink()
        await refused(spoilt)
    (tmp_path / "log" / names[0]).unlink()
    assert await frames(tmp_path / "log") == written[int(names[1].removesuffix(".log")) - 1 :]


async def test_segments_that_are_cut_off_renamed_or_of_another_log_are_damage(tmp_path: Path) -> None:
    await many(tmp_path / "log")
    await many(tmp_path / "other")
    first, second, *_ = sorted(file.name for file in (tmp_path / "log").glob("*.log"))
    spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
    (spoilt / second).write_bytes((spoilt / second).read_bytes()[:-8])
    assert (await refused(spoilt)).offset == SEGMENT - 8
    spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
    (spoilt / second).write_bytes((spoilt / first).read_bytes())
    assert "not what its name says" in str(await refused(spoilt))
    spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
    (spoilt / second).write_bytes((tmp_path / "other" / second).read_bytes())
    assert "belongs to log" in str(await refused(spoilt))


async def test_a_log_without_its_segments_or_without_what_tells_what_it_is_is_damage(tmp_path: Path) -> None:
    await many(tmp_path / "log")
    spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
    for file in spoilt.glob("*.log"):
        file.unlink()
    assert "no segment left" in str(await refused(spoilt))
    spoilt = copied(tmp_path / "log", tmp_path / "spoilt")
    (spoilt / ABOUT).unlink()
    assert (await refused(spoilt)).path == str(spoilt / ABOUT)
    await filled(tmp_path / "one", [b"frame"])
    (tmp_path / "one" / ABOUT).unlink()
    assert (await refused(tmp_path / "one")).path == str(tmp_path / "one" / ABOUT)


@pytest.mark.parametrize("name", [ABOUT, CLOSED])
async def test_a_small_file_that_was_changed_is_damage(tmp_path: Path, name: str) -> None:
    await filled(tmp_path / "log", FRAMES)
    write_checked(tmp_path / "log" / CLOSED, {"last": len(FRAMES)})
    whole = (tmp_path / "log" / name).read_bytes()
    (tmp_path / "log" / name).write_bytes(whole.replace(b'"content"', b'"Content"'))
    assert (await refused(tmp_path / "log")).path == str(tmp_path / "log" / name)


async def test_a_log_of_a_later_format_is_refused_by_its_number(tmp_path: Path) -> None:
    await filled(tmp_path / "log", FRAMES)
    about = read_about(tmp_path / "log")
    assert about is not None
    write_checked(tmp_path / "log" / ABOUT, About(FORMAT + 1, about.identity, about.secret))
    with pytest.raises(FormatError, match=f"has format {FORMAT + 1}"):
        await small(tmp_path / "log").open()


async def test_damage_that_comes_while_the_log_is_open_is_told_by_who_reads_it(tmp_path: Path) -> None:
    written = await many(tmp_path / "log")
    log = small(tmp_path / "log")
    await log.open()
    file, record, _ = records(tmp_path / "log")[7]
    flip(file, record.at + 100)
    with pytest.raises(LogDamagedError) as caught:
        assert [logged async for logged in log.read(0)] == []
    assert (caught.value.path, caught.value.offset) == (str(file), record.at)
    assert await log.append([b"more"]) == [len(written) + 1]
    await log.aclose()
