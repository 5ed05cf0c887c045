"""The ring against bytes: what is written is what an extent shows, and nothing else moves."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import Engine, Put, encode
from shardengine.engine.run import resources
from shardengine.ipc.errors import RingError
from shardengine.ipc.ring import ALIGNMENT, RingReader, RingWriter, create_ring
from tests.model import log_of

HALF = 2 * mmap.PAGESIZE


def ring_at(path: Path, half_bytes: int = HALF) -> tuple[RingWriter, RingReader]:
    path.unlink(missing_ok=True)
    create_ring(path, half_bytes)
    return RingWriter(path), RingReader(path)


def write(writer: RingWriter, half: int, data: bytes) -> tuple[int, int] | None:
    """Claim, fill and keep. Returns where `data` lies."""
    claimed = writer.claim(half, len(data))
    if claimed is None:
        return None
    with claimed:
        claimed[:] = data
        return writer.keep(half, claimed), len(data)


WRITES = st.tuples(st.just("write"), st.integers(0, 1), st.binary(max_size=HALF // 3) | st.just(bytes(HALF // 2)))
CLEARS = st.tuples(st.just("clear"), st.integers(0, 1), st.just(b""))


@given(steps=st.lists(WRITES | WRITES | WRITES | CLEARS, max_size=60))
def test_a_ring_is_two_lists_of_bytes(tmp_path: Path, steps: list[tuple[str, int, bytes]]) -> None:
    writer, reader = ring_at(tmp_path / "ring")
    model: list[list[tuple[int, bytes]]] = [[], []]  # of each half: offset and bytes, in the order they were written
    for what, half, expected in steps:
        if what == "clear":
            writer.clear(half)
            model[half] = []
        else:
            room = writer.room(half)
            written = write(writer, half, expected)
            assert (written is None) == (len(expected) > room)
            if written is not None:
                offset, length = written
                assert (offset % ALIGNMENT, length) == (0, len(expected))
                assert half * HALF <= offset and offset + length <= (half + 1) * HALF
                model[half].append((offset, expected))
        for extents in model:
            end = 0
            for offset, data in extents:
                assert offset >= end
                end = offset + len(data)
                for side in (writer, reader):
                    with side.view(offset, len(data)) as view:
                        assert view == data
        for half in (0, 1):
            used = sum(-(-len(data) // ALIGNMENT) * ALIGNMENT for _, data in model[half])
            assert writer.room(half) == HALF - used
    writer.close()
    reader.close()


def test_a_half_is_filled_to_its_last_byte_and_not_beyond(tmp_path: Path) -> None:
    writer, reader = ring_at(tmp_path / "ring")
    assert write(writer, 0, b"a" * HALF) == (0, HALF)
    assert write(writer, 1, b"b" * (HALF - 3)) == (HALF, HALF - 3)
    assert (writer.room(0), writer.room(1)) == (0, 0)
    assert write(writer, 0, b"c") is None
    assert write(writer, 0, b"") == (HALF, 0)
    with reader.view(0, 2 * HALF) as view:
        assert view == b"a" * HALF + b"b" * (HALF - 3) + b"\0\0\0"
    writer.close()
    reader.close()


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (0, 2 * HALF + 1), (2 * HALF, 1), (8, 2 * HALF), (0, -1), (1 << 63, 8)]
)
def test_an_extent_outside_the_ring_is_refused(tmp_path: Path, offset: int, length: int) -> None:
    writer, reader = ring_at(tmp_path / "ring")
    for side in (writer, reader):
        with pytest.raises(RingError, match=f"a ring of {2 * HALF} bytes") as caught:
            side.view(offset, length)
        assert (caught.value.offset, caught.value.length, caught.value.size) == (offset, length, 2 * HALF)
    writer.close()
    reader.close()


@pytest.mark.parametrize("through_map", [True, False])
def test_a_claim_that_is_not_kept_changes_nothing_and_the_next_is_for_the_same_place(
    tmp_path: Path, through_map: bool
) -> None:
    create_ring(tmp_path / "ring", HALF)
    writer = RingWriter(tmp_path / "ring", through_map=through_map)
    assert write(writer, 1, b"kept") == (HALF, 4)
    for _ in range(2):
        claimed = writer.claim(1, HALF - ALIGNMENT)
        assert claimed is not None and len(claimed) == HALF - ALIGNMENT and not claimed.readonly
        claimed[:] = b"x" * len(claimed)
        claimed.release()
    assert writer.claim(1, HALF - ALIGNMENT + 1) is None
    assert writer.room(1) == HALF - ALIGNMENT
    assert write(writer, 1, b"again") == (HALF + ALIGNMENT, 5)
    with writer.view(HALF, ALIGNMENT + 5) as view:
        assert bytes(view) == b"kept\0\0\0\0again"
    writer.close()


def test_bytes_outlive_their_writer(tmp_path: Path) -> None:
    writer, reader = ring_at(tmp_path / "ring")
    written = write(writer, 1, b"redo me")
    assert written is not None
    writer.sync()
    writer.close()
    reader.close()
    again = RingWriter(tmp_path / "ring")
    with again.view(*written) as view:
        assert bytes(view) == b"redo me"
    assert again.half_bytes == HALF
    again.close()


@pytest.mark.parametrize("size", [0, 1, mmap.PAGESIZE, 3 * mmap.PAGESIZE])
def test_a_file_that_is_not_two_halves_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "ring").write_bytes(bytes(size))
    with pytest.raises(RingError, match=f"a ring of {size} bytes"):
        RingWriter(tmp_path / "ring")


def test_a_ring_is_never_made_over_another_file(tmp_path: Path) -> None:
    create_ring(tmp_path / "ring", HALF)
    with pytest.raises(FileExistsError):
        create_ring(tmp_path / "ring", HALF)


def test_a_write_that_the_disk_has_no_room_for_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    """The file is cut behind the writer's back and may not grow again: the nearest thing to a full disk that any
    user can have."""
    writer, reader = ring_at(tmp_path / "ring")
    kept = write(writer, 0, b"kept")
    assert kept is not None
    os.truncate(tmp_path / "ring", HALF)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(writer, 1, b"no room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (writer.room(0), writer.room(1)) == (HALF - ALIGNMENT, HALF)
    with reader.view(*kept) as view:
        assert bytes(view) == b"kept"
    written = write(writer, 1, b"room again")
    assert written is not None
    with reader.view(*written) as view:
        assert bytes(view) == b"room again"
    writer.close()
    reader.close()


def test_a_ring_that_is_not_written_through_its_map_says_so_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_ring(tmp_path / "ring", 1 << 16)
    writer, reader = RingWriter(tmp_path / "ring", through_map=False), RingReader(tmp_path / "ring")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: real(descriptor, data[:1000], at))
    first = write(writer, 0, b"a" * 5000)
    second = write(writer, 1, b"b" * 5000)
    assert first is not None and second is not None
    assert bytes(reader.view(*first)) == bytes(writer.view(*first)) == b"a" * 5000
    assert bytes(reader.view(*second)) == b"b" * 5000

    def full(descriptor: int, data: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    room = writer.room(0)
    with pytest.raises(OSError, match="No space left"):
        write(writer, 0, b"c")
    assert writer.room(0) == room
    writer.close()
    reader.close()


async def test_an_engine_on_a_file_system_that_promises_nothing_says_so_and_writes_its_rings_by_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resources, "filesystem_of", lambda path: "btrfs")
    async with Engine(tmp_path / "db", shards=2) as db:
        assert "lies on btrfs, which promises nothing for reserved disk" in caplog.text
        assert db.stats()["filesystem"] == "btrfs"
        await db.apply_chunk(log_of([encode(Put(b"%d" % number, b"v")) for number in range(1_000)]))
        assert len(db) == 1_000 and all(not ring._through_map for ring in db._running().coordinator._packing._rings)
