"""Leaderboards: players by their best score; of equal scores, the one that was there first.

What was first is for the log to say: a place holds the index of the entry that brought it, so that the order is total,
and the same on every replica. `Top` costs what it returns; `Around` grows with the player's rank. Both walk, besides,
over places that players gave up since the group began, all of them where a board has fewer than `n`. So ask for a top
once in some hundred submissions: behind each of them, a long chunk takes the square of its length.

A board is a partition. Behind its prefix: `r place`, the player; `p player`, the place. A place is how far the score is
from the highest, and the entry's index, both big-endian: the best sorts first.
"""

from __future__ import annotations

from struct import pack

from shardengine import Context, Rejected, Tx
from shardengine.engine.machines.common import WHOLE_MAX, ByName, Command, Count, Name, Whole, prefix_of


class Submit(Command, frozen=True, tag=1):
    """Keep `score` if it is the player's best. The result says whether it is."""

    board: Name
    player: Name
    score: Whole


class Remove(Command, frozen=True, tag=2):
    """Take `player` off the board. The result says whether there was one."""

    board: Name
    player: Name


class Top(Command, frozen=True, tag=3):
    """The result is the best `n`, each as (rank, player, score)."""

    board: Name
    n: Count = 10


class Around(Command, frozen=True, tag=4):
    """The result is `player` with up to `n` before and behind; rejected for one that is not on the board."""

    board: Name
    player: Name
    n: Count = 3


class Leaderboard(ByName):
    """`Submit`, `Remove`, `Top` and `Around`."""

    name = "shardengine.leaderboard"
    command = Submit | Remove | Top | Around

    def keys(self, command: Submit | Remove | Top | Around) -> tuple[bytes]:
        return (prefix_of(command.board) + b"p" + (b"" if isinstance(command, Top) else command.player),)

    def apply(self, tx: Tx, command: Submit | Remove | Top | Around, context: Context) -> object:
        ranks = prefix_of(command.board) + b"r"
        if isinstance(command, Top):
            return _ranked(tx.scan(ranks, command.n))
        (own,) = self.keys(command)
        place = tx.get(own)
        if isinstance(command, Around):
            return _around(tx, ranks, place, command)
        if isinstance(command, Submit):
            better = pack(">QQ", WHOLE_MAX - command.score, context.index)
            if place is not None and place < better:
                return False
            tx.put(own, better)
            tx.put(ranks + better, command.player)
        elif place is not None:
            tx.delete(own)
        if place is not None:
            tx.delete(ranks + place)
        return isinstance(command, Submit) or place is not None


def _around(tx: Tx, ranks: bytes, place: bytes | None, command: Around) -> list[tuple[int, bytes, int]]:
    """From the top in ever longer scans, until one passes the player by `n`, or finds no more."""
    if place is None:
        raise Rejected(f"no player {command.player!r} on board {command.board!r}")
    limit, records = 256, tx.scan(ranks, 256)
    while len(records) == limit and records[-1 - command.n][0] < ranks + place:
        limit *= 4
        records = tx.scan(ranks, limit)
    at = records.index((ranks + place, command.player))
    return _ranked(records)[max(0, at - command.n) : at + command.n + 1]


def _ranked(records: list[tuple[bytes, bytes]]) -> list[tuple[int, bytes, int]]:
    return [(rank, player, WHOLE_MAX - int.from_bytes(key[-16:-8])) for rank, (key, player) in enumerate(records, 1)]
