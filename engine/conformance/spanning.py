"""Commands over several keys, wherever those are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from shardengine import Put
from shardengine.engine.conformance.base import Hooks, MachineUnderTest, beside, check, demand, expect
from shardengine.engine.conformance.log import Log, Move, Operation, mixed

_ENTRIES = 200


class Spanning(Hooks):
    """Checks of `move`."""

    @check("spanning")
    async def test_a_move_takes_effect_on_both_keys_or_leaves_no_trace(self, tmp_path: Path) -> None:
        """What comes of moves among other commands in any chunks is in the log of every check."""
        one, two, three = self.keys(3)
        puts = [Put(one, self.value(1)), Put(two, self.value(2)), Put(one, self.value(3))]
        moves = [Move(one, two), Move(one, three), Move(two, three), Move(three, one), Move(two, one)]
        log = Log([puts[0], moves[0], moves[1], moves[2], puts[1], moves[3], moves[4], puts[2], *moves])
        with self.running(tmp_path / "machine") as machine:
            for first, last in ((1, 1), (2, 2), (3, 3), (4, 8), (9, 13)):
                await self.feed(machine, log, first, last)
                self.expect_state(machine, log, last, f"after the moves of entries {first} to {last}")

    @check("spanning")
    async def test_no_read_sees_half_a_move(self, tmp_path: Path) -> None:
        """Moves only: no value is ever there twice, and none is lost that was not moved upon."""
        log = Log(_moves(self))
        with self.running(tmp_path / "machine") as machine:
            async with beside(_write(self, machine, log)) as writer:
                while not writer.done():
                    _look(self, machine, log)
                    await asyncio.sleep(0)
            self.expect_state(machine, log, _ENTRIES, "after moves beside a reader")


def _moves(suite: Hooks) -> Iterator[Operation]:
    for number, key in enumerate(suite.keys()):
        yield Put(key, suite.value(number))
    yield from mixed(suite.keys(), suite.values(), [Move], seed=4)


async def _write(suite: Hooks, machine: MachineUnderTest, log: Log) -> None:
    for first in range(1, _ENTRIES, 4):
        await suite.feed(machine, log, first, first + 3, width=4)
        await asyncio.sleep(0)


def _look(suite: Hooks, machine: MachineUnderTest, log: Log) -> None:
    at = machine.last_applied().index
    found = suite.found(machine)
    twice = len(found) - len(set(found.values()))
    demand(not twice, f"a read sees all of a move or nothing of it; at entry {at}, {twice} values are there twice")
    expect(found, log.contents(at), f"the records at entry {at}, where moves go on")
