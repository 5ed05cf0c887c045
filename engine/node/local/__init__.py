"""A log in local files: segments, one thread that writes, and what may be believed of them after a crash.

Order of life: `LocalLog(directory)`, `open()`, any number of `append` and `read`, `aclose()`. What is appended goes to
the thread, and with all else that waits there into the newest *segment*, by one write and one sync; then the loop is
told. A segment that is full is followed by a *spare*, for which there is disk already. A segment's record says which
position was known durable when it was written: so a torn end, which is cut, is told from damage, which is refused.

Files, lowest first:

    layout.py    the bytes of a segment
    segments.py  the files of a directory
    tail.py      the newest frames, in memory
    opening.py   what is there when it is opened, and what of it may be believed
    looking.py   the files, read beside whoever writes them
    writing.py   the thread that writes
    log.py       the class people use
"""
