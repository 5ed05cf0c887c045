"""Commands over several keys, wherever those are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from shardengine import Put
from shardengine.engine.conformance.base import Hooks, MachineUnderTest, check, demand, expect
from shardengine.engine.conformance.log import Log, Move, Operation, mixed

_ENTRIES = 200


class Spanning(Hooks):
    """Checks of `move`."""

    @check("spanning")
    async def test_a_move_takes_effect_on_both_keys(self, tmp_path: Path) -> None:
        one, two, three = self.keys(3)
        log = Log(
            [Put(one, self.value(1)), Move(one, two), Move(two, three), Put(one, self.value(2)), Move(one, three)]
        )
        for width in (1, 5):
            with self.running(tmp_path / f"chunks of {width}") as machine:
                for last in range(width, 6, width):
                    await self.feed(machine, log, last - width + 1, last, width)
                    self.expect_state(machine, log, last, f"after moves in chunks of {width}")

    @check("spanning")
    async def test_a_move_that_is_refused_leaves_no_trace(self, tmp_path: Path) -> None:
        one, two, three = self.keys(3)
        log = Log(
            [Put(two, self.value(1)), Move(one, two), Move(one, three), Put(one, self.value(2)), Move(three, one)]
        )
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 5, width=5)
            self.expect_state(machine, log, 5, "after moves of absent keys")

    @check("spanning")
    async def test_moves_among_other_commands_run_in_log_order(self, tmp_path: Path) -> None:
        for width in (1, 10, _ENTRIES):
            log = self.log(seed=3)
            with self.running(tmp_path / f"chunks of {width}") as machine:
                await self.feed(machine, log, 1, _ENTRIES, width)
                self.expect_state(machine, log, _ENTRIES, f"after moves among other commands, in chunks of {width}")

    @check("spanning")
    async def test_no_read_sees_half_a_move(self, tmp_path: Path) -> None:
        """Moves only: no value is ever there twice, and none is lost that was not moved upon."""
        log = Log(_moves(self))
        with self.running(tmp_path / "machine") as machine:
            writer = asyncio.create_task(_write(self, machine, log))
            while not writer.done():
                _look(self, machine, log)
                await asyncio.sleep(0)
            await writer
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
