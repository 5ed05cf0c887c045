"""A snapshot from another node, piece by piece, a few of them asked for at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path

from shardengine.engine.errors import EngineError, LogClosedError, PeerError, PieceDamagedError
from shardengine.engine.node.giving import pieces_in, wanted
from shardengine.engine.node.shared import SharedLog
from shardengine.engine.run.tasks import Tasks
from shardengine.engine.snapshot.folder import remove_snapshot, snapshot_at
from shardengine.engine.snapshot.manifest import Manifest
from shardengine.engine.snapshot.transfer import Piece, SnapshotAssembler, decode_piece, manifest_of
from shardengine.shards.types import LogId

IN_FLIGHT = 4
TRIES = 4
"""So often one piece is asked for."""
PAUSE_S = 0.1
ANSWER_S = 10.0
"""So long one answer is waited for."""
log = logging.getLogger("shardengine")


async def fetch(asked: SharedLog, giver: str, directory: Path, suits: Callable[[LogId], bool]) -> Path:
    """Fetch the newest snapshot of the node `giver` into `directory`, if its label `suits`; returns its path there. One
    that lies there already is not fetched again.

    Raises PeerError when that node does not answer, or its snapshot does not suit; SnapshotError when it is damaged, of
    another version, or a file cannot be written; what the log raises. Nothing is left in the directory then.
    """
    work = Tasks()
    first = await _piece(asked, giver, b"", 0)
    manifest = manifest_of(first)
    if not suits(manifest.last_included):
        raise PeerError(f"node {giver} gives a snapshot of {manifest.last_included}, which does not reach", node=giver)
    if await work.in_thread(lambda: _there(directory, manifest)):
        return directory / manifest.name
    assembler = await work.in_thread(lambda: SnapshotAssembler(directory))
    coming: deque[asyncio.Task[Piece]] = deque()
    try:
        await work.in_thread(lambda: assembler.add(first))
        for number in range(1, pieces_in(manifest)):
            coming.append(asyncio.ensure_future(_piece(asked, giver, first.source, number)))
            if len(coming) == IN_FLIGHT:
                await _add(work, assembler, coming)
        while coming:
            await _add(work, assembler, coming)
        return await work.in_thread(assembler.finish)
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        await work.in_thread(assembler.abandon)


async def _add(work: Tasks, assembler: SnapshotAssembler, coming: deque[asyncio.Task[Piece]]) -> None:
    piece = await coming[0]
    await work.in_thread(lambda: assembler.add(piece))
    coming.popleft()


async def _piece(asked: SharedLog, giver: str, source: bytes, number: int) -> Piece:
    """One piece, whole. Raises PeerError, PieceDamagedError, what the log raises."""
    for left in reversed(range(TRIES)):
        try:
            piece = decode_piece(await answered(asked, giver, wanted(source, number)))
            if piece.checksum == piece.expected_checksum() and piece.number == number:
                return piece
            raise PieceDamagedError(f"piece {number} from node {giver} is damaged", hint="ask again", number=number)
        except LogClosedError:
            raise
        except EngineError as error:
            if not left:
                raise
            log.debug("piece %d is asked for again: %s", number, error)
            await asyncio.sleep(PAUSE_S)
    raise AssertionError


async def answered(asked: SharedLog, giver: str, request: bytes) -> bytes:
    """As `SharedLog.ask`, for a bounded time."""
    scope = asyncio.timeout(ANSWER_S)
    try:
        async with scope:
            return await asked.ask(giver, request)
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise PeerError(f"node {giver} did not answer in {ANSWER_S} s", hint="ask again", node=giver) from error


def _there(directory: Path, manifest: Manifest) -> bool:
    """Whether that snapshot was fetched before, and not installed. Another one that has its name makes way."""
    there = snapshot_at(directory / manifest.name)
    if there is None or there.manifest.checksum == manifest.checksum:
        return there is not None
    remove_snapshot(there.path)
    return False
