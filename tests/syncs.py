"""Syncs that are counted and fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest


class Syncs:
    """The system's `fsync` and `fdatasync`: each is noted by name, and the next of those that `fails` picks fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.fails: Callable[[str], bool] = lambda name: False
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._over(getattr(os, name)))

    def _over(self, original: Callable[[int], None]) -> Callable[[int], None]:
        def called(descriptor: int) -> None:
            name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            self.names.append(name)
            if self.fails(name):
                self.fails = lambda name: False
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            original(descriptor)

        return called


def ends_with(end: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(end)
