"""What a check found, for people to read."""

from __future__ import annotations

import reprlib
from typing import NoReturn

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One breach of one rule (see `checking.py`). operations: the numbers of those that show it."""

    rule: str
    operations: list[int]
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


class Verdict(msgspec.Struct, frozen=True):
    """What became of a check. findings: the first ones; found: how many there are. operations, events: so many were
    judged; entries: of the log."""

    findings: list[Finding]
    found: int
    operations: int
    events: int
    entries: int

    @property
    def valid(self) -> bool:
        """Nothing was found."""
        return not self.found

    def __bool__(self) -> NoReturn:
        raise TypeError("ask a verdict for `valid`")

    def __str__(self) -> str:
        judged = f"{self.operations} operations, {self.events} events and {self.entries} entries"
        if self.valid:
            return f"valid: {judged}"
        more = [f"and {self.found - len(self.findings)} more"] if self.found > len(self.findings) else []
        return "\n".join([f"not valid: {self.found} findings in {judged}", *map(str, self.findings), *more])


class Findings:
    """Those of one check, the first `most` of them in words."""

    def __init__(self, most: int) -> None:
        self.kept: list[Finding] = []
        self.count = 0
        self._most = most

    @property
    def full(self) -> bool:
        """The next one is counted, and not kept."""
        return len(self.kept) >= self._most

    def add(self, rule: str, message: str, *operations: int) -> None:
        self.count += 1
        if not self.full:
            self.kept.append(Finding(rule, list(operations), message))


def shown(value: bytes | None) -> str:
    """A key or a value, shortened."""
    return reprlib.repr(value)
