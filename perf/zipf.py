"""Numbers of which some come up more often than others, from a seed: uniform, or zipfian."""

from __future__ import annotations

import random
from array import array
from itertools import accumulate


class Zipf:
    """Draws ranks, 0 to `count` - 1: rank r with a weight of (r + 1) ** -skew. A skew of 0 is uniform; with 0.99, which
    is usual for "some are hot", the first of a million comes up in 6.5 % of all draws.

    It keeps the sum of the weights up to each rank, 8 bytes a rank, and looks a random one up in it: exact, and the
    same at every run.
    """

    def __init__(self, count: int, skew: float, seed: int) -> None:
        self._rng = random.Random(f"{seed} {skew}")
        self._ranks = range(count)
        self._sums = array("d", accumulate(rank**-skew for rank in range(1, count + 1)))

    def draw(self, draws: int) -> list[int]:
        """So many ranks."""
        return self._rng.choices(self._ranks, cum_weights=self._sums, k=draws)
