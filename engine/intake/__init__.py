"""What comes in: where the accepted log ends, chunks on their way, and which shard gets which entry. No I/O.

Files, lowest first:

    tail.py    where the accepted log ends; terms
    split.py   from entries to their shards, and how long the parts get
    chunks.py  accepted chunks, whether a re-sent one is the same, and the calls that wait for them
"""
