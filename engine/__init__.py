"""The coordinator process: chunks in, a two-phase commit over all shards, consistent reads and snapshots out.

A replicated log hands over committed chunks. The *coordinator* (this process) splits each chunk by key hash over
*worker* processes, one a shard; each applies its part to its own LMDB environment. A two-phase commit makes the chunk
atomic over all shards. Reads go straight to the environments, through one read transaction a shard (a *cut*).

Order of life: `Engine(path)`, `start()`, any number of `apply_chunk` and reads, `stop()`, `close_storage()`; or
`async with Engine(path) as db`.

Glossary: *entry*, one committed log record. *Chunk*, consecutive entries, applied whole or not at all. *Group*, queued
chunks that go through one commit. *Part*, what one shard gets of a group; *participant*, a shard that has one. *Solo*,
a group with one participant and no vote. *Decision record*, what makes a group decided. *Generation*, one directory
with a full set of shards. *Run mark*, whether the files may hold more than the disk does.

Files and rooms, lowest first:

    errors.py    every error a user can meet
    config.py    every setting, with its unit and range
    contract.py  the StateMachine protocol and the values it speaks in
    beside.py    the same work on many things, on several threads
    intake/      what comes in: the accepted tail, chunks, split
    commit/      what is decided: tables, record, coordinator
    storage/     the data directory
    snapshot/    what a snapshot is, and what becomes of it
    read/        reads at one applied index
    run/         one run: processes, directory, loop
    engine.py    the class people use
    verify.py    judge a stopped directory
    cli/         the command line; needs the extra `cli`
"""
