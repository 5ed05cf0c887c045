"""Reads: one read transaction a shard, all at one applied index. In the engine's process, and in others.

Files, lowest first:

    cut.py         reads at one applied index
    view.py        repeatable reads, in one thread or in any
    readerview.py  repeatable reads in another process
    follow.py      one generation, as the engine of another process publishes it
    attach.py      a directory, whatever its generation, as another process reads it
"""
