"""One run of an engine: processes, what is opened, who waits; and moving over to another generation.

Files, lowest first:

    launch.py      by which interpreter, with which options, workers are started
    processes.py   worker processes: start, kill, reap
    resources.py   what the host allows: cores, limits
    opening.py     from a path to a locked, trusted directory
    compacting.py  the same state in a new generation, without gaps
    runtime.py     one run: everything between start and stop
    reshard.py     convert a stopped directory to another shard count
    shell.py       thread, loop, and who waits; asyncio
"""
