"""Reads of many keys and of ranges, and that every read sees the state at one index."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from shardengine import Put, ScanResult
from shardengine.engine.conformance.base import Hooks, MachineUnderTest, beside, check, demand, expect, refusal
from shardengine.engine.conformance.log import Log

_WIDTH = 16
_ROUNDS = 40


class Reading(Hooks):
    """Checks of `get_multi` and `scan_prefix`, and of all reads beside a writer."""

    @check("get_multi")
    async def test_get_multi_answers_in_the_order_of_its_keys(self, tmp_path: Path) -> None:
        log = Log(Put(self.key(number), self.value(number)) for number in range(10))
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 10)
            asked = [self.key(number) for number in (7, 2, 900, 2, 9, 0, 901)]
            values = [log.contents(10).get(key) for key in asked]
            expect(machine.get_multi(asked), values, f"get_multi({asked}), a key twice and two absent")
            expect(machine.get_multi([]), [], "get_multi of no keys")

    @check("scan")
    async def test_a_scan_gives_the_records_of_its_prefix_in_order(self, tmp_path: Path) -> None:
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 90)
            records = sorted(log.contents(90).items())
            for prefix in sorted({b"", *(key[:at] for key in self.keys() for at in range(1, len(key) + 1))}):
                under = [record for record in records if record[0].startswith(prefix)]
                found = machine.scan_prefix(prefix)
                expect(
                    found.entries, under, f"scan_prefix({prefix!r}) gives the {len(under)} records under it, in order"
                )
                expect(
                    (found.revision, found.more), (90, False), "revision and more of a scan of everything at entry 90"
                )
                back = machine.scan_prefix(prefix, reverse=True).entries
                expect(back, under[::-1], f"scan_prefix({prefix!r}, reverse=True) gives them in reverse")
            for reverse in (False, True):
                records = sorted(log.contents(90).items(), reverse=reverse)
                for size in (1, 3, len(records), len(records) + 1):
                    expect(_paged(machine, size, reverse), records, f"what pages of {size}, reverse={reverse}, come to")

    @check("scan")
    async def test_a_scan_stops_at_its_limit_and_begins_behind_a_key(self, tmp_path: Path) -> None:
        """Whether that key is there or not, and has the prefix or not."""
        log = self.log()
        with self.running(tmp_path / "machine") as machine:
            await self.feed(machine, log, 1, 30)
            records, absent = log.contents(30), self.key(900)
            longest = max(map(len, (*self.keys(), absent)))  # a longer one may be no key
            with refusal("a scan with limit=-1 raises"):
                machine.scan_prefix(b"", limit=-1)
            for prefix in (b"", *(self.key(4)[:at] for at in (1, -1, None)), absent):
                behind = (key for key in (prefix + b"\0", prefix + b"\xff\xff") if len(key) <= longest)
                for after in (None, *self.keys()[::3], absent, *behind):
                    for reverse in (False, True):
                        whole = _behind(records, prefix, after, reverse)
                        for limit in (None, 0, 1, len(whole), len(whole) + 1):
                            more = limit is not None and limit < len(whole)
                            expect(
                                machine.scan_prefix(prefix, limit, after, reverse),
                                ScanResult(whole[:limit], 30, more),
                                f"scan_prefix({prefix!r}, limit={limit}, start_after={after!r}, reverse={reverse})",
                            )

    @check()
    async def test_reads_beside_a_writer_see_the_state_at_one_index(self, tmp_path: Path) -> None:
        """Every chunk writes all keys: whoever sees two values has seen half a chunk, or two states."""
        log = Log(Put(self.key(n % _WIDTH), self.value(1 + n // _WIDTH)) for n in range(_ROUNDS * _WIDTH))
        with self.running(tmp_path / "machine") as machine:
            looks, last = 0, 0
            async with beside(_write(self, machine, log)) as writer:
                while not writer.done():
                    last = _look(self, machine, last)
                    looks += 1
                    await asyncio.sleep(0)
            self.expect_state(machine, log, _ROUNDS * _WIDTH, f"after {looks} looks beside a writer")


def _behind(
    records: Mapping[bytes, bytes], prefix: bytes, after: bytes | None, reverse: bool
) -> list[tuple[bytes, bytes]]:
    """The records under `prefix` that come after that key, in their order."""
    found = sorted(records.items(), reverse=reverse)
    beyond = [(key, value) for key, value in found if after is None or (key < after if reverse else key > after)]
    return [record for record in beyond if record[0].startswith(prefix)]


def _paged(machine: MachineUnderTest, size: int, reverse: bool) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    more = True
    while more:
        after = found[-1][0] if found else None
        page = machine.scan_prefix(b"", limit=size, start_after=after, reverse=reverse)
        demand(len(page.entries) <= size, f"a scan with limit={size} gives no more; it gave {len(page.entries)}")
        demand(bool(page.entries) or not page.more, "a scan that says `more` gives at least one record")
        found += page.entries
        more = page.more
    return found


async def _write(suite: Hooks, machine: MachineUnderTest, log: Log) -> None:
    for first in range(1, _ROUNDS * _WIDTH, _WIDTH):
        await suite.feed(machine, log, first, first + _WIDTH - 1, width=_WIDTH)
        await asyncio.sleep(0)


def _look(suite: Hooks, machine: MachineUnderTest, last: int) -> int:
    """Read everything. Returns the index at which that was."""
    at = machine.last_applied().index
    demand(at >= last, f"last_applied() never falls; it was {last}, then {at}")
    demand(at % _WIDTH == 0, f"a chunk is seen whole: chunks of {_WIDTH} entries, and last_applied() is {at}")
    keys = suite.keys(_WIDTH)
    expected = [suite.value(at // _WIDTH)] * _WIDTH if at else [None] * _WIDTH
    expect([machine.get(key) for key in keys], expected, f"get() of each key at entry {at}")
    expect(len(machine), _WIDTH if at else 0, f"len() at entry {at}")
    if "get_multi" in suite.supports:
        expect(machine.get_multi(keys), expected, f"get_multi() is of one index, entry {at}")
    if "scan" in suite.supports:
        found = machine.scan_prefix(b"")
        expect(found.revision, at, "a scan's revision is last_applied()")
        records = sorted(zip(keys, expected, strict=True)) if at else []
        expect(found.entries, records, f"scan_prefix() is of one index, entry {at}")
    return at
