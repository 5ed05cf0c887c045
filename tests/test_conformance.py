"""The suite for people's own state machines: on those of ours, on a sound one of a stranger, and on broken ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from shardengine import Engine, EngineConfig, StateMachine, encode
from shardengine.adaptors import FileStateMachine, MemoryStateMachine, RocksDBStateMachine, SQLiteStateMachine
from shardengine.conformance import StateMachineSuite
from shardengine.engine.conformance import kills
from tests import broken_machines as bad
from tests import cornered_machines as cornered
from tests.killing import DEEP, WATCHDOG_S, environment
from tests.moving import Explode, Moving, Relocate
from tests.toy import Toy

CONFIG = EngineConfig(map_bytes=16 << 20, ring_bytes=1 << 20)


class OverAll(StateMachineSuite):
    """Of a machine that takes the commands of `Moving`."""

    supports = StateMachineSuite.supports | {"spanning"}

    def move(self, source: bytes, target: bytes) -> bytes:
        return encode(Relocate(source, target))

    def failing(self) -> bytes:
        return encode(Explode(b"key"))


class TestToy(OverAll):
    kills = 4

    def build(self, directory: Path) -> Toy:
        return Toy(directory)


class TestMemory(OverAll):
    supports = OverAll.supports - {"reopen", "kills"}

    def build(self, directory: Path) -> MemoryStateMachine:
        return MemoryStateMachine(Moving)


class TestFile(OverAll):
    """Its file is written anew again and again."""

    kills = 4

    def build(self, directory: Path) -> FileStateMachine:
        return FileStateMachine(directory, Moving, checkpoint_bytes=4096)


class TestSQLite(OverAll):
    kills = 4

    def build(self, directory: Path) -> SQLiteStateMachine:
        return SQLiteStateMachine(directory, Moving)


class TestRocksDB(OverAll):
    kills = 4

    def build(self, directory: Path) -> RocksDBStateMachine:
        return RocksDBStateMachine(directory, Moving)


class TestOneShard(StateMachineSuite):
    kills = 4

    def build(self, directory: Path) -> Engine:
        return Engine(directory, shards=1, config=CONFIG)


class TestTwoShards(OverAll):
    kills = 4

    def build(self, directory: Path) -> Engine:
        return Engine(directory, shards=2, machine=Moving, config=CONFIG)


class TestFiveShards(OverAll):
    """Without the checks of what is decided before a chunk is split, or done beside the shards: one or two of them show
    all of that, and most of a check is the start of its workers."""

    kills = 2

    def build(self, directory: Path) -> Engine:
        return Engine(directory, shards=5, machine=Moving, config=CONFIG)


for _check in (
    ()
    if DEEP
    else (
        "a_machine_runs_from_its_start_to_its_stop",
        "a_new_machine_is_empty_and_stands_at_index_0",
        "a_machine_that_was_not_started_answers_no_read",
        "a_stopped_machine_answers_no_read",
        "an_entry_that_comes_again_changes_nothing",
        "a_swap_that_comes_again_does_not_swap_back",
        "a_gap_is_refused_and_changes_nothing",
        "falling_indices_and_terms_are_refused_and_change_nothing",
        "every_entry_keeps_its_term",
        "a_label_that_would_be_a_lie_is_refused",
        "the_last_snapshot_is_remembered",
        "a_snapshot_that_is_stale_is_refused",
        "a_snapshot_that_is_mislabelled_is_refused",
        "a_hard_state_is_kept_and_does_not_go_back",
        "a_hard_state_is_there_after_reopening",
    )
):
    assert callable(getattr(TestFiveShards, f"test_{_check}"))
    setattr(TestFiveShards, f"test_{_check}", None)


# ---- broken machines -------------------------------------------------------------------------------------------------


class Broken(OverAll):
    """Over whichever machine is to be found out. The process that is killed finds each in a class of its own."""

    machine: ClassVar[type[Toy]]

    def build(self, directory: Path) -> Toy:
        return self.machine(directory)


class Behind(Broken):
    machine = bad.IndexBehindTheData


class Ahead(Broken):
    machine = bad.IndexAheadOfTheData


class Late(Broken):
    machine = bad.SavesAtItsStop


class Voteless(Broken):
    machine = bad.ForgetsItsVote


class TwoSteps(Broken):
    kills = 40  # a third of them hit an install
    machine = cornered.InstallsInTwoSteps


def suite_on(machine: type[Toy]) -> Broken:
    found = [kind for kind in (Behind, Ahead, Late, Voteless, TwoSteps) if kind.machine is machine]
    return found[0]() if found else type("Found", (Broken,), {"machine": machine})()


INSTALL = "an_install_leaves_the_snapshot_as_it_is_and_needs_it_no_more"
KILLS = "nothing_acknowledged_is_lost_and_nothing_torn_by_sigkill"


FOUND_OUT: list[tuple[type[Toy], str, str]] = [
    (bad.AppliesTwice, "an_entry_that_comes_again_changes_nothing", "were delivered again"),
    (bad.AppliesTwice, "a_swap_that_comes_again_does_not_swap_back", "would hold once more"),
    (bad.DropsWhatOverlaps, "of_chunks_that_overlap_only_what_is_new_is_applied", "one result for each entry"),
    (bad.HalfAChunk, "a_chunk_that_fails_leaves_nothing_of_itself", "failed at entry 18"),
    (bad.ResultsOutOfOrder, "results_stand_in_the_order_of_their_entries", "is of entry 2: 2; it is 3"),
    (bad.TornGetMulti, "reads_beside_a_writer_see_the_state_at_one_index", r"get_multi\(\) is of one index"),
    (bad.IndexBehindTheData, KILLS, "the index is behind the data: they are of entry"),
    (bad.IndexAheadOfTheData, KILLS, "the index is ahead of the data: they are of entry"),
    (bad.SavesAtItsStop, KILLS, "a (chunk that was acknowledged|vote that was saved) survives SIGKILL"),
    (bad.ForgetsItsVote, KILLS, "a vote that was saved survives SIGKILL"),
    (bad.TakesStaleSnapshots, "a_snapshot_that_is_stale_is_refused", "of entry 20 comes to a state at 30"),
    (bad.TakesDamagedSnapshots, "a_snapshot_that_is_damaged_is_refused", "raises where .* of records"),
    (bad.LabelOlderThanTheContent, "a_snapshot_holds_the_state_that_its_label_names", "a snapshot labelled 60, reads"),
    (bad.KeepsOldKeys, "what_is_installed_takes_the_place_of_all_that_was_there_at_once", "keys of its own, reads"),
    (bad.ForgetsItsVote, "a_hard_state_is_there_after_reopening", "after reopening is what was saved last"),
    (bad.ForgetsTheTerm, "a_new_machine_over_the_directory_finds_what_was_applied", "names the newest entry"),
    (bad.StoppedAnswersAbsent, "a_stopped_machine_answers_no_read", r"raises after stop\(\)"),
    (bad.LeavesFilesOpen, "a_machine_that_was_stopped_leaves_nothing_open", "leaves no descriptor"),
    (bad.StoppedAnswersAbsent, "a_machine_that_was_not_started_answers_no_read", r"raises before start\(\)"),
    (bad.StartsTwice, "a_machine_runs_from_its_start_to_its_stop", "of a machine that runs raises"),
    (bad.BeginsInTermOne, "a_new_machine_is_empty_and_stands_at_index_0", "of a new machine"),
    (bad.AppliesWhenStopped, "a_stopped_machine_applies_nothing_and_goes_on_when_it_is_started", "apply_chunk raises"),
    (bad.CleansUpWhatLives, "a_flush_and_a_cleanup_change_nothing_that_can_be_read", "after lease_background_clean"),
    (bad.TakesGaps, "a_gap_is_refused_and_changes_nothing", "entry 2 comes first"),
    (bad.TakesFallingTerms, "falling_indices_and_terms_are_refused_and_change_nothing", "term 1 follows 2"),
    (bad.OneTermForAll, "every_entry_keeps_its_term", r"entry_term\(1\) is that which it was applied with: 1; it is 3"),
    (bad.RefusesNothing, "entries_without_data_move_the_index_only", "succeeded of entry 1"),
    (bad.SeesTheStateBeforeTheChunk, "an_entry_sees_what_those_before_it_in_its_chunk_did", "succeeded of entry 2"),
    (bad.SeesTheStateBeforeTheChunk, "the_same_log_in_other_chunks_comes_to_the_same_state", "succeeded of entry"),
    (bad.FirstWriteCounts, "the_last_of_several_writes_of_a_key_counts", "four writes of each key"),
    (bad.SortsItsKeys, "get_multi_answers_in_the_order_of_its_keys", "a key twice and two absent"),
    (bad.NeverHasMore, "a_scan_gives_the_records_of_its_prefix_in_order", "what pages of 1, reverse=False, come to"),
    (
        bad.CopiesWhatItIsToMove,
        "a_move_takes_effect_on_both_keys_or_leaves_no_trace",
        "after the moves of entries 2 to",
    ),
    (bad.CopiesWhatItIsToMove, "no_read_sees_half_a_move", "values are there twice"),
    (bad.ForgetsTermsInSnapshots, "a_snapshot_makes_another_machine_the_same", r"entry_term\(60\) is that entry's"),
    (bad.LabelsAsItIsTold, "a_label_that_would_be_a_lie_is_refused", "is asked for at"),
    (bad.ForgetsItsSnapshots, "the_last_snapshot_is_remembered", "that was persisted, after reopening"),
    (bad.BelievesEveryLabel, "a_snapshot_that_is_mislabelled_is_refused", "names a snapshot of"),
    (bad.ResetsItsVote, "a_reset_leaves_an_empty_machine_at_index_0", r"hard_state\(\) after"),
    (bad.VotesTwice, "a_hard_state_is_kept_and_does_not_go_back", "raises where the term falls"),
    (cornered.EmptyIsAbsent, "a_value_without_bytes_is_a_value", r"after b'' was put, reads see"),
    (cornered.CutsAtNul, "the_last_of_several_writes_of_a_key_counts", "four writes of each key"),
    (cornered.BeginsAnewBehindAnAbsentKey, "a_scan_stops_at_its_limit_and_begins_behind_a_key", "start_after="),
    (cornered.EmptiesItsInput, "every_entry_keeps_its_term", "leaves the entries that it is given as they are"),
    (cornered.UndoesWhatComesAtOnce, "chunks_that_come_at_once_do_not_undo_each_other", "came at once, reads see"),
    (cornered.TrustsTheTermsOfAnOverlap, "every_entry_keeps_its_term", "60 to 120 come again, of other terms"),
    (cornered.ResetsItsMemoryOnly, "a_reset_is_there_after_reopening", r"after reset\(\) and reopening, last_applied"),
    (cornered.ForgetsItsVoteAtAnInstall, INSTALL, r"hard_state\(\) after an install"),
    (cornered.UsesASnapshotUp, INSTALL, "are what they were"),
    (cornered.OneTermForAllThatIsInstalled, "a_snapshot_makes_another_machine_the_same", r"entry_term\(49\) is that"),
    (cornered.NamesWhatItRefuses, "a_snapshot_that_is_mislabelled_is_refused", r"snapshot_metadata\(\) after"),
    (
        cornered.PersistsBackwards,
        "the_index_passes_over_entries_without_commands",
        r"persist_last_applied\(\) of entry 10",
    ),
    (cornered.TakesItsVoteBack, "a_hard_state_is_kept_and_does_not_go_back", "goes from a to None"),
    (cornered.InstallsInTwoSteps, KILLS, "a (chunk that was acknowledged|vote that was saved) survives SIGKILL"),
    (bad.PassesBackwards, "the_index_passes_over_entries_without_commands", "applied before, last_applied"),
]


@pytest.mark.parametrize(("machine", "check", "said"), FOUND_OUT, ids=lambda part: getattr(part, "__name__", ""))
def test_a_broken_machine_is_found_out_by_the_check_that_is_meant_for_it(
    machine: type[Toy], check: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills, "UNSEEN", 1_000)  # look behind every kill: what is wrong then is wrong in one way
    with pytest.raises(pytest.fail.Exception, match=said):
        getattr(suite_on(machine), f"test_{check}")(tmp_path)
    while bad.LeavesFilesOpen.opened:
        os.close(bad.LeavesFilesOpen.opened.pop())


def test_every_check_but_the_one_that_demands_nothing_finds_something_out() -> None:
    names = {name.removeprefix("test_") for name in dir(StateMachineSuite) if name.startswith("test_")}
    assert names - {check for _, check, _ in FOUND_OUT} == {"ten_thousand_entries_take_some_time"}


def toy(path: Path) -> StateMachine:
    """For the type checker: a toy is a state machine."""
    return Toy(path)


def test_no_check_of_one_group_hides_one_of_another() -> None:
    names = [name for kind in StateMachineSuite.__mro__ for name in vars(kind) if name.startswith("test_")]
    assert len(names) == len(set(names)) > 35


def test_a_group_that_is_none_is_named(tmp_path: Path) -> None:
    class Wrong(TestToy):
        supports = StateMachineSuite.supports | {"scann"}

    with pytest.raises(pytest.fail.Exception, match=r"supports names \['scann'\], which is none of \['delete', "):
        Wrong().test_every_entry_keeps_its_term(tmp_path)


def test_a_class_that_the_killed_process_cannot_find_is_named(tmp_path: Path) -> None:
    class Hidden(TestToy):
        pass

    with pytest.raises(pytest.fail.Exception, match=r"must find .*<locals>.Hidden, which is made in a function"):
        getattr(Hidden(), f"test_{KILLS}")(tmp_path)


# ---- a machine outside the package -----------------------------------------------------------------------------------


FIVE_LINES = """\
from mine import Mine
from shardengine.conformance import StateMachineSuite
class TestMine(StateMachineSuite):
    def build(self, directory):
        return Mine(directory)
"""


def run_pytest(place: Path, *arguments: str) -> str:
    """What pytest says of the tests in a directory, without plugins, and knowing nothing of where ours are."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--basetemp={place / 'temporary'}",
            *arguments,
        ],
        cwd=place,
        env=environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        timeout=4 * WATCHDOG_S,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_machine_of_somebody_else_is_under_test_with_five_lines(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from tests.toy import Toy as Mine\n")
    folder = tmp_path / "no package, and on no path"
    folder.mkdir()
    (folder / "test_mine.py").write_text(FIVE_LINES)
    said = run_pytest(tmp_path, "-rs", "--import-mode=importlib", "-o", f"pythonpath={tmp_path}")
    assert re.search(r"^\d\d passed, 2 skipped in ", said, re.MULTILINE), said
    assert "TestMine leaves out spanning: its `supports` does not name it" in said


def test_what_a_broken_machine_breaks_is_said_in_a_sentence_and_the_smoke_test_tells_its_number(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from tests.broken_machines import StoppedAnswersAbsent as Mine\n")
    (tmp_path / "test_mine.py").write_text(FIVE_LINES)
    said = run_pytest(tmp_path, "-rP", "-k", "stopped_machine_answers or ten_thousand")
    assert re.search(r"^E +Failed: The contract demands: get\(b'key/0'\) raises after stop\(\)", said, re.MULTILINE), (
        said
    )
    assert re.search(
        r"^TestMine: 10000 entries of \d+-byte values in chunks of 500: [\d,]+ a second$", said, re.MULTILINE
    )
    assert "1 failed, 1 passed" in said


def test_without_pytest_the_suite_says_what_to_install() -> None:
    program = "import sys; sys.modules['pytest'] = None; from shardengine.conformance import StateMachineSuite"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("shardengine.conformance needs pytest: pip install 'shardengine[conformance]'\n")
