"""A log on a stream of NATS JetStream, for several nodes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from shardengine.engine.errors import ConfigError, EngineStateError
from shardengine.engine.node.jetstream.appending import Call
from shardengine.engine.node.jetstream.link import check_options
from shardengine.engine.node.jetstream.members import Members
from shardengine.engine.node.jetstream.session import Session
from shardengine.engine.node.log import Logged, LogState
from shardengine.engine.node.refusals import check_frames, closed
from shardengine.engine.node.shared import Answer, Member

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class JetStreamLog:
    """A log that any number of nodes share, replicated over the servers of a NATS cluster. What is acknowledged is on
    most of them.

    It is one loop's from `open` to `aclose`, as any log; each node has an object of its own. Nothing in it blocks.
    While most servers cannot be reached, `append` and `last` wait, and `read` waits as at the log's end; they go on by
    themselves. A call that is cancelled is appended all the same if it was sent already. Frames of its own, without
    entries, lie between those of its users.

    The servers have to be of version 2.15 or later, with `sync_interval: always`: their default, two minutes, loses
    acknowledged frames when most of them lose power at once. No client can see that setting.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        stream: str,
        *,
        replicas: int = 3,
        create: bool = True,
        first_position: int = 1,
        connect: Mapping[str, Any] | None = None,
        member_timeout: float = 30.0,
    ) -> None:
        """Connects to nothing yet.

        `servers`: "nats://a,b:4222,c", or a sequence of such; all that there are. `stream`: its name, which is the
        log's; 1 to 64 letters, digits, `_` and `-`. `replicas`: it has to have so many at least, and is made with so
        many; fewer than 3 lose frames with a server. `create`: make it where there is none; one that is there is never
        changed.
        `first_position`: where it begins then. When a stream was lost with its servers, a node goes on from a snapshot,
        in an empty directory, over a new stream that begins at `last_included.term + 1`.
        `connect`: more arguments for nats-py's `connect`, as `user`, `password`, `user_credentials`, `tls`.
        `member_timeout`: a node that has not said for so many seconds where it stands is not listed any more.

        Raises ConfigError; EngineError without nats-py.
        """
        self._options = dict(connect or {})
        check_options(self._options)
        self._servers = _split([servers] if isinstance(servers, str) else servers)
        if not self._servers:
            raise ConfigError(f"servers is {servers!r}; it must name at least one", hint="nats://a,b,c")
        self._stream = stream
        self._replicas = replicas
        self._create_at = first_position if create else 0
        self._member_timeout_s = member_timeout
        self._session: Session | None = None
        self._handler: Answer | None = None
        self._unsettled: tuple[str, int] | None = None
        _check(stream, replicas, first_position, member_timeout)

    async def open(self) -> LogState:
        """See `Log.open`. A frame without entries is appended, which shows that most servers take one: its position is
        the state's `last`. Waits up to 30 s for servers that are just starting.

        Raises:
            LogUnreachableError: the servers cannot be reached, or do not agree on who leads.
            LogSettingsError: they, or the stream, are set up so that frames could be lost; with all that is wrong.
            EngineStateError: it is open already.
            LogError: they refuse what they are asked for, in their words.
        """
        if self._session is not None:
            raise EngineStateError("the log is open already")
        session = self._session = Session(self._servers, self._options, self._stream, self._replicas)
        session.peers.handler = self._handler
        session.unsettled = self._unsettled
        try:
            state = await session.begin(self._create_at)
        except BaseException:
            self._session = None
            await session.close()
            raise
        self._members = Members(session.stream, self._replicas, self._member_timeout_s)
        return state

    async def append(self, frames: Sequence[bytes]) -> list[int]:
        """See `Log.append`. Up to 1000 frames of 96 MiB at once; more are a FrameTooLargeError.

        It waits for as long as the servers do not answer, and asks again. LogUnreachableError: they did not, and
        meanwhile the log was cut where these frames may have been; whether they were is not known, and others can be
        appended. LogFailedError: the log was closed meanwhile.
        LogReplacedError, LogRegressedError, LogSettingsError: the stream is not what it was; nothing is appended any
        more until the log is opened anew, and whether these frames are in it is not known.
        """
        session = self._usable()
        check_frames(frames, session.frame_bytes_max)
        if not frames:
            return []
        call = Call([bytes(frame) for frame in frames])
        session.appender.put(call)
        return await call.waiter

    async def read(self, after: int) -> AsyncGenerator[Logged, None]:
        """See `Log.read`. Raises LogReplacedError, LogRegressedError, LogSettingsError as `append`."""
        session = self._opened()
        async for logged in session.reader.read(after):
            yield logged

    async def last(self) -> int:
        """See `Log.last`. Goes along with what is appended next, or appends a frame without entries."""
        session = self._usable()
        call = Call([])
        session.appender.put(call)
        (position,) = await call.waiter
        return position

    async def truncate_before(self, position: int) -> None:
        """See `Log.truncate_before`. The newest frame that was read or appended here stays; while the servers do not
        answer, nothing is cut; once they do, it is. Raises LogError when they refuse."""
        await asyncio.shield(self._usable().cut(position))

    async def meet(self, me: Member) -> Sequence[Member]:
        """See `SharedLog.meet`. From here on this node can be asked by its name. Raises LogUnreachableError."""
        session = self._usable()
        await session.peers.named(me.node)
        return await self._members.meet(me)

    async def ask(self, node: str, request: bytes) -> bytes:
        """See `SharedLog.ask`; waits up to 30 s. Neither request nor answer may be longer than a frame."""
        session = self._usable()
        check_frames([request], session.frame_bytes_max)
        return await session.peers.ask(node, request)

    def answer(self, handler: Answer | None) -> None:
        """See `SharedLog.answer`. May be called before `open`; eight are answered at once."""
        self._handler = handler
        if self._session is not None:
            self._session.peers.handler = handler

    async def aclose(self) -> None:
        """See `Log.aclose`. What is under way has five seconds to end: whoever waits for an answer of servers that do
        not give one gets LogFailedError. What is not known then, the next `open` of this object settles."""
        session = self._session
        if session is None:
            return
        if not session.loop.is_closed():
            session.check_loop()
            await asyncio.shield(asyncio.ensure_future(session.close()))
        if self._session is session:
            self._session = None
            self._unsettled = session.unsettled

    def _opened(self) -> Session:
        """Raises LogClosedError, WrongLoopError."""
        session = self._session
        if session is None or session.closing or not session.began:
            raise closed()
        session.check_loop()
        return session

    def _usable(self) -> Session:
        """As `_opened`; raises what it failed with, too."""
        session = self._opened()
        if session.failure is not None:
            raise session.failure.again()
        return session


def _split(servers: Sequence[str]) -> list[str]:
    """Each by itself; one without a scheme has that of the one before it."""
    found, scheme = list[str](), "nats"
    if not isinstance(servers, Sequence) or not all(isinstance(server, str) for server in servers):
        raise ConfigError(f"servers is {servers!r}; it must be a string, or a sequence of such", hint="nats://a,b,c")
    for server in ",".join(servers).split(","):
        before, separator, rest = server.strip().rpartition("://")
        scheme = before if separator else scheme
        if rest:
            found.append(f"{scheme}://{rest}")
    return found


def _check(stream: str, replicas: int, first_position: int, member_timeout: float) -> None:
    if not isinstance(stream, str) or _NAME.fullmatch(stream) is None:
        raise ConfigError(
            f"stream is {stream!r}; a log's name has 1 to 64 letters, digits, '_' and '-', and begins with neither of "
            "the latter",
            hint="name it as what it is of: 'orders'",
        )
    if type(replicas) is not int or not 1 <= replicas <= 5:
        raise ConfigError(f"replicas is {replicas!r}; it must be a whole number from 1 to 5", hint="3 suit most")
    if type(first_position) is not int or not 1 <= first_position < 1 << 63:
        raise ConfigError(
            f"first_position is {first_position!r}; it must be a whole number from 1 on",
            hint="leave it out, unless the stream is to follow a snapshot",
        )
    if type(member_timeout) not in (int, float) or not 1 <= member_timeout <= 86_400:
        raise ConfigError(f"member_timeout is {member_timeout!r} seconds; it must be 1 to 86400", hint="30 suit most")
