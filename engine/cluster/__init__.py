"""Several machines on one: servers and nodes as processes, to try out, to test, and to measure what several do.

Files, lowest first:

    servers.py    nats-servers of one cluster, as processes on the loopback interface
    program.py    what a node's process does
    nodes.py      nodes as processes
"""
