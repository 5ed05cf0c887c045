"""One shard: which keys it owns, how it applies its part of a group, and where it keeps them.

A *slot* is one of 16,384 classes of keys; a shard owns a contiguous range of slots. A *group* is what goes through
one two-phase commit: the entries of one or more chunks. The *part* is what one shard gets of it. A *worker* is the
process that owns a shard's LMDB environment for writing: it applies each part inside one write transaction, votes,
and commits or aborts as it is told. Anybody may open the environment for reading, and sees the last commit.

An application brings a `Machine`: its commands, the keys each of them touches, and `apply`. `KeyValue` is built in.

Glossary: *meta*, the shard's own record of where in the log it stands, written in the transaction that moves it
there. *Solo*, a group that touches one shard only and needs no vote. *Overlay*, writes not yet in the store.

Files, lowest first:

    errors.py     what can go wrong inside one shard
    types.py      Entry, LogId, ApplyResult, Limits: frozen values
    digest.py     hashes: slot, checksum, the digest of the live records
    placement.py  key -> slot -> shard
    transaction.py  what commands run in: an overlay, and what they may touch
    machine.py    the contract an application implements
    wire.py       the closed set of messages between coordinator and worker
    part.py       the byte layout of a part in a ring
    fast/         what is done to every entry: in Python, and its compiled twin
    kv.py         the built-in machine
    running.py    one command after the other, and what comes of it
    store/        one LMDB environment: the writer's side and the readers'
    shard.py      the worker's duties, without a process: messages in, answers out
    stamps.py     what a worker says for people, with the time
    snapshot.py   one shard's part of a snapshot: pin, copy, let go
    worker.py     the process around it
"""
