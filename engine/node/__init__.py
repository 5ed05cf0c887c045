"""A node: the engine under a log. It feeds the log into an engine, answers who proposes, takes snapshots, and cuts the
log behind them. Several nodes may share a log: each applies all of it, and the log is cut behind what all of them hold.

Words, besides those of `engine/__init__`:

    frame        entries that were appended together: one record of the log, applied as one chunk
    position     of a frame: its number in the log; it rises, and may leave holes. The term of the frame's entries
    append       add frames at the end; they are durable when it returns
    propose      have a command put into the log and applied
    barrier      wait until all that was acknowledged before is applied here; who waits at the same time shares one
    segment      one file of a local log; a *spare* one has no records yet, and no name
    synced       of a record: the position up to which all was on the disk before it was written
    torn         of the end of a log: in the making when everything died
    member       one of several nodes on a shared log, as it said last where it stands
    giver        a member that gives its newest snapshot to another one, piece by piece
    shelf        a directory where members lay their snapshots for each other
    bootstrap    go on from a giver's snapshot, where the log does not hold what is needed next

Files and rooms, lowest first:

    log.py        what a log is
    shared.py     what a log of several nodes is
    frames.py     entries to a frame and back
    entries.py    a whole log as entries
    refusals.py   what every log of ours refuses
    arrivals.py   who waits for the next frame
    memory.py     a log in this process
    sharing.py    the same for several nodes
    local/        a log in local files
    jetstream/    a log on servers that replicate it, for several nodes
    policy.py     what a node decides by itself
    proposals.py  what is proposed, from the call to its outcome
    place.py      where in its log a node stands
    trimming.py   the log, cut behind the snapshots
    comparing.py  whether all nodes hold the same
    shelf.py      snapshots in a directory that nodes share
    giving.py     a snapshot to other nodes
    members.py    who else is there
    fetching.py   a snapshot from another node
    bootstrap.py  a snapshot in the place of what the log lost
    peers.py      the other nodes, all of that
    placing.py    the place that a node starts from
    feeding.py    the log into the engine
    appending.py  what is proposed into the log
    barriers.py   when all is applied that was acknowledged
    run.py        one run: tasks, and how they end
    status.py     what a node says of itself
    node.py       the class people use
"""
