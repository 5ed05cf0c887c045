"""Reads: one read transaction a shard, all at one applied index. In the engine's process, and in others.

Files, lowest first:

    cut.py   reads at one applied index
    view.py  repeatable reads
    follow.py  one generation that the engine of another process publishes
    attach.py  a directory, by whatever generation, as another process reads it
"""
