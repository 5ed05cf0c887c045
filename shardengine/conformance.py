"""For tests of what uses, or is, a state machine: `from shardengine.conformance import ...`."""

from __future__ import annotations

from shardengine.engine.conformance.history import History
from shardengine.engine.conformance.operations import Event
from shardengine.engine.conformance.verdict import Finding, Verdict

__all__ = ["Event", "Finding", "History", "Verdict"]
