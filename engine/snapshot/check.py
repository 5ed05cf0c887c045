"""Whether an environment's file at rest is what somebody says of it: a shard's own, or a snapshot's part.

In this order, each relying on the one before: its pages, by a reader in Python that no page can harm; what it says of
itself; every record, against the limits and the place that the machine gives its key.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import msgspec

from shardengine.engine.errors import StoreError
from shardengine.engine.snapshot.manifest import Manifest
from shardengine.engine.storage.placing import misplaced, owner_of
from shardengine.ipc.errors import LACKING
from shardengine.shards.machine import Machine
from shardengine.shards.placement import SLOTS
from shardengine.shards.store import Identity, ReadStore, ReadTx, damage_in
from shardengine.shards.types import Limits, Position, Standing


class Claim(msgspec.Struct, frozen=True):
    """What is said of one shard's `file`, a name in some folder. `identity` without a generation: that of a part,
    whosever it was. `entries` and `up_to` (the place in the log that it must not be beyond) are None where nobody said
    so."""

    file: str
    identity: Identity
    limits: Limits
    entries: int | None = None
    up_to: Position | None = None

    @property
    def is_part(self) -> bool:
        return not self.identity.generation


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong, and where the shard stands if that could be read."""

    problems: list[str]
    standing: Standing | None = None


def claims_of(manifest: Manifest) -> list[Claim]:
    """What a manifest says of its parts."""
    last, machine = manifest.last_included, manifest.machine
    up_to = Position(0, last.index, last.term, manifest.clock)
    return [
        Claim(part.file, Identity("", shard, manifest.shards, SLOTS, machine), manifest.limits, part.entries, up_to)
        for shard, part in enumerate(manifest.parts)
    ]


def judge(claim: Claim, folder: Path, machine: Machine | None, *, records: bool = True) -> Verdict:
    """Look at a file in `folder` that nobody writes. Blocks for as long as it takes to read it twice; any thread.

    Raises StoreError, OSError when this process lacks what it takes to look.

    Without `machine`, whose place each key has is not judged; without `records`, neither pages nor records are: a page
    that is wrong ends this process then.
    """
    file = folder / claim.file
    if records and (problems := damage_in(file)):
        return Verdict(problems)
    try:
        with ExitStack() as stack:
            store = _opened(claim, file)
            stack.callback(store.close)
            transaction = store.begin()
            stack.callback(transaction.close)
            standing = transaction.standing()
            fault = _fault_of(claim, transaction, standing.position)
            if not fault and records:
                fault = fault_of_records(claim, transaction, machine)
    except (StoreError, OSError, msgspec.MsgspecError) as error:
        if getattr(error, "errno", 0) in LACKING:
            raise
        return Verdict([str(error)])
    return Verdict([fault] if fault else [], standing)


def _opened(claim: Claim, file: Path) -> ReadStore:
    if claim.is_part:
        return ReadStore.of_part(file, claim.identity)
    size = (file / "data.mdb").stat().st_size
    return ReadStore(file, claim.identity, map_bytes=max(size, 1 << 20), readers_max=4)


def _fault_of(claim: Claim, transaction: ReadTx, position: Position) -> str:
    entries, limit = transaction.count(), claim.up_to
    if claim.entries is not None and entries != claim.entries:
        return f"it holds {entries} entries, not {claim.entries}"
    if limit is not None and (
        position.index > limit.index or position.term > limit.term or position.clock > limit.clock
    ):
        return f"it stands at {position}, beyond {limit}"
    return ""


def fault_of_records(claim: Claim, transaction: ReadTx, machine: Machine | None) -> str:
    """What is wrong with the records that `transaction` sees, or "". `machine` as in `judge`."""
    limits, shard = claim.limits, claim.identity.shard
    owner = None if machine is None else owner_of(machine, claim.identity.shards)
    counted = 0
    for key, value in transaction.scan(b"", None, reverse=False):
        counted += 1
        if len(key) > limits.key_bytes_max or len(value) > limits.value_bytes_max:
            return f"the key {key!r}, of {len(key)} bytes with a value of {len(value)}, is over {limits}"
        if owner is not None and (fault := misplaced(key, shard, owner)):
            return f"{fault}, not {shard}: the part is another shard's, or the machine's partition_key has changed"
    said = transaction.count()
    return "" if counted == said else f"it holds {counted} records, and says {said}"
