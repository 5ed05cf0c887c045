"""The results of a chunk: a sequence like any other, though most of it is made when somebody looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import ApplyResult
from shardengine.engine.contract import Results

TOLD = {7: ApplyResult(7, False, reason="no"), 9: ApplyResult(9, True, b"value")}
WHOLE = [TOLD.get(index, ApplyResult(index, True)) for index in range(5, 11)]


def results() -> Results:
    return Results(5, 10, dict(TOLD))


@given(
    start=st.none() | st.integers(-9, 9), stop=st.none() | st.integers(-9, 9), step=st.sampled_from([None, 1, 2, -1])
)
def test_they_are_looked_at_like_a_list(start: int | None, stop: int | None, step: int | None) -> None:
    assert results()[start:stop:step] == WHOLE[start:stop:step]
    assert [results()[place] for place in range(-6, 6)] == [WHOLE[place] for place in range(-6, 6)]
    assert list(results()) == WHOLE and list(reversed(results())) == WHOLE[::-1]
    assert len(results()) == len(WHOLE) and WHOLE[2] in results() and results().index(WHOLE[4]) == 4


@pytest.mark.parametrize("place", [6, -7])
def test_beyond_them_there_is_none(place: int) -> None:
    with pytest.raises(IndexError):
        results()[place]


def test_they_equal_any_sequence_of_equal_results_and_nothing_else() -> None:
    assert results() == WHOLE and results() == WHOLE and results() == tuple(WHOLE) and results() == results()
    assert results() != WHOLE[:-1] and results() != [*WHOLE[:-1], TOLD[7]]
    assert results() != 5 and results() != Results(5, 10, {})
    assert repr(results()) == repr(WHOLE)
    with pytest.raises(TypeError):
        hash(results())
