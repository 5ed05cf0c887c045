"""Who else has the log open: each run says so under its own key, in a bucket that forgets whom it does not hear of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from shardengine.engine.errors import LogUnreachableError
from shardengine.engine.node.jetstream.connection import PAUSES_S
from shardengine.engine.node.jetstream.link import Message, Outgoing
from shardengine.engine.node.jetstream.stream import AGAIN_S, Stream, why_not
from shardengine.engine.node.shared import Member

_NODES_MAX = 1000
_NO_MORE = "204"
"""The status of what ends an answer that is whole."""
log = logging.getLogger("shardengine")


class Members:
    """The members of one log, which is open: a key-value bucket, of its own stream beside that of the log. Keys begin
    with the log's mark: what was said of another one of its name is not heard."""

    def __init__(self, log: Stream, replicas: int, timeout_s: float) -> None:
        self._stream = Stream(f"KV_{log.name}-nodes", log.connection)
        self._all_keys = f"$KV.{log.name}-nodes"
        self._keys = f"{self._all_keys}.{log.mark}"
        self._replicas = replicas
        self._timeout_s = timeout_s

    async def meet(self, me: Member) -> Sequence[Member]:
        """See `SharedLog.meet`. Raises LogUnreachableError: also when no server says of all; RefusedError."""
        await self._say(me)
        for pause in PAUSES_S:
            if (found := await self._all(me)) is not None:
                return found
            await asyncio.sleep(pause)
        raise LogUnreachableError(
            f"no server says where all nodes stand that are in the stream {self._stream.name!r}",
            hint="see whether it has allow_direct, and its replicas are current; if it is removed, it is made anew",
        )

    async def _say(self, me: Member) -> None:
        word = Outgoing(f"{self._keys}.{me.run}", msgspec.json.encode(me))
        message = await self._stream.connection.ask(word, again_s=AGAIN_S)
        for pause in PAUSES_S:
            if not message.status:
                break
            await self._stream.make(self._config())  # where it is there already, it has no leader yet
            await asyncio.sleep(pause)
            message = await self._stream.connection.ask(word, again_s=AGAIN_S)
        if refused := why_not(message):
            raise LogUnreachableError(
                f"the stream {self._stream.name!r} does not take where this node stands: {refused}",
                hint="see the servers' log",
            )

    async def _all(self, me: Member) -> Sequence[Member] | None:
        """What a server has of everybody. None: that is not all, since the answer is not whole, or the server has not
        even what was put there just now: who is not in it may be there all the same."""
        request = msgspec.json.encode({"multi_last": [f"{self._keys}.>"], "batch": _NODES_MAX})
        answers = await self._stream.connection.ask_for_many(
            Outgoing(f"$JS.API.DIRECT.GET.{self._stream.name}", request), last=lambda message: bool(message.status)
        )
        found = {(one.node, one.run): one for one in map(_member, answers) if one is not None}
        whole = bool(answers) and answers[-1].status == _NO_MORE and found.get((me.node, me.run)) == me
        return [member for _, member in sorted(found.items())] if whole else None

    def _config(self) -> dict[str, Any]:
        return {
            "name": self._stream.name,
            "subjects": [f"{self._all_keys}.>"],
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
