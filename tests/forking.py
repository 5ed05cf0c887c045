"""Processes that are forked from one that has imported what they do: a short life consists of its imports otherwise.

In the suite, whose fixture `forks` holds the one they come from, once one is asked for:

    process = fork("tests.kill_child", [orders], environment(), output, errors)
    done = forked("tests.command_child", ["get", "key"], environment())

There `live(orders)` of that module is called, in a session of its own, by an interpreter that ends as a program does.
One lives at a time.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import msgspec

ROOT = Path(__file__).resolve().parent.parent
ANSWER_S = 60.0
WATCHDOG_S = 120.0
_REQUEST_BYTES = 1 << 18
STANDING: set[int] = set()
"""The processes that tests share, which no single one has to end."""
_sources: list[Source] = []


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


class Source:
    """The process from which they are forked, started when the first is asked for."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def ask(self, request: Request, descriptors: Sequence[int]) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forking"],
                stdin=self._theirs.fileno(),
                cwd=ROOT,
                env=self._environment,
                start_new_session=True,
            )
            STANDING.add(self._process.pid)
        socket.send_fds(self._ours, [msgspec.json.encode(request)], descriptors)

    def close(self) -> None:
        self._ours.shutdown(socket.SHUT_RDWR)
        self._ours.close()
        self._theirs.close()
        if self._process is not None:
            self._process.wait(ANSWER_S)


def fork(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: int,
    errors: int,
    given: int | None = None,
) -> Forked:
    """Start one, which writes to these descriptors, and reads what is `given`, or nothing. Blocks until it lives."""
    reading, writing = os.pipe()
    with open(os.devnull, "rb") as nothing:
        streams = nothing.fileno() if given is None else given, output, errors
        _sources[-1].ask(Request(module, list(arguments), dict(environment)), [*streams, writing])
    os.close(writing)
    return Forked(reading)


class Done(NamedTuple):
    """How one ended, and what it wrote."""

    code: int
    out: bytes
    errors: bytes


def forked(module: str, arguments: Sequence[str], environment: Mapping[str, str], given: bytes = b"") -> Done:
    """One that lives to its end, with a watchdog; it finds what is `given` in a pipe."""
    with ExitStack() as stack:
        output, errors = (stack.enter_context(os.fdopen(os.memfd_create(name), "rb")) for name in ("out", "errors"))
        reading, writing = os.pipe()
        try:
            process = fork(module, arguments, environment, output.fileno(), errors.fileno(), reading)
        finally:
            os.close(reading)
        stack.callback(process.close)
        feeding = threading.Thread(target=_feed, args=(writing, given))
        feeding.start()
        try:
            code = process.wait(WATCHDOG_S)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            feeding.join()
        for file in (output, errors):
            file.seek(0)
        return Done(code, output.read(), errors.read())


def _feed(pipe: int, data: bytes) -> None:
    with suppress(BrokenPipeError), os.fdopen(pipe, "wb") as file:
        file.write(data)


@contextmanager
def source(environment: Mapping[str, str]) -> Iterator[None]:
    """What they are forked from for as long as the block lasts."""
    opened = Source(environment)
    _sources.append(opened)
    try:
        yield
    finally:
        _sources.remove(opened)
        opened.close()


def serve() -> Callable[[], None]:
    """Fork one after another. Returns in each of them, what it has to do; ends with who asks."""
    asks = socket.socket(fileno=0)
    while True:
        text, given, _, _ = socket.recv_fds(asks, _REQUEST_BYTES, 4)
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
        for descriptor in given[:3]:
            os.close(descriptor)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # not reaped: it may yet be sent signals
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with suppress(BrokenPipeError), os.fdopen(given[3], "wb", buffering=0) as told:
            told.write(b"%8d" % code)


def _begin(request: Request, given: int, output: int, errors: int, status: int) -> None:
    os.setsid()
    os.write(status, b"%8d" % os.getpid())
    os.close(status)
    for number, descriptor in enumerate((given, output, errors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request.environment)


if __name__ == "__main__":
    serve()()
