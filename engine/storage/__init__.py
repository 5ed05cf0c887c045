"""The data directory: files that are whole or absent, generations, and what may be trusted after a power loss.

Files, lowest first:

    files.py        files that are whole or absent; locks
    anchors.py      whether a running engine's files are still in their place
    hardstate.py    the term and vote of a node of the log, which outlive every state
    generations.py  the data directory
    matching.py     whether it is what it is opened as
    runmark.py      whether the files may hold more than the disk does; what is durable
    control.py      what an engine shows at this moment, for other processes
    placing.py      whether keys lie where the machine places them
"""
