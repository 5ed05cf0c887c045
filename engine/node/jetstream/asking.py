"""Nodes of one log ask each other: a question, and its answer. A user of `asyncio`."""

from __future__ import annotations

import asyncio
import logging

from shardengine.engine.errors import EngineError, LogUnreachableError, PeerError
from shardengine.engine.node.jetstream.connection import Connection
from shardengine.engine.node.jetstream.link import Message, Outgoing
from shardengine.engine.node.jetstream.settings import HEADERS_BYTES
from shardengine.engine.node.shared import Answer

ASK_S = 30.0
"""An answer of another node that does not come for so long is not waited for any more."""
ANSWERS_AT_ONCE = 8
_FAILED = "Shardengine-Failed"
log = logging.getLogger("shardengine")


class Peers:
    """Questions to the nodes of one log, and answers to theirs. Nobody is answered before this node's name is known."""

    def __init__(self, stream: str, connection: Connection) -> None:
        self.handler: Answer | None = None
        self._subjects = f"_shardengine.{stream}.ask"
        self._connection = connection
        self._node = ""
        self._room = asyncio.Semaphore(ANSWERS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def named(self, node: str) -> None:
        """This is the name of this node."""
        if node != self._node:
            self._node = node
            await self._connection.listen(f"{self._subjects}.{node}", self._hear)

    async def ask(self, node: str, request: bytes) -> bytes:
        """See `SharedLog.ask`."""
        try:
            message = await self._connection.ask(Outgoing(f"{self._subjects}.{node}", request), timeout=ASK_S)
        except LogUnreachableError as error:
            raise PeerError(f"the node {node} does not answer: {error.message}", hint=error.hint, node=node) from error
        if message.status:
            raise PeerError(
                f"the node {node} is not there (status {message.status})", hint="see whether it runs", node=node
            )
        if (failure := message.headers.get(_FAILED)) is not None:
            raise PeerError(f"the node {node} cannot answer: {failure}", hint="see its log", node=node)
        return message.data

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _hear(self, message: Message) -> None:
        if message.reply:
            task = asyncio.ensure_future(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Message) -> None:
        async with self._room:
            handler = self.handler
            try:
                if handler is None:
                    raise PeerError("it answers nobody now")
                data = await handler(message.data)
                link = self._connection.link
                if link is not None and len(data) > (most := link.payload_bytes_max - HEADERS_BYTES):
                    raise PeerError(f"the answer has {len(data)} bytes, and {most} is the most")
            except Exception as error:
                if not isinstance(error, EngineError):
                    log.warning("a question of another node could not be answered", exc_info=error)
                said = " ".join(str(error).split()) or type(error).__name__
                self._connection.send(Outgoing(message.reply, headers={_FAILED: said[:1000]}))
            else:
                self._connection.send(Outgoing(message.reply, data))
