"""One line that says how far, how fast, how long still."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from shardengine.engine.cli.streams import say

PLAIN_INTERVAL_S = 2.0
"""Where standard error is no terminal, a line is written this often."""


class Progress:
    """Progress of a stream of entries on standard error: a live bar on a terminal, else a line now and then.

    `total` and the positions given to `update` share one measure (bytes of input, or entries); `total` None: unknown.
    """

    def __init__(self, label: str, total: int | None, *, quiet: bool = False) -> None:
        self._label = label
        self._total = total
        self._quiet = quiet
        self._entries = 0
        self._began = self._said = time.monotonic()
        self._base = 0
        self._bar: Bar | None = None
        self._task = TaskID(0)
        if not quiet and sys.stderr.isatty():
            text = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}")
            self._bar = Bar(*text, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(label, total=total, words="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def total(self) -> int | None:
        return self._total

    @total.setter
    def total(self, total: int | None) -> None:
        """The measure of the whole, once it is known."""
        self._total = total
        if self._bar:
            self._bar.update(self._task, total=total)

    def begin(self, position: int) -> None:
        """The position that work starts from: what lies before it says nothing about the time left."""
        self._base = position

    def update(self, entries: int, position: int) -> None:
        """`entries` more are done; the input was read up to `position` for them."""
        self._entries += entries
        if self._bar:
            self._bar.update(self._task, completed=position, words=self._words(position))
        elif not self._quiet and time.monotonic() - self._said >= PLAIN_INTERVAL_S:
            self._said = time.monotonic()
            say(f"{self._label}: {self._words(position)}")

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._began, 1e-9)

    @property
    def entries(self) -> int:
        return self._entries

    @property
    def rate(self) -> float:
        """Entries a second."""
        return self._entries / self.seconds

    def _words(self, position: int) -> str:
        words = f"{self._entries:,} entries, {self.rate:,.0f}/s"
        covered = position - self._base
        if not self._total or covered <= 0:
            return words
        left = max(self._total - position, 0) / covered * self.seconds
        return f"{100 * position / self._total:3.0f} %, {words}, {clock(left)} left"


def clock(seconds: float) -> str:
    """Seconds as `4 s`, `2:05` or `1:00:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
