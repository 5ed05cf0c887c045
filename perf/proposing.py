"""Puts through a node, and through the engine alone. Each side checks what it left."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from perf.calls import Amount, Took, closed_loop
from perf.load import Load, Pair, digest_of
from perf.report import CheckError
from shardengine import Engine, Entry, Put, SnapshotPolicy, encode
from shardengine.engine.node.feeding import IN_FLIGHT_FRAMES
from shardengine.engine.node.frames import decode_frame
from shardengine.engine.node.node import LOG_NAME
from shardengine.node import LocalLog, Node, NodePolicy


class Puts(msgspec.Struct, frozen=True):
    """The same puts as each side takes them."""

    pairs: list[Pair]
    datas: list[bytes]
    entries: list[Entry]


def puts_of(load: Load) -> Puts:
    pairs = [pair for chunk in load.chunks() for pair in chunk]
    datas = [encode(Put(key, value)) for key, value in pairs]
    return Puts(pairs, datas, [Entry(index, 1, data) for index, data in enumerate(datas, 1)])


class Proposed(msgspec.Struct, frozen=True):
    """What proposals took, and in how many frames the timed ones lie in the log.

    appended: the frames of each append, of a log that notes them; the first `warm` came before the clock started.
    """

    took: Took
    frames: int
    appended: Sequence[Sequence[bytes]] = ()
    warm: int = 0


async def over_a_node(directory: Path, puts: Puts, shards: int, callers: int, size: int, amount: Amount) -> Proposed:
    """So many callers, each of which proposes `size` commands together. No snapshots are taken."""
    async with Node(directory, shards=shards, policy=NodePolicy(snapshots=SnapshotPolicy())) as node:

        def one(first: int, _: int) -> Awaitable[object]:
            return node.propose(puts.datas[first])

        def several(first: int, end: int) -> Awaitable[object]:
            return node.propose_many(puts.datas[first:end])

        took = await closed_loop(one if size == 1 else several, callers, size, amount)
        await check_state("node", node.engine, puts.pairs[: took.given])
    frames = await _frames_of(directory / LOG_NAME)
    if [data for frame in frames for data in frame] != puts.datas[: took.given]:
        held = sum(map(len, frames))
        raise CheckError(f"node: its log holds {held} commands, which are not the {took.given} that were acknowledged")
    return Proposed(took, frames_behind(frames, took.given - took.timed))


async def check_state(side: str, db: Engine, pairs: Sequence[Pair]) -> None:
    digest, expected = await db.digest(), digest_of(dict(pairs))
    if digest != expected:
        raise CheckError(f"{side}: digest {digest.hex()}, expected {expected.hex()}")
    if (index := db.last_applied().index) != len(pairs):
        raise CheckError(f"{side}: it stands at entry {index}, and {len(pairs)} were acknowledged")


async def _frames_of(directory: Path) -> list[list[bytes]]:
    """What a log that was closed holds, opened anew."""
    log, frames = LocalLog(directory), list[list[bytes]]()
    last = (await log.open()).last
    try:
        async with aclosing(log.read(0)) as found:
            async for logged in found:
                frames.append(decode_frame(logged.frame, logged.position).datas)
                if logged.position == last:
                    break
    finally:
        await log.aclose()
    return frames


def frames_behind(frames: Sequence[Sequence[bytes]], commands: int) -> int:
    """How many begin behind so many commands."""
    behind, before = 0, 0
    for frame in frames:
        behind += before >= commands
        before += len(frame)
    return behind


async def over_an_engine(directory: Path, puts: Puts, shards: int, callers: int, size: int, amount: Amount) -> Took:
    """The engine alone, in chunks of `size` entries, `callers` of them in flight, though no more than a node has
    frames."""
    async with Engine(directory, shards=shards) as db:

        def call(first: int, end: int) -> Awaitable[object]:
            return db.apply_chunk(puts.entries[first:end])

        took = await closed_loop(call, min(callers, IN_FLIGHT_FRAMES), size, amount)
        await check_state("engine", db, puts.pairs[: took.given])
        return took
