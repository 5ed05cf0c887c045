"""The command `shardengine`, also `python -m shardengine`: load a directory, read it, check it, see it work.

    shardengine demo                                   the whole engine on real input, in a minute
    shardengine cluster demo                           three servers, three nodes, two kills and one table
    shardengine load records.tsv --data DIR            every line becomes a committed entry
    shardengine put KEY VALUE --data DIR               through the log of a node; `delete`, `cas`
    shardengine get KEY --data DIR                     one value
    shardengine scan PREFIX --data DIR                 keys and values in key order
    shardengine digest --data DIR                      what to compare two replicas by
    shardengine stats --data DIR                       shards, sizes, whether an engine runs
    shardengine verify --data DIR                      every file against every other; of a live engine, its state
    shardengine snapshot --data DIR                    take a snapshot; `snapshots` lists them
    shardengine restore PATH --data DIR                replace the state by a snapshot, of any shard count
    shardengine export PATH FILE                       a snapshot as one file; `import` unpacks it
    shardengine reshard DIR --shards N                 another number of shards
    shardengine compact DIR                            give back the room that deleted records left
    shardengine log DIR                                a node's log: what it holds, its entries, whether it is whole

`get`, `scan`, `digest`, `stats` and `log` read beside a live engine and start nothing, unless an engine that died has
left a commit half done, which they finish first; `verify` checks what can be checked of a live directory, and says so.
Every other command opens the directory as an engine for as long as it runs, so none of them works beside a live one.

Settings come from `--config FILE`, `SHARDENGINE_*` environment variables and options, later wins (`engine/config.py`);
`SHARDENGINE_DATA` stands in for `--data`. Facts go to standard output, as one JSON object with `--json` (`scan`: one
object a line); progress, remarks and errors go to standard error, and `--quiet` leaves the errors.

A command that opens a directory makes files in it, be it locks; so it refuses one that belongs to another user.

Exit codes:

    0    done
    1    the data says no: no such key, damage found, a record that is none, two engines that differ
    2    wrong use: unknown option, impossible setting, no engine in the directory
    3    the engine could not: locked, full, damaged, another format; or the extra `cli` is not installed
    128+n  signal n stopped it: what was in flight was finished and the engine was stopped (Ctrl-C: 130)

`click` and `rich` come with the extra `shardengine[cli]`: the engine itself never imports this package.

Files, lowest first:

    streams.py    standard streams as they really are, and output
    hints.py      what an error advises, in the words of the command line
    common.py     options, exit codes, opening an engine, stopping on a signal
    progress.py   one line that says how far, how fast, how long still
    feed.py       chunks into an engine, several in flight, in order
    source.py     a file, unpacked and decoded, as lines
    loads.py      what was loaded before
    commands.py   lines of JSON into commands of any machine
    records.py    lines of a file into entries
    results.py    what became of entries, as lines of JSON
    load.py       the command `load`
    corpus.py     the running Python's standard library as a log
    demo.py       the command `demo`
    cluster.py    the command `cluster demo`
    archives.py   where an exported snapshot goes to and comes from
    keep.py       the commands about snapshots and shard counts
    check.py      the command `verify`
    propose.py    the commands `put`, `delete`, `cas`
    log.py        the command `log`
    show.py       the commands `get`, `scan`, `digest`, `stats`
    app.py        the command group
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Arguments default to the process's own."""
    own = argv is None and gc.isenabled()
    if own:
        gc.disable()  # imports leave nothing for it to find, and it would take a quarter of a short command's time
    try:
        from shardengine.engine.cli.app import run_command
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("click", "rich"):
            raise
        sys.stderr.write(f"error: the command line needs {missing}: pip install 'shardengine[cli]'\n")
        return 3
    if own:
        gc.freeze()
        gc.enable()
    return run_command(sys.argv[1:] if argv is None else list(argv))
