"""How fast the engine is, beside what it stands on. Run with `python -m perf`; nothing here is installed.

    python -m perf apply       this engine, single-process py-lmdb, and the limit, in turn; then single-entry latency
    python -m perf latency     one entry at a time beside a pipe, with and without polling, quiet and busy
    python -m perf memory      the coordinator's anonymous memory while a long stream goes through
    python -m perf snapshot    the barrier's pause against data size; copy, apply meanwhile, and restore
    python -m perf transactions
                               throughput against the share of commands over several shards
    python -m perf machines    each example machine beside the same commands in one process
    python -m perf node        proposals of one caller and of many, beside the bare disk, SQLite and the engine alone
    python -m perf cluster     proposals through a replicated log, beside a bare publish of the same frames
    python -m perf peers       the engine, the other state machines, and RocksDB, SQLite and py-lmdb alone
    python -m perf reads       gets in the engine's thread, in any thread, and in another process, beside py-lmdb's
    python -m perf sweep       the engine set in many ways under many loads; with --quick: how many shards, and why
    python -m perf stages      what an entry's time goes to, stage by stage, in the coordinator and in its workers
    python -m perf model       what other shard counts and other hosts would do, from those stages
    python -m perf report      the most of this, and latency under an offered load, as one page; `make perf`
    python -m perf compare     what changed beyond the noise between two of those, or what `--json` of another wrote
    python -m perf smoke       ratios beside those recorded for such a machine; `make perf-smoke`

Every side gets the same records, made before any clock starts. No number is printed before the answers are checked:
each side's digest and record count against those of a dict. A figure is a median over rounds, in which the sides take
turns; compare the ratios, not the absolutes.

What the sides of `apply` are given:

    engine     `Entry` objects with encoded commands: it decodes, splits, sorts and commits them on all shards at once
    py-lmdb    one process, (key, value) pairs that need no decoding; it sorts each chunk and commits it, one
               transaction a chunk, with the flags of `peers.FLAGS`
    limit      as many such processes as shards, each with the pairs of its shard, split and sorted beforehand; they
               agree on nothing, start together, and the time ends with the last

`snapshot` keeps one engine of each size, and streams overwrites of as many keys in each: `near` ones, on the same
number of leaves whatever the size, and `spread` ones, whose groups cost the more the larger the state. A pause is
the time from the commit table's hold to its release; a copy is the whole call less its pause; the bare copy is one
process a shard that does nothing but `copyfd(compact=True)` and fsync of that shard's environment. No number is printed
before the digests of the restored states are those of the engines at the labels.

`transactions` keeps one engine for each shard count. All of them apply one log: accounts are opened, then transfers
follow, a stretch for each share and skew, round by round. Of a share of them the two accounts lie on two shards, under
every shard count above one; of all others they lie on one. "Coordinator ran" is the share of commands that were the
coordinator's: those over several shards, and those behind them in the same partitions, to the end of the group. No
number is printed before every engine's digest is that of the balances which the same transfers give in a list, and the
accounts hold what they were opened with.

What the sides of `machines` are given, all of them the same entries; what is there when the clock starts is applied
before:

    engine     as in `apply`
    memory     `MemoryStateMachine`: the contract in one process, over a dict; it splits, runs and answers
    py-lmdb    one process and environment: commands run in the same overlay, over a transaction of LMDB's, one a chunk,
               which is given the last write of each key, sorted; nobody is answered, nothing could be taken back

`node` gives every side the same puts, on the same file system. For each number of callers, who propose again when
their result has come:

    node               `Node.propose`, over a `LocalLog`; at last `propose_many`, by one caller
    write + fdatasync  one thread, a loop of both, into a file whose blocks are all written before
    SQLite             one thread, a loop of transactions, WAL, `synchronous=FULL`, all else as it comes
    engine alone       `Engine.apply_chunk`, with as many chunks in flight as the callers' commands made frames

All but the node put as many commands into a write, a transaction or a chunk as the node had in a frame, on average: one
for one caller. A tenth of each stretch comes before its clock starts. Rates and CPU times are medians over rounds;
percentiles are over the calls of all rounds, and a call is a write, a transaction or a chunk where it is no proposal.

`cluster` starts three nats-servers on this machine, which sync every write, and gives a node on a stream of theirs the
same puts as one with a `LocalLog`. The bare publish sends the very frames that the node had appended, those of one
append together and then those of the next, to another stream of the same servers; its latencies are those of an append.

`peers` has every side put the same records, in turn, one chunk after the other; only the engine has several in flight.
It and the other state machines get entries, which they decode, check and answer; the stores alone get keys and values,
which SQLite and py-lmdb sort within the time. What a chunk survives is the end of the process, but for RocksDB without
its write-ahead log, which loses what is in memory then. No number is printed before what each side holds has the digest
of the records.

`reads` asks for random keys that are there, in batches, each of them followed or preceded by one of `txn.get`: in a
process that has nothing but py-lmdb, open on the same environments, and knows beforehand which key is on which shard. A
figure is the median over batches. `SyncNode.get` is given an index that is applied, so it asks nobody; `Reader` is in a
process of its own, beside an engine that runs.

`sweep` measures every combination of what it is given: shards, chunk, window, value bytes, order of keys, kind of
commands, durability, whether processes are bound to cores, and the sizes of groups and rings; see `streams.py` for the
orders and kinds. Rounds go through all combinations, every other one from the last to the first. Beside each engine
stand py-lmdb alone and the limit, under the same stream: they are given what its commands write, chunk by chunk,
without commands, reads and answers, and keep one chunk in flight. A tenth of every run comes before its clock starts.
No number is printed before each run's index, record count and digest are the stream's, and what the others hold has
that digest.

`stages` measures each engine with and without clocks at the stages' ends; see `clocks.py` and `counters.py`. A stage's
time is its own, without that of stages within it. The wall's time of a process that wants a core and has none counts
for the stage it is in, and is told beside. `model` makes formulas of the stages with one shard, two and more: see
`model.py`, which states what it assumes, and which a simulation in the tests agrees with.

`report` measures latency under a load that waits for nobody. Every entry is due at a time of its own, on a schedule
that is fixed beforehand, at a share of what the same feeder does when all is due at once; what is due goes into a chunk
together, as far as the window has room. An entry's latency counts from the time at which it was due to the end of its
chunk. Whatever holds the engine up is in the latency of all that was due meanwhile, so nothing is omitted. The feeder
is in the coordinator's thread, as an application is, and polls the clock.

`compare` matches rows by what was measured, and takes the ratio of the medians of each figure that has values of single
rounds; a rank test says whether chance alone could have ordered those so. Rounds within one run are more alike than
runs: before a small change is believed, it has to be there again.

Exit codes: 0 done; 1 an answer was wrong, or what was asked for is not so; 2 wrong use, known before anything is
measured; 3 the engine or a file could not; 128+n stopped by signal n, with nothing left behind.

Files, lowest first:

    facts.py        the machine; CPU time and memory of processes
    load.py         records, entries and the digest they must lead to
    options.py      what the options of the commands are
    report.py       heading, table and file of every command
    zipf.py         numbers of which some come up more often
    peers.py        py-lmdb alone, the limit, and bare copies
    sides.py        the engine's side of a round
    transfers.py    accounts, transfers that span shards or do not, and what they lead to
    workloads.py    what each example machine is given
    places.py       a machine over a dict, and over py-lmdb
    calls.py        calls that each wait for their answer, of one caller or many
    disks.py        puts to a bare file, and to SQLite
    bare.py         puts to RocksDB, SQLite and py-lmdb alone
    svg.py          what plots have in common
    bars.py         a bar chart, as SVG
    lines.py        a line plot, as SVG
    noise.py        whether two samples differ beyond the noise
    rows.py         rows of what each command found
    documents.py    the form of all that is compared or drawn
    proposing.py    puts to a node, and to the engine alone
    publishing.py   puts to a node on nats-servers, and its frames to them alone
    gets.py         gets in one thread, and in several
    elsewhere.py    gets in another process
    latency.py      `python -m perf latency`
    apply.py        `python -m perf apply`
    memory.py       `python -m perf memory`
    sized.py        an engine of one size, under a stream that leaves it so; the pauses of its barriers
    snapshot.py     `python -m perf snapshot`
    transactions.py `python -m perf transactions`
    machines.py     `python -m perf machines`
    node.py         `python -m perf node`
    cluster.py      `python -m perf cluster`
    besides.py      `python -m perf peers`
    reads.py        `python -m perf reads`
    shifting.py     a machine with a command over two keys
    streams.py      commands of several kinds over keys in several orders, and what they lead to
    cells.py        one engine, or one side beside it, set in one way, under one stream
    rounds.py       rounds of many cells
    sweep.py        `python -m perf sweep`
    quick.py        `python -m perf sweep --quick`
    defaults.py     the engine's defaults, and settings around them
    clocks.py       what the time of a thread goes to, counted from outside; in a worker
    counters.py     the same in the coordinator, and of all processes in a stretch
    stages.py       `python -m perf stages`
    model.py        a small model of the engine
    predicting.py   `python -m perf model`
    sweeping.py     the options of these
    offered.py      latency under a load that waits for nobody
    telling.py      how sentences, plots and tables are made from rows
    told_writes.py  what a report says of entries
    told_stages.py  what it says of stages, and of other hosts
    told_states.py  what it says of snapshots, reads and nodes
    sections.py     the sections of a report
    page.py         a report as one HTML page
    reporting.py    `python -m perf report`
    comparing.py    `python -m perf compare`
    smoke.py        `python -m perf smoke`
"""
