"""What is beside the records: reset, the hard state, and places in the log without entries."""

from __future__ import annotations

from pathlib import Path

from shardengine import HardState, LogId
from shardengine.engine.conformance.base import Hooks, MachineUnderTest, check, expect, refusal
from shardengine.engine.conformance.log import Log

_ENTRIES = 60


class Standing(Hooks):
    """Checks of `reset`, `save_hard_state`, `update_last_applied`."""

    async def _fill_and_reset(self, machine: MachineUnderTest, log: Log, hard: HardState) -> None:
        if "hard_state" in self.supports:
            machine.save_hard_state(hard)
        await self.feed(machine, log, 1, _ENTRIES)
        await machine.reset()

    @check("reset")
    async def test_a_reset_leaves_an_empty_machine_at_index_0(self, tmp_path: Path) -> None:
        """With its hard state, and for good."""
        log, other, hard = self.log(), self.log(seed=5), HardState(7, "a")
        with self.running(tmp_path / "machine") as machine:
            await self._fill_and_reset(machine, log, hard)
            self.expect_state(machine, log, 0, "after reset()")
            if "hard_state" in self.supports:
                expect(machine.hard_state(), hard, "hard_state() after chunks of other terms, and reset()")
            await self.feed(machine, other, 1, 30)
            self.expect_state(machine, other, 30, "after reset() and another log")
        if "reopen" in self.supports:
            with self.running(tmp_path / "machine") as machine:
                self.expect_state(machine, other, 30, "after reset(), another log, and reopening")

    @check("reset", "reopen")
    async def test_a_reset_is_there_after_reopening(self, tmp_path: Path) -> None:
        log, other, hard = self.log(), self.log(seed=5), HardState(7, "a")
        with self.running(tmp_path / "machine") as machine:
            await self._fill_and_reset(machine, log, hard)
        with self.running(tmp_path / "machine") as machine:
            self.expect_state(machine, log, 0, "after reset() and reopening")
            if "hard_state" in self.supports:
                expect(machine.hard_state(), hard, "hard_state() after reset() and reopening")
            await self.feed(machine, other, 1, 30)
            self.expect_state(machine, other, 30, "after reset(), reopening and another log")

    @check("hard_state")
    async def test_a_hard_state_is_kept_and_does_not_go_back(self, tmp_path: Path) -> None:
        with self.running(tmp_path / "machine") as machine:
            for state in (
                HardState(3, None),
                HardState(3, "a"),
                HardState(3, "a"),
                HardState(5, "b"),
                HardState(6, None),
            ):
                machine.save_hard_state(state)
                expect(machine.hard_state(), state, "hard_state() is what was saved last")
            with refusal("save_hard_state raises where the term falls, from 6 to 5"):
                machine.save_hard_state(HardState(5, None))
            machine.save_hard_state(HardState(6, "a"))
            for vote in ("b", None):
                with refusal(f"save_hard_state raises where the vote of term 6 goes from a to {vote}"):
                    machine.save_hard_state(HardState(6, vote))
            machine.save_hard_state()
            expect(machine.hard_state(), HardState(6, "a"), "hard_state() after three saves that were refused")

    @check("hard_state", "reopen")
    async def test_a_hard_state_is_there_after_reopening(self, tmp_path: Path) -> None:
        """A node that forgets its vote may vote twice in a term."""
        with self.running(tmp_path / "machine") as machine:
            machine.save_hard_state(HardState(3, "b"))
            machine.save_hard_state(HardState(4, "a"))
        with self.running(tmp_path / "machine") as machine:
            expect(machine.hard_state(), HardState(4, "a"), "hard_state() after reopening is what was saved last")
            with refusal("save_hard_state raises where the vote of term 4 went to a before reopening, and goes to b"):
                machine.save_hard_state(HardState(4, "b"))

    @check("standing")
    async def test_the_index_passes_over_entries_without_commands(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 10)
            machine.update_last_applied(log.name(5))
            self.expect_state(machine, log, 10, "after update_last_applied() of an entry that was applied before")
            for wrong in (LogId(10, 9), LogId(20, 0)):
                with refusal(f"update_last_applied({wrong}) raises at {log.name(10)}: it contradicts the log"):
                    machine.update_last_applied(wrong)
                self.expect_state(machine, log, 10, f"after update_last_applied({wrong}) was refused")
            records = self.found(machine)
            machine.update_last_applied(LogId(100, 2))
            expect(machine.last_applied(), LogId(100, 2), "last_applied() after update_last_applied(LogId(100, 2))")
            expect(machine.entry_term(100), 2, "entry_term(100) after update_last_applied(LogId(100, 2))")
            expect(self.found(machine), records, "the records, after the index passed over entries without commands")
            with refusal("apply_chunk raises where entry 102 follows entry 100, which was passed over to"):
                await machine.apply_chunk(self.entries(log, 102, 103))
            machine.persist_last_applied(log.name(10))
            expect(machine.last_applied(), LogId(100, 2), "last_applied() after persist_last_applied() of entry 10")
            machine.persist_last_applied(LogId(200, 3))
            expect(machine.last_applied(), LogId(200, 3), "last_applied() after persist_last_applied(LogId(200, 3))")
        if "reopen" in self.supports:
            with self.running(tmp_path / "machine") as machine:
                expect(machine.last_applied(), LogId(200, 3), "last_applied() that was persisted, after reopening")
                expect(self.found(machine), records, "the records, after persist_last_applied(), and reopening")
