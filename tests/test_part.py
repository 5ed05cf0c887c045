"""The byte layout of a part, there and back, and what is no part."""

from __future__ import annotations

from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.ipc.errors import RingError
from shardengine.shards.part import Run, pack, pack_runs, unpack

U64 = st.integers(0, (1 << 64) - 1)
RUNS = st.lists(st.tuples(st.integers(1, 9), U64, U64), min_size=1, max_size=9)
DATA = st.binary(max_size=50).map(msgspec.msgpack.encode)


@given(base=st.integers(0, 1 << 63), runs=RUNS, own=st.dictionaries(st.integers(0, 99), DATA, min_size=1))
def test_a_part_comes_back_as_it_went(base: int, runs: list[tuple[int, int, int]], own: dict[int, bytes]) -> None:
    places, datas = sorted(own), list(own.values())
    chunk_runs = [Run(base + first, term, clock) for first, (_, term, clock) in zip(starts(runs), runs, strict=True)]
    packed = pack(base, pack_runs(chunk_runs), array("I", places), datas)
    (unpacked,) = unpack(memoryview(packed))
    assert unpacked.entries == len(datas)
    assert unpacked.indices() == [base + place for place in places]
    held = {max(at for at, run in enumerate(chunk_runs) if run.first <= base + place) for place in places}
    assert unpacked.runs() == [chunk_runs[at] for at in sorted(held)], "the runs of its own entries, and no others"
    assert msgspec.msgpack.decode(unpacked.commands) == list(map(msgspec.msgpack.decode, datas))
    assert bytes(unpacked.commands).endswith(b"".join(datas)), "the data goes through untouched"


def starts(runs: list[tuple[int, int, int]]) -> list[int]:
    """Where the runs begin, from the first entry of their chunk: at it, and ever later."""
    return [sum(more for more, _, _ in runs[1 : at + 1]) for at in range(len(runs))]


PART = pack(7, pack_runs([Run(7, 1, 2), Run(8, 3, 4)]), array("I", [0, 1]), [b"\xc0", b"\xc0"])


def test_the_layout_is_the_drawn_one() -> None:
    assert (
        bytes.fromhex(
            "02000000 02000000 0700000000000000 5700000000000000"
            "0700000000000000 0100000000000000 0200000000000000"
            "0800000000000000 0300000000000000 0400000000000000"
            "00000000 01000000"
            "dd 00000002 c0 c0"
        )
        == PART
    )


def test_parts_follow_each_other_at_multiples_of_eight() -> None:
    first, second = unpack(memoryview(PART + bytes(-len(PART) % 8) + PART))
    assert (first.indices(), first.runs(), first.commands) == (second.indices(), second.runs(), second.commands)


@pytest.mark.parametrize("length", range(len(PART)))
def test_a_part_that_is_cut_is_refused(length: int) -> None:
    with pytest.raises(RingError, match="no part at this extent") as caught:
        list(unpack(memoryview(PART[:length])))
    assert caught.value.length == length


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_at_least_stays_inside_its_bytes(garbage: bytes) -> None:
    try:
        parts = list(unpack(memoryview(garbage)))
    except RingError:
        return
    for part in parts:
        assert len(part.indices()) == part.entries
    size = sum(24 + 24 * len(part.runs()) + 4 * part.entries + len(part.commands) for part in parts)
    assert size <= len(garbage)
