"""A log on a stream of NATS JetStream: replicated, shared by any number of nodes, with no consensus of our own.

Order of life: `JetStreamLog(servers, stream)`, `open()`, any number of `append` and `read`, `aclose()`. A frame is a
message of the stream, its position the message's sequence number, its time the stamp of the leader that took it, which
falls where another server with an earlier clock becomes leader.

Why nothing is lost, and nothing comes out of order:

- The servers acknowledge a message when most of them have it. Nothing but an acknowledgement counts, or what comes to
  the same: being told that our subject ends where only what we sent can be.
- Each opening appends to a *subject* of its own, and names with each batch the position of its last message there. So
  a batch has one place where it fits: sent twice it is added once, and a batch that was stuck in a server, or on its
  way, and comes when a later one was added, is refused. What is not answered is therefore sent again, for ever; only
  where the log was cut meanwhile beyond all that was seen of it is it not known what was there.
- Frames that are appended together are an *atomic batch* of the servers: all or none, next to each other.
- Where the log ends is never asked for, since a server that was cut off answers what was true before: a frame is
  appended, which such a server cannot acknowledge. So it is at `open`, where it proves that most servers take frames,
  and in `last`.
- What is read may come from a server that lags: its end is not the log's, and what it lacks is asked for again. A hole
  is asked for again for some seconds, and is damage then.
- A stream is known by its name, the time it was made, and a word of ours in its metadata. At each connection, and every
  few seconds, it is compared with what it was, its end with the frames that were seen, and the newest frame that was
  read with what the stream holds there. What looks like a loss has to be said for some seconds before it is believed:
  a server that was cut off says so, too, until it knows.

What it takes of the servers is checked at `open`, but for one thing that no client sees: `sync_interval: always`. And
the servers' own care ends where disks lie: they notice damaged files less well than a log in local files does.

Besides, nodes tell each other where they stand, in a key-value bucket beside the stream, and ask each other by plain
messages; none of that decides anything about the log.

Files, lowest first:

    settings.py    what a stream has to be
    link.py        one connection to one server; the one file that uses nats-py
    connection.py  one link after the other, and questions over them
    stream.py      what can be asked of a stream, once
    guarding.py    whether it is the one that was opened, and has all that was seen
    appending.py   what is appended, until it is known what became of it
    reading.py     what is read, in order and whole
    members.py     who else has the log open
    asking.py      nodes ask each other
    session.py     what is between one opening and its end
    log.py         the class people use
"""
