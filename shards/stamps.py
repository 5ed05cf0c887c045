"""What a worker says for people: whole lines, each with the time and whose it is, in one write."""

from __future__ import annotations

import io
import os
import time
from contextlib import suppress

_LINE_MAX = 64 << 10  # a longer one is broken


class Stamped(io.TextIOBase):
    """A text stream over a descriptor. A line that has not ended yet is kept until it has, or until `flush`."""

    def __init__(self, descriptor: int, whose: str) -> None:
        self._descriptor = descriptor
        self._whose = whose
        self._begun = ""

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        self._put(lines)
        if len(self._begun) > _LINE_MAX:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self._begun:
            begun, self._begun = self._begun, ""
            self._put([begun])

    def _put(self, lines: list[str]) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        text = "".join([f"{stamp} {self._whose} {line}\n" for line in lines])
        data = text.encode("utf-8", "backslashreplace")
        with suppress(OSError):  # a full disk must not keep a worker from its work
            os.write(self._descriptor, data)
