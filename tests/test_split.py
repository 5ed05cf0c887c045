"""A chunk is split the short way, all its commands at once, as it is the long way, one entry after the other."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardengine import BadEntryError, Entry, Limits, Machine, encode
from shardengine.engine.intake.split import Split, Splitter
from shardengine.engine.intake.tail import normalised
from shardengine.shards.fast import Normal
from tests.model import log_of

LIMITS = Limits(key_bytes_max=3, value_bytes_max=40)


class Names(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Touches the keys `names`."""

    names: list[bytes]
    pad: bytes = b""


class Plain(Machine):
    """A key is a partition by itself. One that begins with `t` is told as text."""

    name: ClassVar[str] = "test.split"
    command: ClassVar[Any] = Names

    def keys(self, command: Names) -> Any:
        return [name.decode() if name[:1] == b"t" else name for name in command.names]

    def apply(self, tx: Any, command: Names, context: Any) -> None:
        raise NotImplementedError

    def check(self, command: Names, limits: Limits) -> str | None:
        return "padded" if len(command.pad) > limits.value_bytes_max else None


class Lazy(Plain):
    """Its keys are told one by one."""

    def keys(self, command: Names) -> Any:
        return iter(super().keys(command))


class Lettered(Plain):
    """A partition is a letter; that of `x` fails, that of `y` is text, that of `z` a bytearray."""

    def partition_key(self, key: bytes) -> Any:
        if key[:1] == b"x":
            raise ValueError("no partition")
        return {b"y": "y", b"z": bytearray(b"z")}.get(key[:1], key[:1])


MACHINES = [Plain, Lazy, Lettered]
GOOD = st.tuples(st.sampled_from(b"abcdef"), st.sampled_from(b"01")).map(bytes)
ODD = st.sampled_from([b"", b"abcd", b"t0", b"x0", b"y0", b"z0"])
SOUND = st.lists(GOOD, min_size=1, max_size=3).map(lambda names: encode(Names(names)))
UNSOUND = st.one_of(
    st.lists(st.one_of(GOOD, ODD), max_size=3).map(lambda names: encode(Names(names))),
    st.lists(GOOD, min_size=1, max_size=2).map(lambda names: encode(Names(names, bytes(41)))),
    st.sampled_from([b"", b"\xc1", encode([2, []]), encode(Names([b"a0"], bytes(35)))]),
)
DATAS = st.one_of(
    st.lists(SOUND, min_size=1, max_size=30), st.lists(st.one_of(SOUND, UNSOUND), min_size=1, max_size=30)
)


def splitter(machine: type[Machine], shards: int, *, reject_bad: bool = True) -> Splitter:
    return Splitter(machine(), shards, LIMITS, reject_bad=reject_bad, part_bytes_max=1 << 20)


def form_of(datas: list[bytes], times: list[int] | None = None) -> Normal:
    entries = log_of(datas, 7)
    if times is not None:
        entries = [Entry(e.index, e.term, e.data, time) for e, time in zip(entries, times, strict=False)]
    return normalised(entries, 0)


def long_way(splitter: Splitter, form: Normal, taken: frozenset[bytes]) -> Split:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitter, "_read", lambda datas: None)
        return splitter.split(form, taken)


def told(split: Any, form: Normal, taken: frozenset[bytes]) -> tuple[Split | None, str]:
    try:
        return split(form, taken), ""
    except BadEntryError as error:
        return None, f"{error} {error.facts}"


@settings(max_examples=500)
@given(
    machine=st.sampled_from(MACHINES),
    shards=st.sampled_from([1, 2, 3, 8]),
    reject_bad=st.booleans(),
    datas=DATAS,
    times=st.lists(st.integers(0, 3), min_size=30, max_size=30),
    taken=st.frozensets(st.one_of(GOOD, GOOD.map(lambda key: key[:1])), max_size=3),
)
def test_the_short_way_decides_as_the_long_one(
    machine: type[Machine],
    shards: int,
    reject_bad: bool,
    datas: list[bytes],
    times: list[int],
    taken: frozenset[bytes],
) -> None:
    split, form = splitter(machine, shards, reject_bad=reject_bad), form_of(datas, times)
    before = set(taken)
    assert told(split.split, form, taken) == told(lambda *given: long_way(split, *given), form, taken)
    assert taken == before


@pytest.mark.parametrize("machine", [Plain, Lazy, Lettered])
@pytest.mark.parametrize("names", [[b"a0"], [b"a0", b"b1"], [b"a0", b"a0", b"a1"]])
def test_sound_commands_of_any_number_of_keys_go_the_short_way(
    machine: type[Machine], names: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = splitter(machine, 8)
    monkeypatch.setattr(split, "_judge", lambda data: pytest.fail("one entry was looked at"))
    split.split(form_of([encode(Names(names)), encode(Names([b"b0"]))]))
    split.split(form_of([encode(Names(names))] * 3), frozenset({b"a0"}))


@pytest.mark.parametrize(("letter", "kind"), [(b"y", "str"), (b"z", "bytearray")])
def test_a_partition_that_is_no_bytes_is_refused_whatever_else_is_in_the_chunk(letter: bytes, kind: str) -> None:
    """A hash would take a bytearray, and in some of its versions text."""
    alone, beside = encode(Names([letter + b"0"])), encode(Names([b"a0", letter + b"0"]))
    for datas in ([alone], [beside], [encode(Names([b"a0"])), alone], [encode(Names([b"a0", b"b0"])), alone]):
        with pytest.raises(BadEntryError, match=f"returned {kind}, not bytes") as caught:
            splitter(Lettered, 2, reject_bad=False).split(form_of(datas))
        assert caught.value.index == 6 + len(datas)


@pytest.mark.parametrize("name", [b"", b"abcd", b"t0", b"x0", b"y0", b"z0"])
def test_one_bad_key_rejects_its_entry_alone_and_no_part_gets_it(name: bytes) -> None:
    for names in ([name], [b"a0", name], [name, b"b0"]):
        split, form = splitter(Lettered, 1), form_of([encode(Names(each)) for each in ([b"a0"], names, [b"b0", b"c0"])])
        found = split.split(form)
        assert found == long_way(split, form, frozenset()) and found.rejected.keys() == {1}
        assert found.placed(form) == [form.datas[0], b"", form.datas[2]]


def test_what_spans_takes_its_partitions_for_those_behind_it_and_for_none_before() -> None:
    split = splitter(Plain, 2)
    keys = [b"%c%d" % (letter, digit) for letter in b"abcdef" for digit in (0, 1)]
    here, there = ([key for key in keys if split.place(key) == shard] for shard in (0, 1))
    commands = [[here[0]], [here[0], there[0]], [here[0]], [here[0], here[1]], [here[1]], [here[2]], [there[0]]]
    form = form_of([encode(Names(names)) for names in commands])
    found = split.split(form)
    assert [spanning.entry - 7 for spanning in found.spanning] == [1, 2, 3, 4, 6]
    assert (found.owners[0], found.owners[5]) == (0, 0) and found.lengths.keys() == {0}
    left_out = [data for data, placed in zip(form.datas, found.placed(form), strict=True) if not placed]
    assert left_out == [form.datas[at] for at in (1, 2, 3, 4, 6)]
