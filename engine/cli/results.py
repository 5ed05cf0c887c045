"""What became of every entry, as lines of JSON, to a file, a pipe or standard output.

One object an entry, in the order of the log: `{"index": 7, "value": ...}`, or `{"index": 7, "rejected": "why"}`. Bytes
in a value are text; where some are not UTF-8 it is `value_hex`, and all text in it is hexadecimal. A map whose keys are
not all text is a list of pairs; what JSON has no form for is text.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import mmap
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from shardengine import ApplyResult
from shardengine.engine.cli.streams import say

_BEGINNING = b'{"index":'
"""Of each line."""


def line_of(result: ApplyResult) -> bytes:
    """A result as a line, its newline included."""
    if not result.succeeded:
        told: dict[str, Any] = {"rejected": result.reason}
    else:
        try:
            told = {"value": _plain(result.value, bytes.decode, str)}
        except UnicodeDecodeError:
            told = {"value_hex": _plain(result.value, bytes.hex, lambda text: text.encode().hex())}
    return msgspec.json.encode({"index": result.index, **told}) + b"\n"


def _plain(value: Any, of_bytes: Callable[[bytes], str], of_text: Callable[[str], str]) -> Any:
    match value:
        case bytes():
            return of_bytes(value)
        case None | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case list() | tuple():
            return [_plain(item, of_bytes, of_text) for item in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _plain(item, of_bytes, of_text) for key, item in value.items()}
        case dict():
            return [_plain(pair, of_bytes, of_text) for pair in value.items()]
    return of_text(str(value))


class Results:
    """Lines behind one another in an open descriptor. The first write that fails is the last, and `error` what it
    failed of."""

    def __init__(self, fd: int, name: str) -> None:
        self.error: OSError | None = None
        self.lost = 0
        """The index of the first result that it kept from being written."""
        self.is_terminal = os.isatty(fd)
        self._fd = fd
        self._name = name
        self._wake_receive, self._wake_send = os.pipe()

    def close(self) -> None:
        os.close(self._wake_receive)
        os.close(self._wake_send)

    def told(self) -> str:
        """Where and why they end."""
        assert self.error is not None
        return f"{self._name}: {self.error.strerror}: the results from entry {self.lost} on are lost"

    async def write(self, results: Sequence[ApplyResult]) -> bool:
        """Whether they were written. Waits for a reader that is slow, without blocking; cancelled, for no one."""
        if self.error is None:
            try:
                await asyncio.to_thread(self._write, results)
            except OSError as error:
                self.error = error
            except asyncio.CancelledError:
                os.write(self._wake_send, b"!")
                raise
        return self.error is None

    def _write(self, results: Sequence[ApplyResult]) -> None:
        lines = b"".join(map(line_of, results))
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.register(self._wake_receive, select.POLLIN)
        left = memoryview(lines)
        try:
            while left:
                if self._wake_receive in dict(poll.poll()):
                    raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                left = left[os.write(self._fd, left[: select.PIPE_BUF]) :]  # so much a ready pipe takes at once
        except OSError:
            self.lost = results[lines[: len(lines) - len(left)].count(b"\n")].index
            raise


@contextmanager
def results_to(file: Path | None, source: os.stat_result) -> Iterator[Results | None]:
    """The results that go to `file`, "-" for standard output; a file that is there is gone on with. None for None.

    Raises UsageError for a file that results must not go to, `source` among them.
    """
    if file is None:
        yield None
        return
    name = "standard output" if str(file) == "-" else str(file)
    fd = _opened(file, name)
    try:
        if stat.S_ISREG(source.st_mode) and os.path.samestat(os.fstat(fd), source):
            raise click.UsageError(f"{name} is what is loaded; send the results elsewhere")
        results = Results(fd, name)
        try:
            yield results
        except BaseException:
            if results.error is not None:  # something else ended the load, and will be told
                say(results.told())
            raise
        finally:
            results.close()
    finally:
        os.close(fd)


def _opened(file: Path, name: str) -> int:
    if str(file) == "-":
        fd = os.dup(sys.stdout.fileno())
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:  # it was closed
            os.close(fd)
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), name)
        return fd
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_size:
            _cut_half_a_line(file)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _cut_half_a_line(file: Path) -> None:
    """What a kill or a full disk left of a last line goes, so that the next one begins at its beginning."""
    with file.open("r+b") as whole, mmap.mmap(whole.fileno(), 0, prot=mmap.PROT_READ) as content:
        end = content.rfind(b"\n") + 1
        half = content[end : end + len(_BEGINNING)]
        if not _BEGINNING.startswith(half):
            raise click.UsageError(f"{file} holds something else than results; name another file")
    if half:
        os.truncate(file, end)
