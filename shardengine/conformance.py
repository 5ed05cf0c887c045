"""What people run on a state machine of their own, with pytest: `from shardengine.conformance import ...`."""

from __future__ import annotations

from shardengine.engine.conformance.suite import StateMachineSuite

__all__ = ["StateMachineSuite"]
