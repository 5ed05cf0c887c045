"""Snapshots: what one contains, how it is checked, kept, sent elsewhere, and made a generation again.

Files, lowest first:

    policy.py    when it is time for a snapshot; no I/O, no clock
    manifest.py  what a snapshot contains
    parts.py     the parts of a snapshot, each read once and judged
    check.py     whether a shard's file at rest is what is said of it
    build.py     from a snapshot or a generation to a new generation
    folder.py    a directory of snapshots: which are valid, which stay, where one grows
    keeper.py    writing snapshots into place, checking and keeping them
    transfer.py  a snapshot in numbered pieces, and whole again
    archive.py   a snapshot as one file
"""
