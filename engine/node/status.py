"""What a node says of itself."""

from __future__ import annotations

import msgspec

from shardengine.engine.engine import Engine
from shardengine.engine.node.run import Run
from shardengine.shards.types import LogId


class NodeStatus(msgspec.Struct, frozen=True):
    """Facts about one moment.

    applied: the newest entry that reads see; its term is its frame's position. position: up to which frames are
    applied, those without entries too. ready_at: the log's end as it was found at the start. durable: as
    `Engine.durable`. cut_before: frames before that position were given up in this run. proposed: entries without an
    outcome. waiting: calls that wait for room. stalled: why nothing is applied for now. failure: why nothing is any
    more. node: this one's name on a shared log, members: how many nodes were heard there last.
    """

    log: str
    applied: LogId
    position: int
    ready_at: int
    durable: LogId
    cut_before: int
    proposed: int
    waiting: int
    stalled: str | None
    failure: str | None
    node: str = ""
    members: int = 0


def status_of(run: Run, engine: Engine) -> NodeStatus:
    peers = run.peers
    return NodeStatus(
        log=run.state.identity,
        applied=engine.last_applied(),
        position=run.feeder.position,
        ready_at=run.ready_at,
        durable=engine.durable(),
        cut_before=run.trimmer.cut,
        proposed=run.proposals.entries,
        waiting=run.proposals.waiting,
        stalled=run.stalled,
        failure=None if run.failure is None else str(run.failure),
        node="" if peers is None else peers.members.name,
        members=0 if peers is None else len(peers.members.now()),
    )
