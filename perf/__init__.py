"""How fast the engine is, beside what it stands on. Run with `python -m perf`; nothing here is installed.

    python -m perf apply       this engine, single-process py-lmdb, and the limit, in turn; then single-entry latency
    python -m perf memory      the coordinator's anonymous memory while a long stream goes through

Every side gets the same records, made before any clock starts. No number is printed before the answers are checked:
the engine's digest against the one computed from a dict, the others' record counts. A figure is a median over rounds,
in which the sides take turns; compare the ratios, not the absolutes.

What the sides are given:

    engine     `Entry` objects with encoded commands: it decodes, splits, sorts and commits them on all shards at once
    py-lmdb    one process, (key, value) pairs that need no decoding; it sorts each chunk and commits it, one
               transaction a chunk, with the flags of `peers.FLAGS`
    limit      as many such processes as shards, each with the pairs of its shard, split and sorted beforehand; they
               agree on nothing, start together, and the time ends with the last

Files, lowest first:

    facts.py     the machine; CPU time and memory of processes
    load.py      records, entries and the digest they must lead to
    peers.py     py-lmdb alone, and the limit
    sides.py     the engine's side of a round
    latency.py   one entry at a time, beside a pipe
    apply.py     `python -m perf apply`
    memory.py    `python -m perf memory`
"""
