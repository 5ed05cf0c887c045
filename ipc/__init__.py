"""Bytes between two processes: rings for the bulk, links for the protocol.

A *ring* is a memory-mapped file in two halves, written by one process and read by another. A *link* is a
`SOCK_SEQPACKET` socket pair that carries small messages, in order, both ways. The writer puts bytes into a ring and
then names them (an *extent*) in a message on a link. The system call that carries the message is also the memory
fence, on every CPU: the reader looks only at extents that a message, or a record on disk, has named.

This package knows no shard, key, log or snapshot, and imports nothing of the house.

Files, lowest first:

    errors.py   the base of every error; LinkClosedError, FileRefusedError, RingError
    files.py    what every rank's files have in common: owner, kind, mode, disk, sync
    ring.py     Extent, RingWriter, RingReader
    spin.py     polling for a little while before sleeping
    link.py     Link
"""
