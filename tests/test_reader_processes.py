"""Readers beside a live engine in another process, whatever becomes of that."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from shardengine import NoCutError, Reader
from shardengine.engine.read import follow
from tests.commands import cli, started
from tests.killing import ROOT, environment, note, seeded
from tests.reading import GENERATIONS, VERSIONS, Seen
from tests.writing import ALONE, KEYS, Writer

READERS = 4
FLIPS = 400  # behind each event
LAST = 1_000_000
"""The version that readers wait for."""
ROUNDS = 6
WATCHDOG_S = 100


@contextmanager
def readers(directory: Path, last: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that read until they have seen version `last`."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.reading", str(directory), str(last)],
            stdout=subprocess.PIPE,
            bufsize=0,  # so that nothing is read that `select` then does not see
            cwd=ROOT,
            env=environment(),
        )
        for _ in range(READERS)
    ]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == b"reading\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def flip_until_enough(writer: Writer, started: list[subprocess.Popen[bytes]], first: int) -> None:
    """From version `first` on, until every reader says that it has seen enough."""
    waiting = [process.stdout for process in started if process.stdout is not None]
    while waiting:
        assert writer.ask("flip", first, FLIPS), "the readers have not seen enough in time"
        first += FLIPS
        for stdout in select.select(waiting, [], [], 0)[0]:
            assert stdout.readline() == b"enough\n"
            waiting.remove(stdout)
    assert first < LAST


def what_they_saw(started: list[subprocess.Popen[bytes]]) -> list[Seen]:
    return [msgspec.json.decode(process.communicate(timeout=WATCHDOG_S)[0], type=Seen) for process in started]


def versions_in(reader: Reader) -> set[bytes | None]:
    return set(reader.get_multi(KEYS))


def test_no_reader_ever_sees_two_versions_or_an_older_one_whatever_happens_to_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with Writer(path) as writer:
        assert writer.ask("flip", 1, 1) == "64"
        with readers(path, LAST) as started:
            events = ("noop", "kill 0", "compact", "restart", "snapshot", "kill 2")
            for number, event in enumerate(events):
                said = writer.ask(event)
                if event == "snapshot":
                    writer.ask("restore", said)
                writer.ask("flip", 2 + number * FLIPS, FLIPS)
            flip_until_enough(writer, started, 2 + len(events) * FLIPS)
            writer.ask("flip", LAST, 1)
            saw = what_they_saw(started)
        index = int(writer.ask("noop"))
        with Reader(path) as reader:
            reader.wait_applied(index, 30)
            assert reader.digest().hex() == writer.ask("digest")
    note(f"{saw}")
    for seen in saw:
        assert (seen.mixed, seen.fell) == (0, 0), seen
        assert seen.versions >= VERSIONS and seen.generations >= GENERATIONS, seen
        assert seen.tries_max <= follow.TRIES_MAX and seen.refused <= 4, seen


def test_what_is_read_beside_an_engine_is_as_the_engine_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with Writer(path) as writer, Reader(path) as reader:
        assert (reader.last_applied().index, reader.is_empty(), reader.age()) == (0, True, None)
        writer.tell("flip", 1, 3)
        reader.wait_applied(3 * 64, 30)
        assert writer.answer() == str(reader.last_applied().index)
        assert reader.stats()["engine"] == "runs" and reader.stats()["pid"] == writer.pid
        assert reader.digest().hex() == writer.ask("digest")
        assert [key for key, _ in reader.scan_prefix(b"key-1", limit=5, start_after=b"key-12").entries] == KEYS[13:18]
        with reader.view() as view:
            for what in ("alone 7", "noop", "pass", "flip 4 1"):
                assert writer.ask(what) == str(reader.last_applied().index)
                assert (view.revision, view.get(ALONE), view.get(KEYS[5])) == (3 * 64, None, b"3")
            assert (reader.get(ALONE), reader.get(KEYS[5]), len(reader)) == (b"7", b"4", 65)
            reader.release()
            assert view.get(KEYS[5]) == b"3", "a view is kept by who has it"
        assert reader.get(KEYS[5]) == b"4"


def test_a_reader_goes_along_to_another_state_and_to_another_run(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with Writer(path) as writer, Reader(path) as reader:
        writer.ask("flip", 1, 1)
        snapshot = writer.ask("snapshot")
        writer.ask("flip", 2, 1)
        for what, version, index in (
            ("restart", b"2", 128),
            ("compact", b"2", 128),
            (f"restore {snapshot}", b"1", 64),
            ("reset", None, 0),
            ("restart", None, 0),
        ):
            before = reader.stats()["generation"]
            assert writer.ask(what) == str(index)
            assert (versions_in(reader), reader.last_applied().index) == ({version}, index), what
            assert (reader.stats()["generation"] == before) == (what == "restart")
            assert reader.age() is None
    assert not list(path.glob("gen-00000[123]")), "what nobody holds is gone"


@pytest.mark.parametrize(
    ("death", "last_words", "kept", "fresh"),
    [
        ("publish", "flip 2 1", b"1", b"2"),
        ("publish", "alone 2", b"1", b"2"),
        ("commit", "flip 2 1", b"1", b"1"),
        ("page", "flip 2 1", b"2", b"2"),
        ("commits", "flip 2 1", b"1", None),
    ],
    ids=["before a publish", "before a solo's publish", "before any commit", "within the page", "within a commit"],
)
def test_after_a_death_a_cut_is_what_was_published_or_what_the_next_start_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str, last_words: str, kept: bytes, fresh: bytes | None
) -> None:
    path, key = tmp_path / "db", ALONE if "alone" in last_words else KEYS[0]
    monkeypatch.setattr(follow, "TRIES_MAX", 25)
    with Writer(path) as writer:
        writer.ask("flip", 1, 1)
        writer.ask("alone", 1)
        with Reader(path) as reader:
            assert reader.get(key) == b"1"
            writer.ask("die", death)
            writer.dies(last_words)
            assert reader.get(key) == kept, "a cut that is at hand stays"
            assert reader.age() is not None
            shown = reader.last_applied().index
            reader.release()
            if fresh is None:
                for _ in range(2):
                    with pytest.raises(NoCutError, match="died within a commit") as caught:
                        reader.get(key)
                    assert max(caught.value.facts["shards"]) == 3 > min(caught.value.facts["shards"])
            else:
                assert (reader.get(key), len(versions_in(reader))) == (fresh, 1)
                assert reader.last_applied().index >= shown
                shown = reader.last_applied().index
            with Writer(path) as again:
                assert int(again.ask("noop")) > shown
                assert (reader.get(key), len(versions_in(reader)), reader.age()) == (b"2", 1, None)


def test_a_commit_that_never_ends_is_named_and_a_cut_at_hand_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "TRIES_MAX", 40)
    path = tmp_path / "db"
    with Writer(path) as writer, Reader(path) as reader:
        writer.ask("flip", 1, 1)
        assert versions_in(reader) == {b"1"}
        writer.ask("die", "never")
        writer.tell("flip", 2, 1)
        with pytest.raises(NoCutError, match=f"process {writer.pid}. has published group 1") as caught:
            read_until_it_is_refused(reader)
        assert caught.value.facts["published"] == 1 and caught.value.facts["tries"] >= 40
        writer.kill()
        with pytest.raises(NoCutError, match="died within a commit"):
            reader.get(KEYS[0])
    ran = cli("get", KEYS[0].decode(), "--data", path)
    assert (ran.code, ran.out) == (0, "2\n"), "the command line finishes the commit first"


def test_no_decision_record_is_read_beside_an_engine_that_gives_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may go on, and what the record says is then of another commit than what the shards show."""
    monkeypatch.setattr(follow, "TRIES_MAX", 40)
    monkeypatch.setattr(follow, "BEAT_MAX_S", 0)
    with Writer(tmp_path / "db") as writer, Reader(tmp_path / "db") as reader:
        writer.ask("flip", 1, 1)
        writer.ask("die", "silent")
        writer.tell("flip", 2, 1)
        with pytest.raises(NoCutError, match="shows nothing to other processes"):
            read_until_it_is_refused(reader)
        writer.kill()
        assert versions_in(reader) == {b"2"}


def read_until_it_is_refused(reader: Reader) -> None:
    """Until one shard has committed."""
    while True:
        reader.release()
        assert reader.get(KEYS[0]) == b"1", "what was published"


def test_an_engine_that_is_killed_at_any_moment_leaves_a_state_to_read_that_the_next_start_does_not_undo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "TRIES_MAX", 60)
    path, rng, newest, refused = tmp_path / "db", seeded(), (0, 0), 0
    for _ in range(ROUNDS):
        with Writer(path, shards=2) as writer, Reader(path) as reader:
            place = place_of(reader)
            assert place >= newest, f"{newest} was shown before the start"
            writer.tell("flip", place[1] + 1, 1_000_000)
            seen = [place_of(reader) for _ in range(rng.randint(1, 300))]
            writer.kill(workers=rng.random() < 0.5)
            for _ in range(2):  # beside a cut at hand, which stays if nothing was published since; then without one
                try:
                    seen.append(place_of(reader))
                except NoCutError:
                    refused += 1
                assert reader.age() is not None
                reader.release()
            assert seen == sorted(seen)
            newest = seen[-1]
    note(f"{refused} of {2 * ROUNDS} reads met a death within a commit")


def place_of(reader: Reader) -> tuple[int, int]:
    """Index and version of one cut, which has one version."""
    with reader.view() as view:
        (version,) = set(view.get_multi(KEYS))
        return view.revision, int(version or b"0")


def test_the_command_line_reads_and_checks_beside_a_live_engine(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with Writer(path) as writer:
        writer.ask("flip", 1, 1)
        found = cli("get", "key-07", "--data", path, "--json")
        assert (found.code, found.facts["value"], found.facts["index"]) == (0, "1", 64)
        assert cli("scan", "key-0", "--data", path, "--limit", 2).out == "key-00\t1\nkey-01\t1\n"
        digest = cli("digest", "--data", path, "--json").facts
        assert digest == {"digest": writer.ask("digest"), "index": 64, "term": 1, "entries": 64}
        facts = cli("stats", "--data", path, "--json").facts
        assert (facts["engine"], facts["pid"], facts["age_s"]) == ("runs", writer.pid, None)
        checked = cli("verify", "--data", path, "--json")
        assert (checked.code, checked.facts) == (0, {"ok": True, "findings": [], "live": True, **digest})
        told = cli("verify", "--data", path).out.splitlines()
        assert told == ["no damage found", "an engine runs: checked the 64 records of index 64, no pages"]
        assert started("compact", path).code == 3, "what writes does not work beside it"
        assert writer.ask("flip", 2, 1) == "128"
