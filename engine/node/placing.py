"""A node finds its place in its log as it starts, if need be by way of another node's snapshot."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from shardengine.engine.engine import Engine
from shardengine.engine.errors import EngineError, LogTruncatedError
from shardengine.engine.node.log import Log, LogState
from shardengine.engine.node.peers import Peers
from shardengine.engine.node.place import find_place
from shardengine.engine.node.policy import NodePolicy

logger = logging.getLogger("shardengine")


async def placed(
    path: Path, engine: Engine, log: Log, policy: NodePolicy, state: LogState, peers: Peers | None
) -> tuple[LogState, int]:
    """What the log is, which was just opened as `state`, and the position behind which to read on.

    Raises as `find_place`; LogTruncatedError of a shared log only when no other node gives a snapshot in time.
    """
    name = "" if peers is None else peers.members.name
    while True:
        try:
            position = await find_place(path, engine, log, state, name)
        except LogTruncatedError as truncated:
            if peers is None:
                raise
            await peers.beside(peers.bootstrap.install(truncated, policy.bootstrap_timeout_ms / 1000))
            state = msgspec.structs.replace(state, last=await log.last())
            continue
        if engine.durable().term + 1 < state.first:
            await _hold_what_was_cut(path, engine)
        return state, position


async def _hold_what_was_cut(path: Path, engine: Engine) -> None:
    """What the log has lost, a snapshot must hold; else a power loss in mode "process" costs it."""
    try:
        await engine.create_snapshot()
    except EngineError as error:
        logger.error("%s: no snapshot holds what the log has lost, and none can be taken: %s", path, error)
