"""A machine's life: start, stop, start again."""

from __future__ import annotations

from pathlib import Path

from shardengine import LogId
from shardengine.engine.conformance.base import Hooks, MachineUnderTest, check, expect, expect_results, refusal

_ENTRIES = 60


class Lifecycle(Hooks):
    """Checks of `start`, `stop`, `is_running` and `flush`."""

    @check()
    async def test_a_machine_runs_from_its_start_to_its_stop(self, tmp_path: Path) -> None:
        """And cannot be started meanwhile."""
        log = self.log()
        tmp_path.joinpath("machine").mkdir()
        expect(self.build(tmp_path / "machine").is_running(), False, "is_running() before start()")
        with self.running(tmp_path / "machine") as machine:
            expect(machine.is_running(), True, "is_running() after start()")
            await self.feed(machine, log, 1, 10)
            with refusal("start() of a machine that runs raises"):
                machine.start()
            expect(machine.is_running(), True, "is_running() after a second start()")
            await self.feed(machine, log, 11, 20)
            self.expect_state(machine, log, 20, "after a second start()")
            machine.stop()
            expect(machine.is_running(), False, "is_running() after stop()")

    @check()
    async def test_a_new_machine_is_empty_and_stands_at_index_0(self, tmp_path: Path) -> None:
        with self.running(tmp_path / "machine") as machine:
            expect(machine.last_applied(), LogId(0, 0), "last_applied() of a new machine")
            expect((len(machine), machine.is_empty()), (0, True), "len() and is_empty() of a new machine")
            expect(machine.get(self.key(0)), None, "get() of a new machine")
            expect(machine.entry_term(1), None, "entry_term(1) of a new machine")
            if "snapshots" in self.supports:
                expect(machine.snapshot_metadata(), None, "snapshot_metadata() of a new machine")
            if "hard_state" in self.supports:
                expect(machine.hard_state(), None, "hard_state() of a new machine")

    @check()
    async def test_a_machine_that_was_not_started_answers_no_read(self, tmp_path: Path) -> None:
        tmp_path.joinpath("machine").mkdir()
        _answers_nothing(self, self.build(tmp_path / "machine"), "before start()")

    @check()
    async def test_a_stopped_machine_answers_no_read(self, tmp_path: Path) -> None:
        """An answer of "absent" would be believed."""
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, self.log(), 1, _ENTRIES)
            machine.stop()
            _answers_nothing(self, machine, "after stop()")

    @check()
    async def test_a_stopped_machine_applies_nothing_and_goes_on_when_it_is_started(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, _ENTRIES)
            machine.stop()
            with refusal("apply_chunk raises after stop()"):
                await machine.apply_chunk(self.entries(log, _ENTRIES + 1, _ENTRIES + 10))
            report = machine.start()
            expect(report.last_applied, log.name(_ENTRIES), "start() reports where the log goes on")
            self.expect_state(machine, log, _ENTRIES, "after stop() and start()")
            await self.feed(machine, log, _ENTRIES + 1, 2 * _ENTRIES)
            self.expect_state(machine, log, 2 * _ENTRIES, "after stop(), start() and more chunks")

    @check("reopen")
    async def test_a_new_machine_over_the_directory_finds_what_was_applied(self, tmp_path: Path) -> None:
        """And does not apply it again."""
        log, last = self.log(), _ENTRIES + 5
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, _ENTRIES)
        with self.running(tmp_path / "machine") as machine:
            self.expect_state(machine, log, _ENTRIES, "after stop(), and start() of a new machine")
            results = await machine.apply_chunk(self.entries(log, 20, last))
            expect_results(results, log, 20, last, known=_ENTRIES - 19)
            self.expect_state(machine, log, last, "after entries from before reopening were delivered again")

    @check()
    async def test_a_flush_and_a_cleanup_change_nothing_that_can_be_read(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, _ENTRIES)
            machine.flush()
            self.expect_state(machine, log, _ENTRIES, "after flush()")
            await machine.flush_async()
            self.expect_state(machine, log, _ENTRIES, "after flush_async()")
            expect(await machine.lease_background_cleanup(), [], "lease_background_cleanup() where nothing expires")
            self.expect_state(machine, log, _ENTRIES, "after lease_background_cleanup()")


def _answers_nothing(suite: Hooks, machine: MachineUnderTest, when: str) -> None:
    for key in (suite.key(0), suite.key(10_000)):
        with refusal(f"get({key!r}) raises {when}, as there is no telling whether the key is absent"):
            machine.get(key)
    with refusal(f"len() raises {when}"):
        len(machine)
    with refusal(f"last_applied() raises {when}"):
        machine.last_applied()
    if "get_multi" in suite.supports:
        with refusal(f"get_multi() raises {when}"):
            machine.get_multi(suite.keys())
    if "scan" in suite.supports:
        with refusal(f"scan_prefix() raises {when}"):
            machine.scan_prefix(b"")
