"""One shard's LMDB environment: the writer's side (`Store`) and the readers' (`ReadStore`). The owner of `lmdb`.

Databases: `data` (key -> value), `expiry` (key -> deadline and its inverse; nothing writes it yet), `meta`:

    identity   whose files these are: format, generation, shard, shards, slots, machine
    position   group, index, term, clock: committed in the same transaction as the data they describe
    solo       group and results of the last Solo, so that an answer lost with its worker can be given again; and the
               term runs since the decision record, which it leaves nowhere else

Every commit is page-level copy on write, so the death of a process leaves the last commit. `sync=False` (mode
"process") leaves it to the kernel when pages reach the disk: that survives every process, not the machine.

Files, lowest first:

    env.py      opening an environment: flags, descriptors, identity, damage
    reader.py   read transactions, and the slots that keep their pages
    reserve.py  map and disk ahead of the last page
    writer.py   one write transaction at a time, and the pages it may take at worst
    loader.py   a new environment out of records in key order
"""

from shardengine.shards.store.env import (
    FORMAT,
    PAGE_BYTES,
    BadKey,
    Identity,
    check_library,
    damage_in,
)
from shardengine.shards.store.loader import Loader
from shardengine.shards.store.reader import ReadStore, ReadTx
from shardengine.shards.store.writer import Store

__all__ = [
    "FORMAT",
    "PAGE_BYTES",
    "BadKey",
    "Identity",
    "Loader",
    "ReadStore",
    "ReadTx",
    "Store",
    "check_library",
    "damage_in",
]
