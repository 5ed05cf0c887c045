"""For tests of what uses, or is, a state machine: `from shardengine.conformance import ...`.

`StateMachineSuite` needs pytest, and is loaded when it is first asked for; the rest does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardengine.engine.conformance.history import History
from shardengine.engine.conformance.operations import Event
from shardengine.engine.conformance.verdict import Finding, Verdict

if TYPE_CHECKING:
    from shardengine.engine.conformance.suite import StateMachineSuite

__all__ = ["Event", "Finding", "History", "StateMachineSuite", "Verdict"]


def __getattr__(name: str) -> Any:
    if name != "StateMachineSuite":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shardengine.engine.conformance.suite import StateMachineSuite

    return StateMachineSuite
