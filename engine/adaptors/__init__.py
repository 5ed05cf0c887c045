"""The contract without worker processes: state machines that live in this one, each over a store.

Files, lowest first:

    store.py      what keeps the state: records, where the log stands, and what is fixed
    views.py      what a view is
    records.py    records in a dict, with their keys in order
    state.py      the records and the end of the log, which move together
    snapshots.py  records to a snapshot as the engine's are, and back
    commands.py   runs the commands of a chunk over records
    applying.py   a state machine over a store: its life, chunks, and reads
    base.py       the whole contract over a store
    memory.py     over a dict
    home.py       the directory of one state machine
    durable.py    the whole contract over a store in a directory
    journal.py    a file of a state, and of every chunk since
    file.py       over a dict, with such a file beside it
    sqlite.py     over SQLite
    rocksdb.py    over RocksDB; needs the extra `rocksdb`
    tracing.py    one run of a log: what each command did, in whatever order
    clocks.py     another time, in a process of its own
    elsewhere.py  a run in another process
    rehearsal.py  all runs of a log, compared
"""
