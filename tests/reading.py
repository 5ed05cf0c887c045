"""A process that reads what `tests/writing.py` writes, in cuts of its own, until it has seen the last version.

Run as `python -m tests.reading DIRECTORY LAST`; it says "reading" behind its first cut, and "enough" when it has seen
as much as a test asks for; last it prints what it saw as one line of JSON.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress

import msgspec

from shardengine import NoCutError, Reader, ViewClosedError
from shardengine.engine.read.cut import Cuts
from shardengine.engine.read.follow import Followed
from tests.writing import KEYS

WATCHDOG_S = 90
_PATIENCE_S = 0.05
VERSIONS, GENERATIONS = 51, 2
"""So many are enough."""


class Seen(msgspec.Struct):
    """`mixed`: cuts that held more than one version. `fell`: cuts of one generation that were older than one before.
    `tries_max`: of one cut. `refused`: reads that met no state of one index."""

    cuts: int = 0
    versions: int = 0
    generations: int = 0
    mixed: int = 0
    fell: int = 0
    refused: int = 0
    ended: int = 0
    tries_max: int = 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def read(directory: str, last: int) -> Seen:
    seen, versions, newest = Seen(), set[int](), dict[str, tuple[int, int]]()
    followed: Cuts | None = None
    enough = False
    with Reader(directory) as reader:
        version = -1
        while version != last:
            tries = followed.tries if isinstance(followed, Followed) else 0
            try:
                with reader.view() as view:
                    values = view.get_multi(KEYS)
                    before, followed = followed, view.cut().reads
            except NoCutError:
                seen.refused += 1
                continue
            except ViewClosedError:  # the state was replaced in between
                seen.ended += 1
                continue
            assert isinstance(followed, Followed)
            seen.tries_max = max(seen.tries_max, followed.tries - (tries if before is followed else 0))
            seen.cuts += 1
            seen.mixed += len(set(values)) != 1
            version = int(values[0] or b"0")
            place = (view.revision, version)
            name = followed.generation.path.name
            seen.fell += place < newest.get(name, place)
            newest[name] = place
            versions.add(version)
            if seen.cuts == 1:
                say("reading")
            if not enough and len(versions) >= VERSIONS and len(newest) >= GENERATIONS:
                enough = True
                say("enough")
            with suppress(TimeoutError):  # another state may have a lower index
                reader.wait_applied(view.revision + 1, _PATIENCE_S)
    seen.versions, seen.generations = len(versions), len(newest)
    return seen


if __name__ == "__main__":
    signal.alarm(WATCHDOG_S)
    say(msgspec.json.encode(read(sys.argv[1], int(sys.argv[2]))).decode())
