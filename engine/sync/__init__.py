"""The engine, and a node, for code that has no event loop: the same methods, blocking, in any thread.

Words, besides those of `engine/__init__`:

    portal       a thread with an event loop, in which the threads of others have things done, and wait for them
    to cross     to have something done there; reads do not cross: each is made in its caller's thread

Files, lowest first:

    portal.py    the thread, and the interpreter's end
    crossing.py  from any thread into the loop of what lives there
    reads.py     reads in any thread
    engine.py    `SyncEngine`
    node.py      `SyncNode`
"""
