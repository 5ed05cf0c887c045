"""What is decided: groups, their two-phase commit, the snapshot barrier, and the coordinator that carries out
what the tables say.

Files, lowest first:

    actions.py      groups, and what the tables ask to be done
    exchange.py     what commands over several shards add to it; a table, no I/O
    state.py        what the commit table knows
    table.py        two-phase group commit as a table; no I/O
    barrier.py      the snapshot barrier as a table; no I/O
    decision.py     the decision record, and what a start makes of it
    takeover.py     the coordinator's own commands of a group
    packing.py      what belongs into a group, and where it lies in the rings
    inflight.py     chunks from their acceptance to their end; what a re-sent one gets
    host.py         what the coordinator needs of the outside
    lives.py        workers' lives as the coordinator sees them; no I/O, no clock
    exchanging.py   what the table asks for the coordinator's own commands, done
    pinning.py      where in the log a snapshot's barrier goes
    flushing.py     making all that is published durable
    coordinator.py  chunks in, actions carried out, results out
"""
