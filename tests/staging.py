"""Lives of one module, each in a process of its own, in which calls of the system can be made to fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from tests.faults.control import Faults, Rule, Zygote, build
from tests.killing import ROOT, environment

WATCHDOG_S = 40.0
S = TypeVar("S")


class Staged(Generic[S]):
    """`module` is what lives, and says `said` of each of its steps."""

    def __init__(self, directory: Path, module: str, said: type[S]) -> None:
        self.zygote = Zygote(build(directory), module, ROOT, environment())
        self.place = directory / "place"
        self._said = said

    def live(self, orders: Any, rule: Rule | None = None, timeout_s: float = WATCHDOG_S) -> int | None:
        """Returns its exit status; None: it was killed after `timeout_s`."""
        with Faults.create(self.place) as faults:
            if rule is not None:
                faults.arm(rule)
            return self.zygote.run(self.place, msgspec.json.encode(orders).decode(), timeout_s)

    def said(self) -> list[S]:
        lines = (self.place / "said").read_bytes().splitlines()
        return [msgspec.json.decode(line, type=self._said) for line in lines if line.endswith(b"}")]

    def errors(self) -> str:
        return (self.place / "stderr").read_text()[-2000:]
