"""What a directory remembers of the inputs that were loaded into it: none is taken twice, none skipped."""

from __future__ import annotations

import gzip
import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from shardengine import Engine, Entry, LogId, Put, encode, run
from shardengine.engine.cli import loads as memory
from shardengine.engine.cli.common import DataSaysNoError
from shardengine.engine.cli.feed import IN_FLIGHT_CHUNKS
from shardengine.engine.cli.load import _noted
from shardengine.engine.cli.loads import Loads, Mark, Prefix, Recognition
from shardengine.engine.cli.records import Records, parse_tsv
from shardengine.engine.cli.source import Lines, Source
from shardengine.engine.errors import FormatError
from shardengine.engine.storage.files import SMALL_BYTES_MAX, replace_file
from tests.commands import cli, records, running


@contextmanager
def reading(path: Path, content: bytes, *, pipe: bool = False) -> Iterator[Lines]:
    path.write_bytes(content)
    if pipe:
        fd, send = os.pipe()
        os.write(send, content)
        os.close(send)
    else:
        fd = os.open(path, os.O_RDONLY)
    source = Source(fd, str(path))
    try:
        yield Lines(source, 1 << 20)
    finally:
        source.close()
        os.close(fd)


class Reader:
    """Loads inputs as the command does, chunk by chunk, and writes down what a log would hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[bytes] = []

    def load(self, content: bytes, *, chunk: int, pipe: bool = False, die_after: int | None = None) -> int:
        """Returns how many lines were passed over. `die_after` so many entries nothing more gets into the log,
        though chunks behind are noted: all processes were killed."""
        loads = Loads(self.folder, "lineage", len(self.log), durable=False)
        with reading(self.folder / "input", content, pipe=pipe) as lines:
            known = Recognition(lines, loads.stretches)
            loads.begin(known.head)
            prefix, left = known.prefix.copy(), list[bytes]()
            while some := lines.next():
                left += some
        noted = len(self.log)
        for at in range(0, len(left), chunk):
            part = left[at : at + chunk]
            prefix.add(part)
            noted += len(part)
            loads.note(Mark(noted, prefix.line, prefix.digest()))
            if die_after is None or at + len(part) <= die_after:
                self.log += part
            elif at > die_after + (IN_FLIGHT_CHUNKS - 1) * chunk:
                return known.prefix.line
        if die_after is None:
            loads.settle(len(self.log))
        return known.prefix.line


def text(name: str, count: int) -> bytes:
    return b"".join(b"%s-%d\tv\n" % (name.encode(), n) for n in range(count))


@pytest.mark.parametrize("pipe", [False, True])
def test_a_second_longer_input_is_put_behind_and_each_that_grew_goes_on(tmp_path: Path, pipe: bool) -> None:
    reader = Reader(tmp_path)
    assert reader.load(text("a", 100), chunk=30, pipe=pipe) == 0
    assert reader.load(text("b", 150), chunk=40, pipe=pipe) == 0
    assert reader.load(text("a", 130), chunk=20, pipe=pipe) == 100
    assert reader.load(text("b", 150), chunk=20, pipe=pipe) == 150
    assert reader.load(text("b", 160), chunk=20, pipe=pipe) == 150
    grown = [text(name, after)[len(text(name, before)) :] for name, before, after in (("a", 100, 130), ("b", 150, 160))]
    assert b"".join(line + b"\n" for line in reader.log) == text("a", 100) + text("b", 150) + b"".join(grown)


def test_random_inputs_that_share_beginnings_are_told_apart_through_kills(tmp_path: Path) -> None:
    """Whatever is loaded next, and wherever it dies: what the log gets is the next lines of that input. (What they
    share is 40 lines; of inputs that differ already, nothing is ever taken twice.)"""
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    stem = text("stem", 40)
    sources = {
        name: stem[: dice.randrange(len(stem))].rpartition(b"\n")[0] + b"\n" + text(name, 200) for name in "abcd"
    }
    reader, taken = Reader(tmp_path), dict.fromkeys(sources, 0)
    for _ in range(60):
        name = dice.choice(list(sources))
        lines = sources[name].splitlines(keepends=True)
        upto = dice.randrange(taken[name], len(lines) + 1)
        if upto < 45:  # it would be no more than what they share
            continue
        before = len(reader.log)
        die = dice.choice([None, dice.randrange(60)])
        seen = reader.load(b"".join(lines[:upto]), chunk=dice.randrange(1, 30), pipe=dice.random() < 0.5, die_after=die)
        if taken[name] > 40:
            assert seen == taken[name], f"seed {seed}"
        expected = [line.rstrip(b"\n") for line in lines[seen : seen + len(reader.log) - before]]
        assert reader.log[before:] == expected, f"seed {seed}"
        taken[name] = seen + len(reader.log) - before


def test_a_pipe_that_turns_out_late_to_be_another_input_is_refused_and_a_file_is_put_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "HELD_BYTES_MAX", 100)
    reader = Reader(tmp_path)
    reader.load(text("a", 100), chunk=10)
    other = text("a", 60) + text("b", 60)
    with pytest.raises(DataSaysNoError, match="differs from it behind line 0") as caught:
        reader.load(other, chunk=10, pipe=True)
    assert "--append" in caught.value.hint
    assert len(reader.log) == 100
    assert reader.load(other, chunk=10) == 0
    assert len(reader.log) == 220
    assert reader.load(text("a", 110), chunk=10) == 100


def test_marks_beyond_the_log_never_count(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.load(text("a", 100), chunk=10, die_after=50)
    assert len(reader.log) == 50
    assert reader.load(text("a", 50) + text("corrected", 50), chunk=10) == 50
    assert len(reader.log) == 100


def test_after_a_restore_of_an_older_state_what_it_lacks_is_loaded_again(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.load(text("a", 100), chunk=50)
    reader.load(text("b", 100), chunk=50)
    del reader.log[100:]
    assert reader.load(text("b", 100), chunk=50) == 0
    assert reader.load(text("a", 100), chunk=50) == 100


def test_another_lineage_remembers_nothing_and_a_damaged_memory_is_refused_by_name(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.load(text("a", 10), chunk=5)
    assert len(Loads(tmp_path, "lineage", 10, durable=False).stretches) == 1
    assert Loads(tmp_path, "another", 10, durable=False).stretches == []
    (tmp_path / "loads").write_bytes(b"{")
    with pytest.raises(FormatError, match="loads") as caught:
        Loads(tmp_path, "lineage", 10, durable=False)
    assert "remove" in caught.value.hint


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STRETCHES_MAX", 3)
    reader = Reader(tmp_path)
    for name in "abcde":
        reader.load(text(name, 3), chunk=3)
    found = Loads(tmp_path, "lineage", len(reader.log), durable=False).stretches
    assert [stretch.marks[-1].index for stretch in found] == [9, 12, 15]
    assert 1000 * len(msgspec.json.encode(found[0])) < SMALL_BYTES_MAX


def test_a_last_line_without_a_newline_is_known_again_with_one(tmp_path: Path) -> None:
    one, two = Prefix(), Prefix()
    one.add([b"a", b"b"])
    two.add([b"a"])
    two.add([b"b"])
    assert (one.line, one.digest()) == (two.line, two.digest())
    reader = Reader(tmp_path)
    reader.load(b"a\tb\nc\td", chunk=9)
    assert reader.load(b"a\tb\nc\td\ne\tf\n", chunk=9) == 2
    assert reader.log == [b"a\tb", b"c\td", b"e\tf"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_chunk_is_remembered_before_it_is_sent(tmp_path: Path, durable: bool) -> None:
    with reading(tmp_path / "input", text("a", 10)) as lines:
        loads = Loads(tmp_path, "lineage", 7, durable=durable)
        loads.begin(None)
        records_of = Records(lines, parse_tsv, before=Prefix(), last=LogId(7, 1), chunk_entries=4, chunk_bytes=1 << 20)
        for chunk in _noted(records_of, loads):
            end = chunk.entries[-1].index
            (stretch,) = Loads(tmp_path, "lineage", end, durable=durable).stretches
            assert (stretch.marks[-1].index, stretch.marks[-1].line) == (end, end - 7)


# --- the command --------------------------------------------------------------------------------------------------


def test_load_appends_another_file_goes_on_with_a_grown_one_and_says_which(tmp_path: Path) -> None:
    data, a, b = tmp_path / "data", tmp_path / "a", tmp_path / "b"
    a.write_bytes(records(1, 10))
    b.write_bytes(records(101, 130))
    assert cli("load", a, "--data", data, "--shards", 2).err == ""
    second = cli("load", b, "--data", data, "--json")
    assert (second.code, second.facts["records"], second.facts["index"], second.facts["entries"]) == (0, 30, 40, 40)
    assert second.err == "put behind the log, which ended at index 10\n"
    a.write_bytes(records(1, 12))
    third = cli("load", "-", "--data", data, "--json", stdin=records(1, 12).decode())
    assert (third.facts["skipped"], third.facts["records"], third.facts["index"]) == (10, 2, 42)
    assert third.err == "its first 10 lines were loaded before; went on behind them\n"
    again = cli("load", a, "--data", data, "--json")
    said = "its 12 lines were loaded before; nothing to do (--append loads them once more)\n"
    assert (again.facts["records"], again.err) == (0, said)
    assert cli("load", a, "--data", data, "--quiet").err == ""
    whole = cli("load", a, "--data", data, "--append", "--json")
    assert (whole.facts["skipped"], whole.facts["records"], whole.facts["index"]) == (0, 12, 54)
    assert cli("scan", "--data", data).out.encode() == records(1, 12) + records(101, 130)
    assert cli("verify", "--data", data).code == 0


def test_load_goes_on_behind_a_log_of_any_term(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "file"
    file.write_bytes(records(1, 10))

    async def elected() -> str:
        async with Engine(tmp_path / "host", shards=1) as db:
            await db.apply_chunk([Entry(1, 7, encode(Put(b"a", b"b")))])
            return (await db.create_snapshot()).path

    assert cli("restore", run(elected), "--data", data, "--shards", 2).code == 0
    assert cli("load", file, "--data", data).code == 0
    facts = cli("stats", "--data", data, "--json").facts
    assert (facts["entries"], facts["last_applied"]) == (11, {"index": 11, "term": 7})
    assert cli("load", file, "--data", data, "--json").facts["skipped"] == 10


def test_a_disk_that_refuses_is_named_with_what_is_loaded(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "file"
    file.write_bytes(records(1, 10))
    assert cli("load", file, "--data", data, "--shards", 1).code == 0
    (data / "loads.new").mkdir()
    file.write_bytes(records(1, 30))
    ran = cli("load", file, "--data", data)
    assert ran.code == 3 and str(data / "loads") in ran.err and "the first 10 lines are loaded" in ran.err, ran.err
    (data / "loads.new").rmdir()
    assert cli("load", file, "--data", data, "--json").facts["index"] == 30


def test_a_replacement_that_fails_leaves_no_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 << 10, hard))
    try:
        with pytest.raises(OSError, match="large"):
            replace_file(tmp_path / "loads", bytes(20 << 10), synced=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_packed_lines_that_are_known_and_cut_off_are_told_with_a_hint(tmp_path: Path) -> None:
    file = tmp_path / "file.gz"
    file.write_bytes(gzip.compress(records(1, 10)))
    assert cli("load", file, "--data", tmp_path / "data", "--shards", 1).code == 0
    file.write_bytes(file.read_bytes()[:-3])
    ran = cli("load", file, "--data", tmp_path / "data")
    assert ran.code == 1 and "the gzip data is cut off" in ran.err and "hint: " in ran.err, ran.err


def test_a_kill_while_a_second_file_is_loaded_loses_and_doubles_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert cli("load", "-", "--data", data, "--shards", 2, stdin=records(1, 50).decode()).code == 0
    second = records(1001, 61_000)
    with running("load", "-", "--data", data, "--chunk", 500) as load:
        load.write(second[: len(second) // 2])
        os.killpg(load.process.pid, signal.SIGKILL)
        load.process.wait()
    reached = cli("stats", "--data", data, "--json").facts["last_applied"]["index"]
    ran = cli("load", "-", "--data", data, "--json", stdin=second.decode())
    assert ran.code == 0
    assert ran.facts["skipped"] >= reached - 50, "a start finishes what was decided; what is read before may be less"
    assert (ran.facts["index"], ran.facts["entries"]) == (60_050, 60_050)


def test_an_unterminated_last_line_of_a_file_is_told_and_taken_on_request_only(tmp_path: Path) -> None:
    data, path = tmp_path / "data", tmp_path / "growing"
    path.write_bytes(b"a\t1\nb\t2\nc\tthr")
    half = cli("load", path, "--data", data, "--shards", 2, "--json")
    assert (half.code, half.facts["records"]) == (1, 2)
    assert "line 3 has no newline at its end" in half.err
    assert "--last-line" in half.err
    path.write_bytes(b"a\t1\nb\t2\nc\tthree\nd\tfour")
    taken = cli("load", path, "--data", data, "--last-line", "--json")
    assert (taken.code, taken.facts["skipped"], taken.facts["records"]) == (0, 2, 2)
    again = cli("load", path, "--data", data, "--json")
    assert (again.code, again.facts["records"], again.facts["skipped"]) == (0, 0, 4)
    path.write_bytes(b"a\t1\nb\t2\nc\tthree\nd\tfour\n")
    assert cli("load", path, "--data", data, "--json").facts["records"] == 0
    assert cli("load", "-", "--data", data, "--json", stdin="x\t1\ny\t2").facts["records"] == 2
    assert cli("scan", "--data", data).out == "a\t1\nb\t2\nc\tthree\nd\tfour\nx\t1\ny\t2\n"


def test_a_record_that_the_engine_refuses_is_corrected_in_a_second_file_too(tmp_path: Path) -> None:
    data, path = tmp_path / "data", tmp_path / "second"
    assert cli("load", "-", "--data", data, "--shards", 2, stdin=records(1, 5).decode()).code == 0
    good = records(11, 16).splitlines(keepends=True)
    path.write_bytes(b"".join([*good[:3], b"k" * 481 + b"\tv\n", *good[4:]]))
    wrong = cli("load", path, "--data", data)
    assert wrong.code == 1
    assert wrong.err.startswith("put behind") or wrong.err.startswith("error: line 4: ")
    path.write_bytes(b"".join(good))
    right = cli("load", path, "--data", data, "--json")
    assert (right.facts["skipped"], right.facts["records"], right.facts["index"]) == (3, 3, 11)
