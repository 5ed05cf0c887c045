"""Reads: one read transaction a shard, all at one applied index.

Files, lowest first:

    cut.py   reads at one applied index
    view.py  repeatable reads, in one thread or in any
"""
