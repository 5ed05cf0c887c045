"""Nodes as processes: started, asked, killed, and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from shardengine import ClusterError
from shardengine.engine.cluster.program import READY, Options, Reply, Request, message, next_message

_PROGRAM = "shardengine.engine.cluster.program"
_TAIL_BYTES = 2000


class NodeProcess:
    """One node, its directory, and while it runs a process. It belongs to one event loop.

    What it says on standard error goes to `errors`, a file, at whose end it is looked for when the node ends.
    """

    def __init__(self, name: str, options: Options, errors: Path) -> None:
        self.name = name
        self.options = options
        self._errors = errors
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count(READY + 1)

    @property
    def pid(self) -> int | None:
        """None: it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> dict[str, Any]:
        """Start it and wait until it has applied what its log holds; returns its status. Raises ClusterError when it
        ends before."""
        with self._errors.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", _PROGRAM, msgspec.json.encode(self.options).decode()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )
        ready = self._waiting[READY] = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen(self._process))
        found: dict[str, Any] = await ready
        return found

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Give the answers to who waits for them, until there are no more."""
        assert process.stdout is not None
        decode = msgspec.msgpack.Decoder(Reply).decode
        with suppress(asyncio.IncompleteReadError):
            while True:
                reply = decode(await next_message(process.stdout))
                future = self._waiting.pop(reply.number, None)
                if future is not None and not future.done():
                    if reply.error is None:
                        future.set_result(reply.value)
                    else:
                        future.set_exception(ClusterError(f"node {self.name}: {reply.error}"))
        await process.wait()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(self._ended())

    def _ended(self) -> ClusterError:
        said = self._errors.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
        return ClusterError(
            f"node {self.name} has ended" + (f": {said}" if said else ""),
            hint=f"see {self._errors}, or start() it again",
        )

    async def ask(self, verb: str, datas: Sequence[bytes] = ()) -> Any:
        """What the node answers; `Asked` says what can be asked for. Raises ClusterError when the node refuses, has
        ended, or ends meanwhile: what became of a proposal is not known then."""
        process = self._process
        if process is None or process.stdin is None or self._listening is None or self._listening.done():
            raise self._ended()
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            process.stdin.write(message(Request(number, verb, list(datas))))
        except RuntimeError as error:  # uvloop's word for a pipe that is closed
            self._waiting.pop(number, None)
            raise self._ended() from error
        return await future

    async def kill(self) -> None:
        """SIGKILL the node and its workers, and wait for its end. Does nothing when it does not run."""
        if (pid := self.pid) is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        await self._end()

    async def close(self) -> None:
        """Let it stop in good order. Does nothing when it does not run."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        await self._end()

    async def _end(self) -> None:
        if self._listening is not None:
            await self._listening
        self._process = None
