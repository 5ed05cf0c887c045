"""The contract without worker processes: state machines that live in this one.

Files, lowest first:

    records.py    records in a dict, with their keys in order, and views of them
    state.py      the records and the end of the log, which move together
    snapshots.py  records to a snapshot as the engine's are, and back
    commands.py   runs the commands of a chunk over records
    memory.py     the whole contract over a dict
    tracing.py    one run of a log: what each command did, in whatever order
    clocks.py     another time, in a process of its own
    elsewhere.py  a run in another process
    rehearsal.py  all runs of a log, compared
"""
