"""What is done to every entry, in one of two bodies: compiled, where that was built, or in Python.

SHARDENGINE_COMPILED=require makes the absence of the compiled one an ImportError, SHARDENGINE_COMPILED=off leaves it
alone. `COMPILED` tells which one is used; a start, `stats()` and every report of `perf` say so.

Files, lowest first:

    reference.py  the body in Python: the specification
    _bytes.h      plain puts as they lie in memory, and the hash of a key, for _puts.c
    _split.h      a chunk weighed and its parts filled, for _puts.c
    _puts.c       its compiled twin
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from shardengine.shards.fast.reference import (
    Normal,
    fill_parts_in_python,
    normal_form_in_python,
    sorted_puts_in_python,
    weigh_puts_in_python,
)
from shardengine.shards.types import Entry

__all__ = ["COMPILED", "SWITCH", "Normal", "fill_parts", "normal_form", "sorted_puts", "weigh_puts"]

SWITCH = "SHARDENGINE_COMPILED"

weigh_puts, fill_parts, sorted_puts = weigh_puts_in_python, fill_parts_in_python, sorted_puts_in_python
COMPILED = False
if os.environ.get(SWITCH) != "off":
    try:
        import shardengine.shards.fast._puts as compiled

        weigh_puts, fill_parts, sorted_puts = compiled.weigh_puts, compiled.fill_parts, compiled.sorted_puts
        COMPILED = True
    except (ImportError, AttributeError):  # it was not built, or is left from an older version
        if os.environ.get(SWITCH) == "require":
            raise


def normal_form(entries: Sequence[Entry], clock: int) -> Normal | None:
    """As `normal_form_in_python`, with the compiled twin's help where it is there."""
    found = compiled.normal_form(entries, clock) if COMPILED else None
    return normal_form_in_python(entries, clock) if found is None else Normal._make(found)
