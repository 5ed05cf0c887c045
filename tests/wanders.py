"""Random commands for the machine of tests/wander.py, which workers import without this."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from tests.wander import DIGITS, LETTERS, STEPS, Wander

KEYS = st.tuples(st.sampled_from(LETTERS), st.sampled_from(DIGITS)).map(bytes)


def wanders(steps: Iterable[str] = STEPS) -> st.SearchStrategy[Wander]:
    """Commands of one to three partitions."""
    step = st.tuples(st.sampled_from(sorted(steps)), st.integers(0, 2))
    return st.builds(Wander, st.lists(KEYS, min_size=1, max_size=3), st.lists(step, min_size=1, max_size=5))
