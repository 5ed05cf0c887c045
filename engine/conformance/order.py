"""The log's order, and that an entry takes effect once, however often it comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shardengine import CompareAndSwap, Entry, Put
from shardengine.engine.conformance.base import Hooks, MachineUnderTest, check, expect, expect_results, refusal
from shardengine.engine.conformance.log import Log

_ENTRIES = 60


class Order(Hooks):
    """Checks of which chunks are taken."""

    @check()
    async def test_an_entry_that_comes_again_changes_nothing(self, tmp_path: Path) -> None:
        log = Log([Put(self.key(0), self.value(1)), Put(self.key(0), self.value(2)), None])
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 3)
            for first, last in ((1, 1), (1, 2), (2, 3), (1, 3)):
                results = await machine.apply_chunk(self.entries(log, first, last))
                expect_results(results, log, first, last, known=last - first + 1)
                self.expect_state(machine, log, 3, f"after entries {first} to {last} were delivered again")

    @check("swap")
    async def test_a_swap_that_comes_again_does_not_swap_back(self, tmp_path: Path) -> None:
        """Entry 2 found its value, entry 3 made that value again: a machine that runs entry 2 anew undoes entry 3."""
        key, one, two = self.key(0), self.value(1), self.value(2)
        log = Log([Put(key, one), CompareAndSwap(key, one, two), CompareAndSwap(key, two, one)])
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 3)
            results = await machine.apply_chunk(self.entries(log, 2, 2))
            expect_results(results, log, 2, 2, known=1)
            self.expect_state(
                machine, log, 3, "after a swap was delivered again, whose comparison would hold once more"
            )

    @check()
    async def test_of_chunks_that_overlap_only_what_is_new_is_applied(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 20)
            for first, known, last in ((1, 20, 25), (20, 6, 26), (10, 17, 40), (41, 0, 45)):
                results = await machine.apply_chunk(tuple(self.entries(log, first, last)))
                expect_results(results, log, first, last, known=known)
                self.expect_state(machine, log, last, f"after entries {first} to {last}, of which {known} came again")

    @check()
    async def test_a_gap_is_refused_and_changes_nothing(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await _refused(self, machine, log, 0, self.entries(log, 2, 5), "entry 2 comes first to an empty machine")
            await self.feed(machine, log, 1, 10)
            await _refused(self, machine, log, 10, self.entries(log, 12, 15), "entry 12 follows entry 10")
            inside = [*self.entries(log, 11, 13), *self.entries(log, 15, 16)]
            await _refused(self, machine, log, 10, inside, "entry 15 follows entry 13 inside a chunk")
            overlapping = [*self.entries(log, 9, 10), *self.entries(log, 12, 13)]
            await _refused(
                self, machine, log, 10, overlapping, "entry 12 follows entry 10 inside a chunk that overlaps"
            )
            await self.feed(machine, log, 11, 20)
            self.expect_state(machine, log, 20, "after the log went on behind refused chunks")

    @check()
    async def test_falling_indices_and_terms_are_refused_and_change_nothing(self, tmp_path: Path) -> None:
        log, last, term = self.log(), _ENTRIES, self.log().term(_ENTRIES)
        data = self.encoded(Put(self.key(0), self.value(0)))
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, last)
            for places in ([1, 2, 2], [1, 3, 2], [2, 1], [1, 1]):
                entries = [Entry(last + place, term, data) for place in places]
                indices = [entry.index for entry in entries]
                await _refused(self, machine, log, last, entries, f"a chunk holds entries {indices}, in this order")
            await _refused(
                self, machine, log, last, [Entry(last + 1, term - 1, data)], f"term {term - 1} follows {term}"
            )
            inside = [Entry(last + 1, term + 1, data), Entry(last + 2, term, data)]
            await _refused(self, machine, log, last, inside, f"term {term} follows {term + 1} inside a chunk")

    @check()
    async def test_every_entry_keeps_its_term(self, tmp_path: Path) -> None:
        """Committed entries never change: one that comes again with another term is of another log."""
        log, last = self.log(), 2 * _ENTRIES
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, last, width=40)
            for index in range(1, last + 1):
                expect(
                    machine.entry_term(index), log.term(index), f"entry_term({index}) is that which it was applied with"
                )
            for index in (0, last + 1):
                expect(machine.entry_term(index), None, f"entry_term({index}), where {last} entries are applied")
            for index in (last, _ENTRIES):
                entry = self.entries(log, index, index)[0]
                other = [Entry(index, entry.term + 1, entry.data)]
                await _refused(self, machine, log, last, other, f"entry {index} comes again, of term {entry.term + 1}")
            again = [Entry(index, last, b"") for index in range(_ENTRIES, last + 2)]
            await _refused(self, machine, log, last, again, f"entries {_ENTRIES} to {last} come again, of other terms")

    @check()
    async def test_entries_without_data_move_the_index_only(self, tmp_path: Path) -> None:
        """And a chunk without entries does not even that."""
        log = Log([None, None, Put(self.key(0), self.value(1)), None])
        with self.running(tmp_path / "machine") as machine:
            for last in (2, 4):
                await self.feed(machine, log, last - 1, last)
                self.expect_state(machine, log, last, "after entries without data")
                expect(list(await machine.apply_chunk([])), [], "the results of no entries")
                self.expect_state(machine, log, last, "after a chunk of no entries")

    @check()
    async def test_chunks_that_come_at_once_do_not_undo_each_other(self, tmp_path: Path) -> None:
        """A machine may take one at a time, and refuse the others."""
        log, last, ends = self.log(), 10, (20, 30, 40)
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, last)
            chunks = [machine.apply_chunk(self.entries(log, end - 9, end)) for end in ends]
            for end, results in zip(ends, await asyncio.gather(*chunks, return_exceptions=True), strict=True):
                if not isinstance(results, BaseException):
                    expect(end, last + 10, f"the end of a chunk that is applied behind entry {last}")
                    expect_results(results, log, end - 9, end)
                    last = end
            self.expect_state(machine, log, last, f"after chunks up to {ends} came at once")
            await self.feed(machine, log, last + 1, 50)
            self.expect_state(machine, log, 50, "after the log went on behind chunks that came at once")

    @check()
    async def test_the_same_log_in_other_chunks_comes_to_the_same_state(self, tmp_path: Path) -> None:
        log = self.log(seed=2)
        for width in (1, 3 * _ENTRIES):
            with self.running(tmp_path / f"chunks of {width}") as machine:
                await self.feed(machine, log, 1, 3 * _ENTRIES, width)
                self.expect_state(machine, log, 3 * _ENTRIES, f"after chunks of {width} entries")


async def _refused(
    suite: Hooks, machine: MachineUnderTest, log: Log, last: int, entries: list[Entry], what: str
) -> None:
    with refusal(f"apply_chunk raises where {what}"):
        await machine.apply_chunk(entries)
    suite.expect_state(machine, log, last, f"after a chunk was refused because {what}")
