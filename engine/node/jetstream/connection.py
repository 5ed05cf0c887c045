"""A connection to some server of several, made anew for ever, and questions by it. A user of `asyncio`."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from shardengine.engine.errors import LogClosedError, LogUnreachableError
from shardengine.engine.node.jetstream.link import Hear, Link, Message, Outgoing
from shardengine.engine.node.refusals import closed
from shardengine.engine.run.waiting import resolve

ANSWER_S = 5.0
"""An answer that does not come for so long is not waited for any more."""
PAUSES_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""From one try to the next."""
log = logging.getLogger("shardengine")


_SECRET = re.compile(r"(?<=://).*@")


def shown(server: str) -> str:
    """As messages name it: without user, password and token."""
    return _SECRET.sub("", server)


def pauses() -> Iterator[float]:
    """How long to wait after each try, for ever."""
    yield from PAUSES_S
    while True:
        yield PAUSES_S[-1]


class _Question:
    """Messages that come for one inbox: `last` tells which is the last one."""

    def __init__(self, last: Callable[[Message], bool]) -> None:
        self.answers: list[Message] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody need wait any more
        self._last = last

    def hear(self, message: Message) -> None:
        self.answers.append(message)
        if self._last(message):
            resolve(self.done)


class Connection:
    """From `start` to `close` there is a link to a server, or one is being made.

    A question that was asked over a link that ended is not answered. Its attributes are what it was given, the link,
    and who waits for one or over one.
    """

    def __init__(self, servers: Sequence[str], options: Mapping[str, Any]) -> None:
        self._servers = list(servers)
        self._options = options
        self._link: Link | None = None
        self._said = "no server could be reached yet"
        self._listening: dict[str, Hear] = {}
        self._changed: Callable[[], None] = lambda: None
        self._arrived = asyncio.Event()
        self._inbox = ""
        self._numbers = count(1)
        self._asked: dict[str, _Question] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def link(self) -> Link | None:
        """None: there is none now."""
        return self._link

    def start(self, changed: Callable[[], None]) -> None:
        """`changed` is called whenever there is a link anew, and when there is none any more."""
        self._changed = changed
        self._keeping = asyncio.ensure_future(self._keep())

    async def listen(self, subject: str, hear: Hear) -> None:
        """Have `hear` called with all that comes for `subject`, over this link and all that follow."""
        self._listening[subject] = hear
        if (link := self._link) is not None:
            try:
                await link.listen(subject, hear)
            except Exception:
                link.over.set()

    def send(self, message: Outgoing) -> None:
        """Have it sent; where there is no link now, it never is."""
        if self._link is not None:
            self._link.send(message)

    async def ask(self, *messages: Outgoing, timeout: float | None = None, again_s: float | None = None) -> Message:
        """Send messages, and return what the last one is answered with. `again_s`: after so long without an answer
        that one is sent once more, and again; the first answer counts. Only for what may be asked twice.

        Raises LogUnreachableError when no answer comes in time, or the link ends; whether anything was received, and
        what comes of it, is not known then. LogClosedError.
        """
        answers = await self.ask_for_many(*messages, last=lambda message: True, timeout=timeout, again_s=again_s)
        if not answers:
            raise self.unreachable(f"there was no answer on {messages[-1].subject}")
        return answers[0]

    async def ask_for_many(
        self,
        *messages: Outgoing,
        last: Callable[[Message], bool],
        timeout: float | None = None,
        again_s: float | None = None,
    ) -> list[Message]:
        """Send messages, and return what the last one is answered with, up to the answer that is the `last`; fewer when
        no more come in time, or the link ends. Raises LogUnreachableError while there is no link, LogClosedError."""
        token = str(next(self._numbers))
        question = self._asked[token] = _Question(last)
        try:
            async with asyncio.timeout(ANSWER_S if timeout is None else timeout):
                link = await self._some_link()
                for message in messages[:-1]:
                    link.send(message)
                asked = messages[-1]._replace(reply=f"{self._inbox}.{token}")
                link.send(asked)
                while again_s is not None and not (await asyncio.wait([question.done], timeout=again_s))[0]:
                    link.send(asked)
                await question.done
        except TimeoutError:
            if self._link is None:
                raise self.unreachable("no server can be reached") from None
        except LogUnreachableError:
            pass
        finally:
            del self._asked[token]
        return question.answers

    async def close(self) -> None:
        """Nothing is asked any more."""
        self._closing = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])

    async def _some_link(self) -> Link:
        while self._link is None:
            if self._keeping is None or self._keeping.done():
                raise closed()
            await self._arrived.wait()
        return self._link

    def unreachable(self, what: str) -> LogUnreachableError:
        """An error that says so, and what the servers said last."""
        said = self._said if self._link is None else self._link.said
        servers = [shown(server) for server in self._servers]
        return LogUnreachableError(
            f"{what}, of {', '.join(servers)}" + (f": {said}" if said else ""),
            hint="see whether the servers run, most of them reach each other, and this machine reaches one of them",
            servers=servers,
        )

    # ---- one link after the other --------------------------------------------------------------------------------

    async def _keep(self) -> None:
        random.shuffle(self._servers)
        try:
            waits = pauses()
            while not self._closing:
                for server in list(self._servers):
                    if await self._serve(server):
                        waits = pauses()
                await asyncio.sleep(next(waits))
        finally:
            self._end(closed())
            self._arrived.set()

    async def _serve(self, server: str) -> bool:
        """Keep a link to `server` for as long as it lasts. Returns whether there was one."""
        link = Link()
        try:
            await link.connect(server, self._options)
            inbox = link.new_inbox()
            await link.listen(f"{inbox}.*", self._hear)
            for subject, hear in list(self._listening.items()):
                await link.listen(subject, hear)
        except Exception as error:
            self._said = f"{shown(server)}: {link.said or error!r}"
            await link.close()
            return False
        except asyncio.CancelledError:
            await link.close()
            raise
        if self._closing:  # a cancellation may be lost while a connection is made
            await link.close()
            return False
        try:
            self._link, self._inbox = link, inbox
            self._arrived.set()
            self._changed()
            await link.over.wait()
            log.info("the connection to %s has ended: %s", shown(server), link.said or "it said nothing")
            self._said = f"{shown(server)}: {link.said or 'the connection has ended'}"
        finally:
            self._link = None
            self._arrived.clear()
            self._changed()
            self._end(self.unreachable("the connection has ended"))
            await link.close()
        return True

    def _end(self, error: LogUnreachableError | LogClosedError) -> None:
        """Nobody gets an answer any more."""
        for question in list(self._asked.values()):
            resolve(question.done, error)

    def _hear(self, message: Message) -> None:
        question = self._asked.get(message.subject.rpartition(".")[2])
        if question is not None:
            question.hear(message)
