"""Processes that are forked from one that has imported what they do: a short life consists of its imports otherwise.

In the suite, with the fixture `forks`, which holds the one they come from:

    process = fork("tests.kill_child", [orders], environment(), output, errors)

There `live(orders)` of that module is called, in a session of its own, by an interpreter that ends as a program does.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
ANSWER_S = 60.0
_REQUEST_BYTES = 1 << 18
_running: list[socket.socket] = []


class Request(msgspec.Struct, frozen=True):
    """What a process is to be."""

    module: str
    arguments: list[str]
    environment: dict[str, str]


class Forked:
    """One of them. Its pid is its own until the next one is asked for, or this is closed."""

    def __init__(self, status: int) -> None:
        self._status = os.fdopen(status, "rb", buffering=0)
        self.returncode: int | None = None
        self.pid = self._said(ANSWER_S)

    def poll(self) -> int | None:
        """How it ended, as Popen says it; None: it lives."""
        if self.returncode is None and self._says(0):
            self.returncode = self._said(0)
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        if self.returncode is None:
            self.returncode = self._said(timeout_s)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self._status.close()

    def _says(self, timeout_s: float) -> bool:
        return bool(select.select([self._status], [], [], timeout_s)[0])

    def _said(self, timeout_s: float) -> int:
        """The next number that is said of it."""
        assert self._says(timeout_s), "it does not begin, or does not end"
        return int(self._status.read(8))


def fork(module: str, arguments: Sequence[str], environment: Mapping[str, str], output: int, errors: int) -> Forked:
    """Start one, which writes to these descriptors, and reads nothing. Blocks until it lives."""
    assert _running, "this needs the fixture `forks`"
    reading, writing = os.pipe()
    request = msgspec.json.encode(Request(module, list(arguments), dict(environment)))
    socket.send_fds(_running[-1], [request], [output, errors, writing])
    os.close(writing)
    return Forked(reading)


@contextmanager
def source(environment: Mapping[str, str]) -> Iterator[None]:
    """The process from which they are forked; for as long as the block lasts."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            command = [sys.executable, "-m", "tests.forking"]
            process = subprocess.Popen(
                command, stdin=theirs.fileno(), cwd=ROOT, env=environment, start_new_session=True
            )
        _running.append(ours)
        try:
            yield
        finally:
            _running.remove(ours)
            ours.shutdown(socket.SHUT_RDWR)
            process.wait(ANSWER_S)


def serve() -> Callable[[], None]:
    """Fork one after another. Returns in each of them, what it has to do; ends with who asks."""
    asks = socket.socket(fileno=0)
    while True:
        text, given, _, _ = socket.recv_fds(asks, _REQUEST_BYTES, 3)
        with suppress(ChildProcessError):
            os.wait()
        if not text:
            sys.exit()
        request = msgspec.json.decode(text, type=Request)
        live = import_module(request.module).live
        gc.freeze()  # what was imported is nothing that a child need look at, or write to
        child = os.fork()
        if child == 0:
            asks.detach()
            _begin(request, *given)
            return partial(live, *request.arguments)
        for descriptor in given[:2]:
            os.close(descriptor)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # not reaped: it may yet be sent signals
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with suppress(BrokenPipeError), os.fdopen(given[2], "wb", buffering=0) as told:
            told.write(b"%8d" % code)


def _begin(request: Request, output: int, errors: int, status: int) -> None:
    os.setsid()
    os.write(status, b"%8d" % os.getpid())
    os.close(status)
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), output, errors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request.environment)


if __name__ == "__main__":
    serve()()
