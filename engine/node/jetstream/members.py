"""Who else has the log open: each run says so under its own key, in a bucket that forgets whom it does not hear of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from shardengine.engine.errors import LogUnreachableError
from shardengine.engine.node.jetstream.connection import pauses
from shardengine.engine.node.jetstream.link import Message, Outgoing
from shardengine.engine.node.jetstream.stream import Stream, why_not
from shardengine.engine.node.shared import Member

_NODES_MAX = 1000
_TRIES = 8
log = logging.getLogger("shardengine")


class Members:
    """The members of one log: a key-value bucket, of its own stream beside that of the log."""

    def __init__(self, log: Stream, replicas: int, timeout_s: float) -> None:
        self._stream = Stream(f"KV_{log.name}-nodes", log.connection)
        self._keys = f"$KV.{log.name}-nodes"
        self._replicas = replicas
        self._timeout_s = timeout_s

    async def meet(self, me: Member) -> Sequence[Member]:
        """See `SharedLog.meet`. Raises LogUnreachableError, RefusedError."""
        message = await self._put(me)
        if message.status:
            await self._stream.make(self._config())
            message = await self._put(me)
        if refused := why_not(message):
            raise LogUnreachableError(
                f"the stream {self._stream.name!r} does not take where this node stands: {refused}",
                hint="see the servers' log",
            )
        found = {(one.node, one.run): one for one in map(_member, await self._all()) if one is not None}
        return [member for _, member in sorted((found | {(me.node, me.run): me}).items())]

    async def _put_anew(self, me: Member) -> Message:
        """Make the bucket; it may have no leader at first, who takes anything."""
        await self._stream.make(self._config())
        message, waits = await self._put(me), pauses()
        for _ in range(_TRIES):
            if not message.status:
                break
            await asyncio.sleep(next(waits))
            message = await self._put(me)
        return message

    async def _put(self, me: Member) -> Message:
        return await self._stream.connection.ask(Outgoing(f"{self._keys}.{me.run}", msgspec.json.encode(me)))

    async def _all(self) -> list[Message]:
        """What a server has of everybody, which may be a little old."""
        request = msgspec.json.encode({"multi_last": [f"{self._keys}.>"], "batch": _NODES_MAX})
        return await self._stream.connection.ask_for_many(
            Outgoing(f"$JS.API.DIRECT.GET.{self._stream.name}", request), last=lambda message: bool(message.status)
        )

    def _config(self) -> dict[str, Any]:
        return {
            "name": self._stream.name,
            "subjects": [f"{self._keys}.>"],
            "storage": "file",
            "num_replicas": self._replicas,
            "retention": "limits",
            "discard": "new",
            "max_msgs_per_subject": 1,
            "max_age": int(self._timeout_s * 1e9),
            "duplicate_window": int(min(self._timeout_s, 120) * 1e9),
            "deny_delete": True,
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        }


def _member(message: Message) -> Member | None:
    """None: it says that there are no more, or something that this version does not understand."""
    if message.status:
        return None
    try:
        return msgspec.json.decode(message.data, type=Member)
    except msgspec.DecodeError as error:
        log.debug("%s says where it stands in other words: %s", message.headers.get("Nats-Subject"), error)
        return None
