"""Workers that are forked from a process that has their modules, where an interpreter's start is not what is looked at:
that and its imports cost five times what such a worker lives through.

In a process that has one thread yet, and no engine:

    Nursery.of_its_own().serve_all()

That process must not have run a loop either: what a loop leaves to be done in a forked child is done to descriptors
that are others by then. For engines of the tests' own process there are the fixtures `forked_workers` and `forking`.

Such a worker runs the text that it would be started with, with the same numbers of descriptors, in the environment, the
process group and the limits of who asks, whose child it is: it is orphaned on purpose, and adopted. What it lacks is
the time that a start takes, in which it can be killed as well, and a command line.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

import msgspec

from shardengine.engine.run.processes import Workers
from shardengine.shards.worker import bootstrap
from tests.forking import ROOT

_REQUEST_BYTES = 1 << 18
_BEYOND = 500  # numbers that no descriptor of a worker has
_LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
_PR_SET_CHILD_SUBREAPER = 36


class Request(msgspec.Struct, frozen=True):
    """What a worker is to be: its program, in which the descriptors have these numbers. `module` has its machine."""

    program: str
    module: str
    numbers: list[int]
    environment: dict[str, str]


class Adopted:
    """A child of this process that another one forked. As much of Popen as `Workers` needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            end = os.pidfd_open(self.pid)
            try:
                if not select.select([end], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("a forked worker", timeout)
            finally:
                os.close(end)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class Nursery:
    """The process that forks workers, as seen by the one whose children they are to be. It ends with that."""

    def __init__(self, asks: socket.socket, pid: int) -> None:
        self._asks = asks
        self.pid = pid

    @classmethod
    def of_its_own(cls) -> Nursery:
        """A fork of this process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nothing, number)
            os.closerange(3, theirs.fileno())
            os.closerange(theirs.fileno() + 1, _BEYOND)
            serve(theirs)
        theirs.close()
        return cls(ours, pid)

    @classmethod
    def started(cls, environment: Mapping[str, str]) -> Nursery:
        """A process that knows nothing of this one, in its process group."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery"], stdin=theirs.fileno(), cwd=ROOT, env=environment
            )
        process.returncode = 0  # it is `close` that waits for it
        return cls(ours, process.pid)

    def close(self) -> None:
        self._asks.close()
        os.waitpid(self.pid, 0)

    def serve_all(self) -> None:
        """From now on every engine of this process has its workers from here."""

        def spawn(workers: Workers, shard: int, link: int) -> Adopted:
            return self.spawn(workers, shard, link)

        setattr(Workers, "_spawn", spawn)  # noqa: B010

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The same, for as long as the block lasts."""
        before = Workers._spawn
        self.serve_all()
        try:
            yield
        finally:
            setattr(Workers, "_spawn", before)  # noqa: B010

    def spawn(self, workers: Workers, shard: int, link: int, before: str = "") -> Adopted:
        """In the place of `Workers._spawn`. `before`: what the worker runs first."""
        numbers = [link] if workers._parent < 0 else [link, workers._parent]
        module = workers._specs[shard].machine.partition(":")[0]
        request = Request(before + bootstrap(link, instead=True), module, numbers, dict(os.environ))
        with _adopting():
            socket.send_fds(self._asks, [msgspec.json.encode(request)], [workers._log, *numbers])
            worker = Adopted(int(self._asks.recv(16)))
        for limit in _LIMITS:  # it waits for its first message
            resource.prlimit(worker.pid, limit, resource.getrlimit(limit))
        return worker


@contextmanager
def _adopting() -> Iterator[None]:
    """Meanwhile orphans among the descendants become children of this process."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def serve(asks: socket.socket) -> NoReturn:
    """Fork one worker after another, and end with who asks."""
    while True:
        text, given, _, _ = socket.recv_fds(asks, _REQUEST_BYTES, 3)
        if not text:
            os._exit(0)
        request = msgspec.json.decode(text, type=Request)
        import_module(request.module)
        gc.freeze()  # what was imported is nothing that a worker need look at, or write to
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            worker = os.fork()
            if worker == 0:
                for descriptor in (asks.detach(), reading, writing):
                    os.close(descriptor)
                _be(request, given)
            os.write(writing, b"%d" % worker)
            os._exit(0)
        for descriptor in (*given, writing):
            os.close(descriptor)
        os.waitpid(between, 0)  # now the worker has its parent
        with os.fdopen(reading, "rb") as pipe:
            asks.send(pipe.read())


def _be(request: Request, given: Sequence[int]) -> NoReturn:
    """A worker, with these descriptors: its log, and those that its program names."""
    code = 1
    try:
        aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _BEYOND) for descriptor in given]
        for descriptor in given:
            os.close(descriptor)
        for descriptor, number in zip((*aside, aside[0]), (1, *request.numbers, 2), strict=True):
            os.dup2(descriptor, number)
        os.closerange(_BEYOND, _BEYOND + len(aside))
        os.environ.clear()
        os.environ.update(request.environment)
        exec(request.program, {"__name__": "__main__"})  # noqa: S102  # as with `python -c`
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=0))
