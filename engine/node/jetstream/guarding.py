"""Whether the stream is still the one that was opened, and has all that was seen of it. A user of `asyncio`.

A server that was cut off from the others may hold itself for the leader for some seconds, and say what was true a while
ago. So of what looks like a loss only that is believed which the servers go on saying.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from shardengine.engine.errors import LogError, LogRegressedError, LogReplacedError, LogUnreachableError
from shardengine.engine.node.jetstream.settings import check_settings
from shardengine.engine.node.jetstream.stream import NOT_FOUND, Info, RefusedError, Stream
from shardengine.engine.node.log import Logged

LOOK_S = 5.0
"""So often is looked at a log that gives no cause to: it is what it was."""
BELIEVE_S = 15.0
"""What the servers say for so long is true."""
_LOOK_AGAIN_S = 0.5
_COUNTED_S = 2.0
"""Between two answers at most so much counts: who is not there does not go on saying anything."""
_HINT = "a node's directory and its log belong together: give it the log it had, or an empty directory"


class Doubt:
    """Whether something is wrong, as the servers say."""

    def __init__(self) -> None:
        self.error: LogError | None = None
        self._lasted_s = 0.0
        self._heard_at = 0.0

    def heard(self, error: LogError) -> None:
        """They say so. Raises `error` when it is certain, or they have said so for long enough."""
        now = monotonic()
        if type(self.error) is type(error):
            self._lasted_s += min(now - self._heard_at, _COUNTED_S)
        else:
            self._lasted_s = 0.0
        self.error, self._heard_at = error, now
        if error.facts.get("certain") or self._lasted_s >= BELIEVE_S:
            raise error

    def settled(self) -> None:
        """They say otherwise."""
        self.error = None


class Guard:
    """Looks at the stream now and then, and over each new connection; `failed` is called with what it finds.

    `first`: what lies before it is cut away. `newest`: something is there, or was said to be. `seen`: so far frames
    were read or acknowledged. `trusted`: it was looked at since the connection was made, and is what it was; else
    nothing is appended, and nothing read. Its other attributes are what it was given, and the doubt that there is.
    """

    def __init__(self, stream: Stream, replicas: int, info: Info, failed: Callable[[LogError], None]) -> None:
        self.first = info.state.first_seq
        self.newest = info.state.last_seq
        self.seen = 0
        self.trusted = asyncio.Event()
        self.trusted.set()
        self._read: Logged | None = None
        self._stream = stream
        self._replicas = replicas
        self._known = info
        self._failed = failed
        self._doubt = Doubt()
        self._compared = -1
        """What was read was compared with the stream when this was its end."""
        self._wanted = asyncio.Event()

    @property
    def identity(self) -> str:
        return self._known.identity

    @property
    def read_up_to(self) -> int:
        """So far somebody has read; 0: nobody has read anything."""
        return 0 if self._read is None else self._read.position

    def changed(self) -> None:
        """There is another connection, or none: who knows to whom the next one will be."""
        self.trusted.clear()
        self._compared = -1
        self._wanted.set()

    def note(self, position: int) -> None:
        """There is a frame at `position`, durable."""
        self.seen = max(self.seen, position)
        self.newest = max(self.newest, position)

    def note_read(self, logged: Logged) -> None:
        """This frame was read."""
        self.note(logged.position)
        if self._read is None or logged.position > self._read.position:
            self._read = logged

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_S if self._is_sure() else _LOOK_AGAIN_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                await self.check()
            except LogUnreachableError:
                pass
            except LogError as error:
                self._failed(error)
                return
            if self._doubt.error is not None:
                await asyncio.sleep(_LOOK_AGAIN_S)

    def _is_sure(self) -> bool:
        """Whether nothing waits for the next look."""
        return self._doubt.error is None and self.trusted.is_set()

    async def check(self) -> Info | None:
        """Look now; returns what the stream is; None: there is a suspicion, and it is too early to tell.

        Raises LogReplacedError, LogRegressedError, LogSettingsError; LogUnreachableError.
        """
        link = self._stream.connection.link
        try:
            info = await self._stream.info()
            wrong = self._replaced(info) or self._regressed(info) or await self._rewritten(info)
        except RefusedError as error:  # of either: it may go in between
            self.trusted.clear()
            self._doubt.heard(self._gone() if error.code == NOT_FOUND else error)
            return None
        if wrong is not None:
            self.trusted.clear()
            self._doubt.heard(wrong)
            return None
        self._doubt.settled()
        check_settings(self._stream.name, self._replicas, info.config, info.server)
        self.first = max(self.first, info.state.first_seq)
        self.newest = max(self.newest, info.state.last_seq)
        if link is self._stream.connection.link:
            self.trusted.set()
            self._compared = info.state.last_seq
        return info

    def _gone(self) -> LogError:
        return LogReplacedError(
            f"there is no stream {self._stream.name!r} any more, which was {self.identity}",
            hint=_HINT,
            expected=self.identity,
            got=None,
        )

    def _replaced(self, info: Info) -> LogError | None:
        """A stream that was made later than ours is none that a server remembers."""
        if info.identity == self.identity:
            return None
        return LogReplacedError(
            f"the stream {self._stream.name!r} is {info.identity}, and it was {self.identity}",
            hint=_HINT,
            expected=self.identity,
            got=info.identity,
            certain=info.created > self._known.created,
        )

    def _regressed(self, info: Info) -> LogError | None:
        last = info.state.last_seq
        return regressed(self._stream.name, last, self.seen) if last < self.seen else None

    async def _rewritten(self, info: Info) -> LogError | None:
        read = self._read
        if read is None or read.position < info.state.first_seq or info.state.last_seq == self._compared:
            return None
        found = await self._stream.read_one(read.position)
        if found == read:
            return None
        return LogReplacedError(
            f"the stream {self._stream.name!r} holds {'another' if found else 'no'} frame at position {read.position}, "
            "where there was one",
            hint="it is an older copy that was gone on with; " + _HINT,
            position=read.position,
        )


def regressed(stream: str, last: int, seen: int) -> LogRegressedError:
    return LogRegressedError(
        f"the stream {stream!r} ends at position {last}, and there was a frame at {seen}",
        hint="it is an older copy, or it lost what it had acknowledged; " + _HINT,
        last=last,
        seen=seen,
    )
