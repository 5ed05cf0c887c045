"""Puts to a node on a replicated log; and the frames that it appended, published to a stream of the same servers with
nothing around them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from perf.calls import Amount, Took, closed_loop
from perf.proposing import Proposed, Puts, check_state, frames_behind
from perf.report import CheckError
from shardengine import SnapshotPolicy
from shardengine.engine.node.frames import decode_frame
from shardengine.node import JetStreamLog, Log, Logged, LogState, Node, NodePolicy

_ANSWER_S = 30.0


class NotedLog:
    """A log that remembers which frames were appended together, from `mark` on."""

    def __init__(self, inner: Log) -> None:
        self._inner = inner
        self.appended: list[Sequence[bytes]] = []

    async def open(self) -> LogState:
        return await self._inner.open()

    async def append(self, frames: Sequence[bytes]) -> list[int]:
        self.appended.append(frames)
        return await self._inner.append(frames)

    def read(self, after: int) -> AsyncGenerator[Logged, None]:
        return self._inner.read(after)

    async def last(self) -> int:
        return await self._inner.last()

    async def truncate_before(self, position: int) -> None:
        await self._inner.truncate_before(position)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def over_a_replicated_node(
    directory: Path, puts: Puts, shards: int, callers: int, amount: Amount, servers: Sequence[str], stream: str
) -> Proposed:
    """As `over_a_node`, one command a call, over a new stream of those servers."""
    log = NotedLog(JetStreamLog(servers, stream))
    policy = NodePolicy(snapshots=SnapshotPolicy())
    async with Node(directory, log=log, shards=shards, policy=policy) as node:
        took = await closed_loop(lambda first, _: node.propose(puts.datas[first]), callers, 1, amount)
        await check_state("JetStreamLog", node.engine, puts.pairs[: took.given])
    frames = [[decode_frame(frame, 0).datas for frame in call] for call in log.appended]
    flat = [datas for call in frames for datas in call]
    if [data for datas in flat for data in datas] != puts.datas[: took.given]:
        raise CheckError("JetStreamLog: what was appended are not the commands that were acknowledged")
    timed = frames_behind([[data for datas in call for data in datas] for call in frames], took.given - took.timed)
    return Proposed(took, frames_behind(flat, took.given - took.timed), log.appended, len(frames) - timed)


async def published(servers: Sequence[str], stream: str, calls: Sequence[Sequence[bytes]], warm: int) -> Took:
    """Publish the frames of each call at once, and wait for all their answers before the next; time those behind the
    first `warm`. Commands are not known here: `given` and `timed` count frames. Raises CheckError when the stream does
    not hold them all."""
    await _made(servers, stream)
    publisher = await _Publisher.connected(servers, f"{stream}.bare")
    try:
        before = await publisher.held(stream)
        for frames in calls[:warm]:
            await publisher.publish(frames)
        calls_ns = []
        start, cpu = time.monotonic(), time.thread_time()
        for frames in calls[warm:]:
            began = time.perf_counter_ns()
            await publisher.publish(frames)
            calls_ns.append(time.perf_counter_ns() - began)
        seconds, cpu = time.monotonic() - start, time.thread_time() - cpu
        sent, held = sum(map(len, calls)), await publisher.held(stream) - before
    finally:
        await publisher.close()
    if held != sent:
        raise CheckError(f"bare publish: the stream holds {held} messages, and {sent} were acknowledged")
    return Took(seconds, cpu, sent, sum(map(len, calls[warm:])), calls_ns)


async def _made(servers: Sequence[str], stream: str) -> None:
    """The stream as a node's log makes it."""
    log = JetStreamLog(servers, stream)
    await log.open()
    await log.aclose()


class _Publisher:
    """One connection, one inbox for all answers."""

    def __init__(self, client: Client, subject: str) -> None:
        self._client = client
        self._subject = subject
        self._inbox = client.new_inbox()
        self._answers: dict[str, asyncio.Future[Msg]] = {}

    @classmethod
    async def connected(cls, servers: Sequence[str], subject: str) -> _Publisher:
        made = cls(await nats.connect(list(servers)), subject)
        await made._client.subscribe(f"{made._inbox}.*", cb=made._answered)
        return made

    async def _answered(self, message: Msg) -> None:
        self._answers.pop(message.subject).set_result(message)

    async def publish(self, frames: Sequence[bytes]) -> None:
        """Raises CheckError when one is not stored."""
        loop, waiting = asyncio.get_running_loop(), []
        for number, frame in enumerate(frames):
            reply = f"{self._inbox}.{number}"
            self._answers[reply] = future = loop.create_future()
            waiting.append(future)
            await self._client.publish(self._subject, frame, reply=reply)
        async with asyncio.timeout(_ANSWER_S):
            for future in waiting:
                answer = json.loads((await future).data)
                if "seq" not in answer:
                    raise CheckError(f"bare publish: {answer}")

    async def held(self, stream: str) -> int:
        answer = await self._client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=_ANSWER_S)
        found: dict[str, Any] = json.loads(answer.data)
        return int(found["state"]["messages"])

    async def close(self) -> None:
        async with asyncio.timeout(_ANSWER_S):
            await self._client.close()
