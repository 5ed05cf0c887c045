"""The byte layout of a part, there and back, and what is no part."""

from __future__ import annotations

from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import RingError
from shards.part import Run, pack, pack_runs, unpack

U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
RUNS = st.lists(st.builds(Run, U64, U64, U64), min_size=1, max_size=5)
DATAS = st.lists(st.binary(max_size=50).map(msgspec.msgpack.encode), min_size=1, max_size=20)


@given(base=st.integers(0, 1 << 63), runs=RUNS, datas=DATAS, draw=st.data())
def test_a_part_comes_back_as_it_went(base: int, runs: list[Run], datas: list[bytes], draw: st.DataObject) -> None:
    offsets = array("I", draw.draw(st.lists(U32, min_size=len(datas), max_size=len(datas))))
    packed = pack(base, pack_runs(runs), len(datas), offsets.tobytes(), datas)
    unpacked = unpack(memoryview(packed))
    assert unpacked.entries == len(datas)
    assert unpacked.runs() == runs
    assert unpacked.indices() == [base + offset for offset in offsets]
    assert msgspec.msgpack.decode(unpacked.commands) == list(map(msgspec.msgpack.decode, datas))
    assert bytes(unpacked.commands).endswith(b"".join(datas)), "the data goes through untouched"


PART = pack(7, pack_runs([Run(7, 1, 2), Run(8, 3, 4)]), 2, array("I", [0, 1]).tobytes(), [b"\xc0", b"\xc0"])


def test_the_layout_is_the_drawn_one() -> None:
    assert (
        bytes.fromhex(
            "02000000 02000000 0700000000000000"
            "0700000000000000 0100000000000000 0200000000000000"
            "0800000000000000 0300000000000000 0400000000000000"
            "00000000 01000000"
            "dd 00000002 c0 c0"
        )
        == PART
    )


@pytest.mark.parametrize("length", range(16 + 48 + 8 + 1))
def test_a_part_cut_before_its_commands_is_refused(length: int) -> None:
    with pytest.raises(RingError, match="no part at this extent") as caught:
        unpack(memoryview(PART[:length]))
    assert caught.value.length == length


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_at_least_stays_inside_its_bytes(garbage: bytes) -> None:
    try:
        unpacked = unpack(memoryview(garbage))
    except RingError:
        return
    assert len(unpacked.indices()) == unpacked.entries
    assert 16 + 24 * len(unpacked.runs()) + 4 * unpacked.entries + len(unpacked.commands) == len(garbage)
