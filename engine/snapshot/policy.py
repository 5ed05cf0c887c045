"""When it is time for a snapshot. Pure: what was applied and what time it is are told; nothing is done.

    event            idle                                running
    applied          counts                              counts, towards the next snapshot
    due              any threshold reached, cooled down  False
    begun            running; the counts start anew      a defect
    ended, ok        a defect                            idle; cools down
    ended, not ok    a defect                            idle; cools down; the counts come back

Times are milliseconds of one monotonic clock, the caller's.
"""

from __future__ import annotations

import msgspec

from shardengine.engine.errors import ConfigError


class SnapshotPolicy(msgspec.Struct, frozen=True):
    """A snapshot is due once any of the thresholds is reached; with none set, never.

    entries, bytes: applied since the last snapshot began. interval_ms: since then, if anything was applied at all: the
    same state again would be of no use. cooldown_ms: the least time between the end of one, good or bad, and the next.

    Raises:
        ConfigError: a threshold is below 1, or the cooldown below 0.
    """

    entries: int | None = None
    bytes: int | None = None
    interval_ms: int | None = None
    cooldown_ms: int = 0

    def __post_init__(self) -> None:
        for key, least in (("entries", 1), ("bytes", 1), ("interval_ms", 1), ("cooldown_ms", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(
                    f"{key} = {value} (snapshot policy): expected {least} or more",
                    hint=f"leave {key} out to do without it",
                    key=key,
                    value=value,
                )


class PolicyState:
    """What happened since the last snapshot, held against a policy. `policy` may be replaced at any time.

    Invariant: counts are never negative, and a failed snapshot loses none of them.
    """

    def __init__(self, policy: SnapshotPolicy, now_ms: int) -> None:
        """The first interval begins at `now_ms`. What is applied already but in no snapshot: tell it to `applied`."""
        self.policy = policy
        self.running = False
        self._entries = self._bytes = 0
        self._within = (0, 0, now_ms)  # entries, bytes and start of the interval that a running snapshot ends
        self._since_ms = now_ms
        self._ended_ms: int | None = None

    def applied(self, entries: int, bytes: int) -> None:
        self._entries += entries
        self._bytes += bytes

    def due(self, now_ms: int) -> bool:
        """Whether a snapshot should begin now. A threshold that is just reached counts."""
        return not self.running and self._cooled(now_ms) and self._reached(now_ms)

    def begun(self, now_ms: int) -> None:
        """A snapshot of what was applied so far is on its way, whoever asked for it."""
        assert not self.running
        self.running = True
        self._within = (self._entries, self._bytes, self._since_ms)
        self._entries, self._bytes, self._since_ms = 0, 0, now_ms

    def ended(self, now_ms: int, ok: bool) -> None:
        """It is whole, or was given up: then what it would have held still waits for one."""
        assert self.running
        self.running = False
        self._ended_ms = now_ms
        if not ok:
            entries, size, self._since_ms = self._within
            self.applied(entries, size)

    def _cooled(self, now_ms: int) -> bool:
        return self._ended_ms is None or now_ms - self._ended_ms >= self.policy.cooldown_ms

    def _reached(self, now_ms: int) -> bool:
        elapsed = now_ms - self._since_ms if self._entries else 0
        values = (self._entries, self._bytes, elapsed)
        thresholds = (self.policy.entries, self.policy.bytes, self.policy.interval_ms)
        return any(limit is not None and value >= limit for value, limit in zip(values, thresholds, strict=True))
