"""One stream on its servers: what it is, what it holds, and what is added to it, each asked for once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from shardengine.engine.errors import LogError, LogUnreachableError
from shardengine.engine.node.jetstream.connection import ANSWER_S, Connection
from shardengine.engine.node.jetstream.link import Message, Outgoing
from shardengine.engine.node.jetstream.settings import IDENTITY_KEY, config_of
from shardengine.engine.node.log import Logged

READ_FRAMES = 256
READ_BYTES = 2 << 20
"""So much is read at once, and one frame more."""
_API_S = 2.0
"""What is asked of a stream's leader, and not answered for so long, is refused for now."""
AGAIN_S = 0.25
"""So often it is asked again meanwhile, since nobody answers while a leader is elected: then of that one."""
_BYTES_PER_S = 2 << 20
"""At least so fast what is sent or read is expected to travel."""
NOT_FOUND = 10059
"""The servers' word for: there is no stream of that name."""
_EXISTS = 10058
_NO_MESSAGE = 10037
_WRONG_LAST = 10071
_FULL = frozenset((10002, 10023, 10047, 10077))
_TOO_LARGE = frozenset((10054, 10097, 10199))
_LATER = frozenset((10008, 10164, 10167, 10176, 10210))
_EPOCH, _MILLISECOND = datetime.fromtimestamp(0, UTC), timedelta(milliseconds=1)
_STARTING = frozenset((10004, 10005, 10008, 10009, 10023, 10039))
"""What a cluster says that has not found itself yet, or not its disks."""
_NUMBER = re.compile(r"(\d+)$")


class RefusedError(LogError):
    """The servers refuse what they were asked for; `code` is their number for it."""


class State(msgspec.Struct, frozen=True):
    first_seq: int = 0
    last_seq: int = 0


class Info(msgspec.Struct, frozen=True):
    """What the stream's leader, or one that holds itself for it, says of it."""

    created: str
    config: dict[str, Any]
    state: State

    @property
    def identity(self) -> str:
        """Unlike that of any other stream, one of the same name included."""
        word = (self.config.get("metadata") or {}).get(IDENTITY_KEY, "")
        return f"{self.config.get('name')}@{self.created}/{word}"

    @property
    def server(self) -> str:
        """The version of the server that says so."""
        return str((self.config.get("metadata") or {}).get("_nats.ver", "0"))


class _Problem(msgspec.Struct, frozen=True):
    code: int
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct, frozen=True):
    error: _Problem | None = None
    seq: int = 0


class _Message(msgspec.Struct, frozen=True):
    seq: int
    time: str
    data: bytes = b""


class _Kept(msgspec.Struct, frozen=True):
    message: _Message


class Added(NamedTuple):
    """The last of what was added is at this position."""

    position: int


class Elsewhere(NamedTuple):
    """Nothing was added: the last message of that subject is at this position, not where it was expected."""

    position: int


class Later(NamedTuple):
    """Nothing is known, or nothing can be added now: ask again."""

    why: str


class Full(NamedTuple):
    """Nothing was added by this try, for want of room."""

    why: str


class TooLarge(NamedTuple):
    """Nothing was added by this try, nor ever is: it is more than the stream takes at once."""

    why: str


Outcome = Added | Elsewhere | Later | Full | TooLarge
_answer = msgspec.json.Decoder(_Answer).decode
_kept = msgspec.json.Decoder(_Kept).decode
_info = msgspec.json.Decoder(Info).decode


class Foreign(Logged):
    """A frame that no opening of the log appended: perhaps it is of another stream of the same name."""


class Stream:
    """The stream of that name. Each call asks once, and raises LogUnreachableError when it gets no answer.

    `mark`: see `mark_of`; empty: not known yet, and all frames pass for the log's.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self.connection = connection
        self.mark = ""

    # ---- what it is ----------------------------------------------------------------------------------------------

    async def info(self) -> Info:
        """Raises RefusedError: there is none."""
        return _info(await self._api(f"STREAM.INFO.{self.name}"))

    async def create(self, replicas: int, first_position: int) -> None:
        """Make it, where there is none of that name. Raises RefusedError."""
        await self.make(config_of(self.name, replicas, os.urandom(8).hex(), first_position))

    async def make(self, config: dict[str, Any]) -> None:
        """Make a stream, where there is none of its name. Raises RefusedError."""
        try:
            await self._api(f"STREAM.CREATE.{config['name']}", config)
        except RefusedError as error:
            if error.code != _EXISTS:
                raise

    async def purge(self, position: int) -> None:
        """Remove what lies before `position`. Raises RefusedError."""
        await self._api(f"STREAM.PURGE.{self.name}", {"seq": position})

    async def _api(self, what: str, body: Any = None) -> bytes:
        data = b"" if body is None else json.dumps(body).encode()
        message = await self.connection.ask(Outgoing(f"$JS.API.{what}", data), timeout=_API_S, again_s=AGAIN_S)
        if message.status:
            raise LogUnreachableError(
                f"nobody answers on $JS.API.{what} now (status {message.status})",
                hint="see whether the servers have JetStream, and most of them reach each other",
            )
        problem = _answer(message.data).error
        if problem is None:
            return message.data
        if problem.err_code in _STARTING or problem.code == 503:
            raise LogUnreachableError(
                f"{what} is refused for now: {problem.description}",
                hint="see whether most servers run, reach each other, and have room",
            )
        raise RefusedError(
            f"{what} is refused: {problem.description}", hint="see the servers' log", code=problem.err_code
        )

    # ---- what it holds -------------------------------------------------------------------------------------------

    async def read_one(self, position: int) -> Logged | None:
        """What is at `position`, as the stream's leader says; None: nothing."""
        try:
            message = _kept(await self._api(f"STREAM.MSG.GET.{self.name}", {"seq": position})).message
        except RefusedError as error:
            if error.code != _NO_MESSAGE:
                raise
            return None
        return Logged(message.seq, _milliseconds(message.time), message.data)

    async def read(self, after: int) -> list[Logged]:
        """Some of what follows `after`, in order, without a gap; the first of it may lie farther behind. Some server
        says so, whose stream may end before that of others. Nothing: that one has nothing there."""
        request = {"seq": after + 1, "batch": READ_FRAMES, "max_bytes": READ_BYTES}
        messages = await self.connection.ask_for_many(
            Outgoing(f"$JS.API.DIRECT.GET.{self.name}", json.dumps(request).encode()),
            last=lambda message: bool(message.status),
        )
        found = list[Logged]()
        for message in messages:
            if message.status:
                break
            logged = self.logged(message)
            if found and logged.position != found[-1].position + 1:
                break
            found.append(logged)
        return found

    def logged(self, message: Message) -> Logged:
        """The frame that a server sends, and its place."""
        headers = message.headers
        ours = not self.mark or headers["Nats-Subject"].startswith(f"{self.name}.{self.mark}.")
        kind = Logged if ours else Foreign
        return kind(int(headers["Nats-Sequence"]), _milliseconds(headers["Nats-Time-Stamp"]), message.data)

    # ---- what is added to it -------------------------------------------------------------------------------------

    async def add(self, subject: str, frames: Sequence[bytes], expected: int) -> Outcome:
        """Add frames, next to each other, all or none, if the last message of `subject` is at position `expected`; 0:
        if there is none. Never raises LogUnreachableError."""
        expectation = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        if len(frames) == 1:
            messages = [Outgoing(subject, frames[0], expectation)]
        else:
            batch, messages = os.urandom(8).hex(), []
            for number, frame in enumerate(frames, 1):
                headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
                if number == 1:
                    headers |= expectation
                if number == len(frames):
                    headers["Nats-Batch-Commit"] = "1"
                messages.append(Outgoing(subject, frame, headers))
        try:
            timeout = ANSWER_S + sum(map(len, frames)) / _BYTES_PER_S
            return _outcome(await self.connection.ask(*messages, timeout=timeout))
        except LogUnreachableError as error:
            return Later(str(error))


def _milliseconds(stamp: str) -> int:
    return (datetime.fromisoformat(stamp) - _EPOCH) // _MILLISECOND


def why_not(message: Message) -> str:
    """Why what was sent is not in the stream, by its answer; empty: it is."""
    if message.status:
        return f"nobody takes messages for it now (status {message.status})"
    problem = _answer(message.data).error
    return "" if problem is None else problem.description


def _outcome(message: Message) -> Outcome:
    if message.status:
        return Later(why_not(message))
    answer = _answer(message.data)
    problem = answer.error
    if problem is None:
        return Added(answer.seq)
    if problem.err_code == _WRONG_LAST and (number := _NUMBER.search(problem.description)):
        return Elsewhere(int(number[1]))
    if problem.err_code in _FULL:
        return Full(problem.description)
    if problem.err_code in _TOO_LARGE:
        return TooLarge(problem.description)
    return Later(problem.description)
