"""The base of every error, and what can go wrong between two processes.

`EngineError` lives here because every rank raises errors that a user can meet, and they all share one base.
"""

from __future__ import annotations

from typing import Any


class EngineError(Exception):
    """Base of every error a user of the engine can meet.

    Carries the numbers it speaks of as attributes (`error.facts`), and a `hint` that says what to do.
    """

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        self.message = message
        self.hint = hint
        self.facts = facts
        super().__init__(message)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}") from None

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.facts))


def _rebuild(kind: type[EngineError], message: str, hint: str, facts: dict[str, Any]) -> EngineError:
    return kind(message, hint=hint, **facts)


class LinkClosedError(EngineError):
    """The peer of a link is gone: its process ended, or it closed its end."""


class RingError(EngineError):
    """An extent does not lie inside its ring: a message or a record is damaged."""
