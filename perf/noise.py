"""Whether two samples differ beyond the noise: the rank test of Mann and Whitney. It is one sum of ranks, exact for few
rounds, and asks nothing of how times are distributed; pyperf's test is not public, and SciPy's are 100 MB for this."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, groupby
from math import comb, sqrt
from statistics import NormalDist

BEYOND = 0.05  # a difference that chance alone makes less often is beyond the noise
_EXACT = 20_000  # ways to deal the ranks that are walked one by one; eight rounds against eight are 12,870


def chance(first: Sequence[float], second: Sequence[float]) -> float:
    """How often chance alone would order two samples at least as unevenly: from 0 to 1."""
    ranks, count = _ranks([*first, *second]), len(first)
    mean = count * (len(ranks) + 1) / 2
    far = abs(sum(ranks[:count]) - mean)
    ways = comb(len(ranks), count)
    if ways <= _EXACT:
        return sum(abs(sum(some) - mean) >= far - 1e-9 for some in combinations(ranks, count)) / ways
    middle = (len(ranks) + 1) / 2
    scatter = sum((rank - middle) ** 2 for rank in ranks) / (len(ranks) - 1)
    deviation = sqrt(count * len(second) / len(ranks) * scatter)
    return 2 * NormalDist().cdf(-max(0.0, far - 0.5) / deviation) if deviation else 1.0


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share their mean."""
    ranks, at = [0.0] * len(values), 0
    for _, equal in groupby(sorted(range(len(values)), key=values.__getitem__), key=values.__getitem__):
        places = list(equal)
        for place in places:
            ranks[place] = at + (len(places) + 1) / 2
        at += len(places)
    return ranks


def tells(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether there are rounds enough: whether any order of them would be beyond the noise."""
    return bool(first and second) and 2 / comb(len(first) + len(second), len(first)) <= BEYOND


def differ(first: Sequence[float], second: Sequence[float]) -> bool:
    return tells(first, second) and chance(first, second) <= BEYOND
