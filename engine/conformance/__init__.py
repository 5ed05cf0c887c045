"""What people test with that use a state machine, or write one of their own.

Words, besides those of `engine/__init__` and `engine/node/__init__`:

    history      what concurrent callers saw, in its order in time
    operation    one call in it: asked for at one moment, answered at a later one, or never
    session      whose operations never see an older state than one before them saw
    claim        of an entry: which proposal put it into the log

Files, lowest first:

    verdict.py     what a check found
    operations.py  what is recorded
    timeline.py    the log, replayed: who wrote what, and what came of it
    claims.py      whose entry is whose
    reading.py     what a read may have seen
    watching.py    what a watcher must have been told
    checking.py    all rules, over a whole history
    lines.py       a history as lines of JSON
    recorded.py    stand-ins that record
    history.py     the class people use
"""
