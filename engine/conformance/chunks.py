"""A chunk: what its entries see of each other, what they give, and that it is applied whole or not at all."""

from __future__ import annotations

from pathlib import Path

from shardengine import CompareAndSwap, Delete, Entry, Put
from shardengine.engine.conformance.base import Hooks, MachineUnderTest, check, expect, refusal
from shardengine.engine.conformance.log import Log, Operation


class Chunks(Hooks):
    """Checks of one chunk in itself."""

    @check("swap")
    async def test_an_entry_sees_what_those_before_it_in_its_chunk_did(self, tmp_path: Path) -> None:
        key, one, two, three = self.key(0), self.value(1), self.value(2), self.value(3)
        operations: list[Operation] = [
            CompareAndSwap(key, None, one),
            CompareAndSwap(key, one, two),
            CompareAndSwap(key, one, three),
            Put(self.key(1), one),
            CompareAndSwap(self.key(1), one, two),
        ]
        if "delete" in self.supports:
            operations += [Delete(key), CompareAndSwap(key, two, three), CompareAndSwap(key, None, one)]
        log = Log(operations)
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, len(operations), width=len(operations))
            self.expect_state(machine, log, len(operations), "after a chunk of swaps that look at each other's values")

    @check()
    async def test_the_last_of_several_writes_of_a_key_counts(self, tmp_path: Path) -> None:
        log = Log(Put(self.key(number % 3), self.value(number)) for number in range(12))
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 12, width=12)
            self.expect_state(machine, log, 12, "after a chunk with four writes of each key")

    @check()
    async def test_a_value_without_bytes_is_a_value(self, tmp_path: Path) -> None:
        """Where the suite is not told of other values: value(0) is one."""
        key, other, nothing = self.key(0), self.key(1), self.value(0)
        operations: list[Operation] = [Put(key, self.value(1)), Put(key, nothing), Put(other, nothing)]
        if "swap" in self.supports:
            operations += [CompareAndSwap(key, None, self.value(2)), CompareAndSwap(other, nothing, self.value(2))]
        log = Log(operations)
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, len(operations))
            self.expect_state(machine, log, len(operations), f"after {nothing!r} was put")
        if "reopen" in self.supports:
            with self.running(tmp_path / "machine") as machine:
                self.expect_state(machine, log, len(operations), f"after {nothing!r} was put, and reopening")

    @check("swap")
    async def test_results_stand_in_the_order_of_their_entries(self, tmp_path: Path) -> None:
        """Over keys that any division of the work mixes up, some refused and some not."""
        log = Log(
            CompareAndSwap(self.key(number * 7 % 24), None if number % 3 else self.value(0), self.value(number))
            for number in range(48)
        )
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 24, width=24)
            await self.feed(machine, log, 25, 48, width=24)
            results = await machine.apply_chunk(self.entries(log, 48, 48))
            expect(
                [result.index for result in results], [48], "the indices of the results of entry 48, delivered again"
            )

    @check("failing")
    async def test_a_chunk_that_fails_leaves_nothing_of_itself(self, tmp_path: Path) -> None:
        """Not after reopening either."""
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 10)
            for place in (0, 7, 14):
                await _fails(self, machine, log, 10, place)
            await self.feed(machine, log, 11, 30)
            self.expect_state(machine, log, 30, "after the log went on behind chunks that failed")
            await _fails(self, machine, log, 30, 7)
        if "reopen" in self.supports:
            with self.running(tmp_path / "machine") as machine:
                self.expect_state(machine, log, 30, "after a chunk failed, and reopening")
                await self.feed(machine, log, 31, 40)
                self.expect_state(machine, log, 40, "after the log went on behind a chunk that failed, and reopening")


async def _fails(suite: Hooks, machine: MachineUnderTest, log: Log, last: int, place: int) -> None:
    """Deliver 15 entries behind `last`, of which the one in that place fails."""
    entries = suite.entries(log, last + 1, last + 15)
    bad = entries[place]
    entries[place] = Entry(bad.index, bad.term, suite.failing())
    with refusal(f"apply_chunk raises where entry {bad.index} fails"):
        await machine.apply_chunk(entries)
    expect(machine.is_running(), True, "is_running() after a chunk failed")
    suite.expect_state(machine, log, last, f"after a chunk failed at entry {bad.index}, in place {place} of 15")
    expect(machine.entry_term(last + 1), None, f"entry_term({last + 1}), of an entry whose chunk failed")
