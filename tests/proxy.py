"""A proxy between a client and a server, that holds back, loses, or cuts off what they say: over the connections that
there are, not over those that are made later, unless it is `shut`."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType

_BYTES = 64 << 10


class _Way:
    """One direction of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.lost = False
        self.left: int | None = None
        """So many bytes still pass; None: all."""
        self.passed = self.held = 0
        self.done: asyncio.Future[None] | None = None
        self._reader = reader
        self._writer = writer
        self._read: asyncio.Queue[bytes] = asyncio.Queue()

    async def run(self) -> None:
        """Until the end of what comes, or of what may pass."""
        reading = asyncio.ensure_future(self._take())
        try:
            while data := await self._read.get():
                await self.open.wait()
                self._pass(data)
                if self.left == 0:
                    return
            await self.open.wait()
        finally:
            reading.cancel()
            await asyncio.wait([reading])

    async def _take(self) -> None:
        """What was said is kept, whatever becomes of who said it."""
        with suppress(OSError):
            while data := await self._reader.read(_BYTES):
                self.held += len(data)
                self._read.put_nowait(data)
        self._read.put_nowait(b"")

    def _pass(self, data: bytes) -> None:
        self.held -= len(data)
        if self.left is not None:
            data = data[: self.left]
            self.left -= len(data)
        if not self.lost:
            self._writer.write(data)
            self.passed += len(data)


class Proxy:
    """`async with Proxy(port) as proxy`: what connects to `proxy.url` is connected to that port of this machine."""

    def __init__(self, port: int) -> None:
        self.shut = False
        """Whether nobody gets a connection."""
        self.back_bytes_max: int | None = None
        """A connection that is made from now on is cut when the server has said so much."""
        self.connections = 0
        """How many there were so far."""
        self._freed: set[asyncio.Future[None]] = set()
        self._port = port
        self._ways: list[tuple[_Way, _Way]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def passed(self) -> int:
        """How many bytes of clients have reached the server, over the connections that there are."""
        return sum(there.passed for there, _ in self._ways)

    @property
    def held(self) -> int:
        """How many bytes of clients are held back."""
        return sum(there.held for there, _ in self._ways)

    async def arrived(self) -> None:
        """Wait until the server has all that was held back, of clients that had gone by then."""
        while self._freed:
            await asyncio.wait(self._freed)

    def hold(self) -> None:
        """What clients say from now on gets stuck."""
        for there, _ in self._ways:
            there.open.clear()

    def release(self) -> None:
        """What got stuck arrives, whoever sent it being there or not."""
        for there, _ in self._ways:
            if not there.open.is_set() and there.done is not None:
                self._freed.add(there.done)
                there.done.add_done_callback(self._freed.discard)
            there.open.set()

    def mute(self) -> None:
        """What the server says from now on is lost."""
        for _, back in self._ways:
            back.lost = True

    def cut_after(self, count: int) -> None:
        """After so many more bytes of a client its connection is cut, within a message or not."""
        for there, _ in self._ways:
            there.left = count

    def cut(self) -> None:
        """Cut all connections."""
        for task in list(self._tasks):
            task.cancel()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            if not self.shut:
                await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection. Its client may go while what it said is still held back."""
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        ways = _Way(reader, to_server), _Way(from_server, writer)
        self._ways.append(ways)
        self.connections += 1
        ways[1].left = self.back_bytes_max
        there, back = tasks = [asyncio.ensure_future(way.run()) for way in ways]
        ways[0].done = asyncio.current_task()
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not ways[0].open.is_set():
                await asyncio.wait([there])
                to_server.write_eof()
                await asyncio.wait([back])  # until the server has read it all
        finally:
            self._ways.remove(ways)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            to_server.close()
