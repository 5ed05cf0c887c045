"""One connection to one server, from its making to its end, which is final. A user of `asyncio`, and of `nats`.

nats-py makes connections anew by itself, and keeps what is to be sent meanwhile: a message may so be sent long after
everybody gave it up. Here nothing survives its connection. Besides, of that library: to connect may never end, an error
in its reading task ends that without a word, and a cancellation is lost where it waits for room to write. So
everything is bounded by a time limit of our own (`asyncio.timeout`: `wait_for` may lose a cancellation, too), its
answers to pings are asked for, and one task does all the sending.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from shardengine.engine.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

CONNECT_S = 2.0
PING_S = 1.0
"""So often it is asked whether the server is still there."""
PONG_S = 5.0
"""A server that does not answer for so long is given up."""
_END_S = 1.0
_PENDING_BYTES = 64 << 20
_OURS = {"servers", "allow_reconnect", "error_cb", "closed_cb", "disconnected_cb", "reconnected_cb"}
log = logging.getLogger("shardengine")


class Message(NamedTuple):
    """What a server sent. `status`: of an answer that is not what was asked for; empty: it is."""

    subject: str
    reply: str
    headers: Mapping[str, str]
    data: bytes

    @property
    def status(self) -> str:
        return self.headers.get("Status", "")


class Outgoing(NamedTuple):
    subject: str
    data: bytes = b""
    headers: dict[str, str] | None = None
    reply: str = ""


Hear = Callable[[Message], None]


def check_options(options: Mapping[str, Any]) -> None:
    """Raises EngineError when there is no nats-py, ConfigError for what its connections do not take."""
    known = set(inspect.signature(_new_client().connect).parameters) - _OURS
    if unknown := sorted(options.keys() - known):
        raise ConfigError(
            f"a connection to NATS has no option {', '.join(map(repr, unknown))}, or it is not yours to choose",
            hint=f"it has {', '.join(sorted(known))}",
        )


def _new_client() -> Client:
    try:
        from nats.aio.client import Client
    except ImportError as error:
        raise EngineError("a log on JetStream needs nats-py", hint="pip install 'shardengine[nats]'") from error
    return Client()


class Link:
    """A connection. `over`: it has ended, and nothing comes or goes any more. `said`: the last error of the server."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.said = ""
        self._client = _new_client()
        self._outgoing: asyncio.Queue[Outgoing] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def payload_bytes_max(self) -> int:
        return self._client.max_payload

    @property
    def version(self) -> str:
        """Of the server."""
        return str(self._client.connected_server_version).removeprefix("<nats server v").removesuffix(">")

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    async def connect(self, server: str, options: Mapping[str, Any]) -> None:
        """Raises whatever keeps it from that; then there is none."""
        chosen = {
            "name": "shardengine",
            **options,
            "servers": [server],
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0.05,
            "connect_timeout": CONNECT_S,
            "ping_interval": 86_400,
            "pending_size": _PENDING_BYTES,
            "error_cb": self._on_error,
            "closed_cb": self._on_end,
        }
        try:
            async with asyncio.timeout(3 * CONNECT_S):
                await self._client.connect(**chosen)
        except BaseException:
            await self.close()
            raise
        self._tasks = [asyncio.ensure_future(work()) for work in (self._send, self._watch)]

    def send(self, message: Outgoing) -> None:
        """Have it sent soon; whether it is, nobody tells."""
        self._outgoing.put_nowait(message)

    async def listen(self, subject: str, hear: Hear) -> None:
        """Have `hear` called with all that comes for `subject` on this connection."""

        async def heard(message: Msg) -> None:
            hear(Message(message.subject, message.reply, message.headers or {}, message.data))

        async with asyncio.timeout(CONNECT_S):
            await self._client.subscribe(subject, cb=heard, pending_bytes_limit=0)

    async def close(self) -> None:
        """End it. What is not sent yet never is."""
        self.over.set()
        self._abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END_S)
        with suppress(Exception):
            async with asyncio.timeout(_END_S):
                await self._client.close()
        self._let_go()

    def _let_go(self) -> None:
        """End what is left where the library's own end failed: it does not begin that again."""
        for subscription in self._client._subs.values():
            subscription._stop_processing()
        reading = self._client._reading_task
        if reading is not None and reading.done() and not reading.cancelled():
            reading.exception()  # nobody else asks for it

    def _abort(self) -> None:
        """Close the socket at once: to a server that has stopped, what is buffered would be waited for for ever."""
        writer = getattr(getattr(self._client, "_transport", None), "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _send(self) -> None:
        while not self.over.is_set():
            subject, data, headers, reply = await self._outgoing.get()
            try:
                await self._client.publish(subject, data, reply=reply, headers=headers)
            except Exception as error:
                await self._on_error(error)
                self.over.set()

    async def _watch(self) -> None:
        """Until the server does not answer."""
        while not self.over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PING_S):
                    await self.over.wait()
                    return
            try:
                async with asyncio.timeout(PONG_S):
                    await self._client.rtt(timeout=86_400)
            except Exception:
                self.over.set()

    async def _on_error(self, error: Exception) -> None:
        from nats.errors import UnexpectedEOF

        before, self.said = self.said, str(error) or repr(error)
        if isinstance(error, (UnexpectedEOF, OSError)):
            self.over.set()
        elif self._tasks and self.said != before:
            log.warning("a server says: %s", self.said)

    async def _on_end(self) -> None:
        self.over.set()
