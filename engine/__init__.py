"""The coordinator process: chunks in, a two-phase commit over all shards, consistent reads and snapshots out.

A replicated log hands over committed chunks. The *coordinator* (this process) splits each chunk by key hash over
*worker* processes, one a shard; each applies its part to its own LMDB environment. A two-phase commit makes the chunk
atomic over all shards. Reads go straight to the environments, through one read transaction a shard (a *cut*).

Order of life: `Engine(path)`, `start()`, any number of `apply_chunk` and reads, `stop()`, which ends reads too, and
`start()` again; or `async with Engine(path) as db`.

Glossary, for all three ranks. Words of the log:

    entry        one committed log record: index, term, data, time
    command      what an entry's data decodes to; empty data is a *no-op*
    chunk        consecutive entries, applied whole or not at all
    normal form  a chunk's data, and its term runs and clock runs
    run          the first index from which entries have one term, or one clock
    tail         where the accepted log ends; a *mark* is a place in it to go back to
    clock        the running maximum of the entries' times
    position     group, index, term and clock at one place

of the two-phase commit:

    group        queued chunks that go through one commit; a *batch* is one under way, with its answers
    part         what one shard gets of a group; a shard with a part is a *participant*
    solo         a group with one participant, committed by one message, without vote or record
    open, staged the group that is voted on or committed; the one sent behind it
    decided      from the first byte of its *decision record* on a group is committed, whatever dies; to *redo* it is
                 to send its parts again, marked so
    stalled      a shard cannot commit what is decided, for want of disk or map
    killer       a group over which workers of one shard die again and again
    quiet, held  nothing is decided and not published; nothing may be decided
    publish      show a group to readers and give out its results

of rings and processes:

    ring, half   the file by which parts reach a worker; each half belongs to one group
    extent       offset, length and checksum of bytes in a ring
    link         the socket pair that carries the protocol
    hello        a new worker's first word: where its shard stands
    owe          to be expected to answer, within a deadline

of the disk:

    slot         one of 16384 shares of the keys, by hash; also one of the two places of what a file holds once
    generation   one directory with a full set of shards; CURRENT names the live one
    lineage      one log's history: indices of two of them say nothing about each other
    run mark     whether the files may hold more than the disk does: *clean*, or not; a generation is *trusted*, or
                 *set aside*
    hard state   what a node of the log must not forget: its term, and whom it voted for
    anchor       a file that keeps others out, and must stay where it is; a *guard* is one in a shard
    reserve      disk that a shard has ahead of its last page
    seal         rename a finished directory into place
    checked      written with its checksum, of a small file; *summed*, of a value
    discard      remove what was built and is not used

and of reads and snapshots:

    cut          one read transaction a shard, all at one applied index; a *view* holds one
    control page what an engine shows at this moment, for a *reader*, which is another process
    pin          hold a commit for a snapshot, on a worker
    barrier      between two groups, where every shard pins
    label        the entry at which a snapshot is asked for
    manifest     what a snapshot holds, with checksums; without one a directory is none
    piece        a stretch of a snapshot on its way to another host

Files and rooms, lowest first:

    errors.py    every error a user can meet
    config.py    every setting, with its unit and range
    contract.py  the StateMachine protocol and the values it speaks in
    beside.py    the same work on many things, on several threads
    slots.py     two checksummed slots in a file, written in turn
    intake/      what comes in: the accepted tail, chunks, split
    commit/      what is decided: tables, record, coordinator
    storage/     the data directory
    snapshot/    what a snapshot is, and what becomes of it
    read/        reads at one applied index
    run/         one run: processes, directory, loop
    engine.py    the class people use
    verify.py    judge a stopped directory
    adaptors/    the contract in this process, over a dict, a file, SQLite, or RocksDB
    machines/    examples, for people to read, import and start from
    conformance/ what people test with: a suite for their own machine, and a checker of histories
    node/        the engine under a log
    cluster/     servers and nodes as processes of this machine, to try out
    sync/        both for code without a loop, in any thread
    cli/         the command line; needs the extra `cli`
"""
