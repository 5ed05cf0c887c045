"""The suite that people run on a state machine of their own, to see whether it keeps the contract.

It comes in by the front door, as a program of somebody else does, and knows nothing of how a machine is made: all that
it is told is in the *hooks* of `base.py`. It needs pytest.

Words:

    check        one test of the suite; what it demands is a sentence, which a failure tells, with the numbers
    group        the checks that need one thing of a machine, which not every machine offers
    hook         a method or attribute of the suite that a user may give another meaning
    log          what is fed, and what the state is to be at each of its entries
    victim       a process that feeds a machine until it is killed

Files, lowest first:

    log.py        logs, and the state at any place in them
    base.py       the hooks, what a failure says, how a check is run
    lifecycle.py  start, stop, start again
    order.py      which chunks go on with the log, and which were there before
    chunks.py     what a chunk's entries see, what they give, and that it is applied whole or not at all
    reads.py      many keys, ranges, and reads beside a writer
    spanning.py   commands over several keys
    snapshots.py  out, in, and those that are refused
    state.py      reset, hard state, places without entries
    child.py      the victim
    kills.py      SIGKILL at random moments, then a look at what is left
    leftovers.py  descriptors, processes, threads, files
    smoke.py      how fast, roughly
    suite.py      all of it in one class
"""
