"""The leaderboard, beside a list that is sorted each time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.machines.leaderboard import Around, Leaderboard, Remove, Submit, Top
from tests.inprocess import REJECTED, Bench, Step

MOST = (1 << 63) - 1
# names that would collide if a key were a board, a mark and a player after each other
BOARDS = st.sampled_from([b"a", b"ap", b"a\x01", b"\x01a", bytes(200)])
PLAYERS = st.sampled_from([b"a", b"pa", b"p", b"r", bytes(199), bytes(200)])
SCORES = st.integers(0, 3) | st.sampled_from([MOST - 1, MOST])
COUNTS = st.integers(1, 4) | st.just(100)
COMMANDS = (
    st.builds(Submit, BOARDS, PLAYERS, SCORES)
    | st.builds(Remove, BOARDS, PLAYERS)
    | st.builds(Top, BOARDS, COUNTS)
    | st.builds(Around, BOARDS, PLAYERS, COUNTS)
)
STEPS = st.lists(st.builds(Step, COMMANDS, st.just(0), st.booleans()), max_size=40)


class Model:
    """Of each board, its players with their best score and when they reached it."""

    def __init__(self) -> None:
        self.boards: dict[bytes, dict[bytes, tuple[int, int]]] = {}
        self.index = 0

    def __call__(self, command: Any, now: int) -> Any:
        self.index += 1
        board = self.boards.setdefault(command.board, {})
        if isinstance(command, Submit):
            if command.player in board and board[command.player][0] >= command.score:
                return False
            board[command.player] = (command.score, self.index)
            return True
        if isinstance(command, Remove):
            return board.pop(command.player, None) is not None
        order = sorted(board, key=lambda player: (-board[player][0], board[player][1]))
        ranked = [(rank, player, board[player][0]) for rank, player in enumerate(order, 1)]
        if isinstance(command, Top):
            return list(map(list, ranked[: command.n]))
        if command.player not in order:
            return REJECTED
        at = order.index(command.player)
        return [list(place) for place in ranked if abs(place[0] - 1 - at) <= command.n]


@given(steps=STEPS)
def test_the_leaderboard_is_the_sorted_model(steps: list[Step]) -> None:
    bench, model = Bench(Leaderboard), Model()
    bench.agrees(model, steps)
    assert len(bench.records) == 2 * sum(map(len, model.boards.values()))


def test_of_equal_scores_the_first_to_reach_it_is_first() -> None:
    bench = Bench(Leaderboard)
    for player, score in ((b"zoe", 7), (b"ann", 5), (b"bob", 7), (b"ann", 7), (b"zoe", 7), (b"bob", 6)):
        bench.run(Submit(b"chess", player, score))
    assert bench.value(Top(b"chess")) == [[1, b"zoe", 7], [2, b"bob", 7], [3, b"ann", 7]]


@pytest.mark.parametrize("rank", [1, 2, 155, 156, 157, 255, 256, 257, 599, 600])
def test_a_player_far_down_a_long_board_is_found_with_those_around(rank: int) -> None:
    bench = Bench(Leaderboard)
    for number in range(1, 601):
        bench.run(Submit(b"long", b"%d" % number, 1000 - number))
        bench.run(Submit(b"other", b"%d" % number, 1))
    for n in (1, 100):
        near = range(max(1, rank - n), min(600, rank + n) + 1)
        found = bench.value(Around(b"long", b"%d" % rank, n))
        assert found == [[number, b"%d" % number, 1000 - number] for number in near]


@pytest.mark.parametrize(
    "command",
    [
        Submit(b"", b"p", 1),
        Submit(bytes(201), b"p", 1),
        Submit(b"b", bytes(201), 1),
        Submit(b"b", b"", 1),
        Submit(b"b", b"p", -1),
        Submit(b"b", b"p", MOST + 1),
        Top(b"b", 0),
        Top(b"b", 101),
    ],
)
def test_what_is_beyond_the_bounds_is_no_command(command: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        Bench(Leaderboard).run(command)
