"""How fast, roughly: a number to look at, which nothing depends on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from shardengine import Put
from shardengine.engine.conformance.base import Hooks, check
from shardengine.engine.conformance.log import Log

ENTRIES = 10_000
_CHUNK = 500


class Smoke(Hooks):
    """The check that reports, and demands nothing but the right state."""

    @check()
    async def test_ten_thousand_entries_take_some_time(self, tmp_path: Path) -> None:
        """`pytest -rP` shows how long."""
        log = Log(Put(self.key(number % 24), self.value(number)) for number in range(ENTRIES))
        chunks = [self.entries(log, first, first + _CHUNK - 1) for first in range(1, ENTRIES, _CHUNK)]
        with self.running(tmp_path / "machine") as machine:
            began = time.perf_counter()
            for chunk in chunks:
                await machine.apply_chunk(chunk)
            took_s = time.perf_counter() - began
            self.expect_state(machine, log, ENTRIES, f"after {ENTRIES} entries")
        sys.stdout.write(
            f"{type(self).__name__}: {ENTRIES} entries of {len(self.value(1))}-byte values in chunks of {_CHUNK}: "
            f"{ENTRIES / took_s:,.0f} a second\n"
        )
