"""One run of an engine: processes, what is opened, who waits; and moving over to another generation.

Files, lowest first:

    launch.py      by which interpreter, with which options, workers are started
    processes.py   worker processes: start, kill, reap
    resources.py   what the host allows: cores, limits
    opening.py     from a path to a locked, trusted directory
    compacting.py  the same state in a new generation, without gaps
    recovering.py  decision file, rings and positions, judged
    durability.py  the run's mark, anchors and flushes; what is durable is the mark's to say, in storage/
    crew.py        workers as they come and go under a coordinator
    overtime.py    commands that run in this process end in time
    runtime.py     one run: everything between start and stop
    facts.py       what `stats` says
    reshard.py     convert a stopped directory to another shard count
    starting.py    from a directory, and what is asked of it, to a run
    busy.py        one snapshot or replacement at a time
    owner.py       the thread and process an engine belongs to
    readside.py    what is read while the storage is open, and the views
    waiting.py     who waits for the coordinator; asyncio
    tasks.py       threads and tasks beside the loop; asyncio
    shell.py       one thread, one loop, one run at a time; asyncio
    standing.py    the log ends at a later entry, though no chunk says so
    taking.py      snapshots: when asked for, and when the policy says so
    replacing.py   install, reset, compact: verify to retire
"""
