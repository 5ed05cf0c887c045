"""What people test with that use a state machine, or write one: a suite for a machine of their own, and a checker of
histories.

The suite comes in by the front door, as a program of somebody else does, and knows nothing of how a machine is made:
all that it is told is in the *hooks* of `base.py`. It needs pytest; the checker does not.

Words of histories, besides those of `engine/__init__` and `engine/node/__init__`:

    history      what concurrent callers saw, in its order in time
    operation    one call in it: asked for at one moment, answered at a later one, or never
    session      whose operations never see an older state than one before them saw
    claim        of an entry: which proposal put it into the log

and of the suite:

    check        one test of the suite; what it demands is a sentence, which a failure tells, with the numbers
    group        the checks that need one thing of a machine, which not every machine offers
    hook         a method or attribute of the suite that a user may give another meaning
    log          what is fed, and what the state is to be at each of its entries
    victim       a process that feeds a machine until it is killed

Files, lowest first:

    verdict.py     what a check of a history found
    operations.py  what is recorded
    timeline.py    the log, replayed: who wrote what, and what came of it
    claims.py      whose entry is whose
    reading.py     what a read may have seen
    watching.py    what a watcher must have been told
    checking.py    all rules, over a whole history
    lines.py       a history as lines of JSON
    recorded.py    stand-ins that record
    history.py     the class people use for histories
    log.py         logs, and the state at any place in them
    base.py        the hooks, what a failure says, how a check is run
    lifecycle.py   start, stop, start again
    order.py       which chunks go on with the log, and which were there before
    chunks.py      what a chunk's entries see, what they give, and that it is applied whole or not at all
    reads.py       many keys, ranges, and reads beside a writer
    spanning.py    commands over several keys
    snapshots.py   out, in, and those that are refused
    state.py       reset, hard state, places without entries
    child.py       the victim
    kills.py       SIGKILL at random moments, then a look at what is left
    leftovers.py   descriptors, processes, threads, files
    smoke.py       how fast, roughly
    suite.py       all of it in one class
"""
