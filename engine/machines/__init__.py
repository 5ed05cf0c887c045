"""Machines to read, to import, and to start from, in files of less than a hundred lines.

They come in by the front door, as a program of yours does. What they have in common:

- `apply` looks at its arguments and at nothing else. Time is the log clock, `context.time_ms`.
- Commands are frozen structs. Their types carry the bounds of every name and number, so that what is beyond them is no
  command: `Engine.check` refuses it before it is proposed, and no key and no number that `apply` makes can overflow.
- Where keys are made of a name, it has at most 200 bytes, and they begin with its length and itself, its *prefix*: no
  two names share a key, and `partition_key` finds the prefix again.
- They count on the limits that a directory has unless told otherwise: keys of 480 bytes, values of some hundred, rings
  of 32 MiB.

Files, lowest first:

    common.py       what they share: commands, names, prefixes, and a scan that goes on
    bank.py         accounts; a transfer is a command over several shards
    leaderboard.py  players by score: scans in order
    backlog.py      what a queue stores
    queue.py        messages that are leased: keys found while a command runs
    limiter.py      token buckets: arithmetic on the log clock
"""
