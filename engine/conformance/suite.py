"""The class that people derive from."""

from __future__ import annotations

from shardengine.engine.conformance.chunks import Chunks
from shardengine.engine.conformance.kills import Kills
from shardengine.engine.conformance.leftovers import Leftovers
from shardengine.engine.conformance.lifecycle import Lifecycle
from shardengine.engine.conformance.order import Order
from shardengine.engine.conformance.reads import Reading
from shardengine.engine.conformance.smoke import Smoke
from shardengine.engine.conformance.snapshots import Refusing
from shardengine.engine.conformance.spanning import Spanning
from shardengine.engine.conformance.state import Standing


class StateMachineSuite(Lifecycle, Order, Chunks, Reading, Spanning, Refusing, Standing, Kills, Leftovers, Smoke):
    """Checks of a state machine against the contract (`shardengine.StateMachine`), to be collected by pytest.

        class TestMine(StateMachineSuite):
            def build(self, directory):
                return Mine(directory)

    `build` returns a new machine, not started, over `directory`, which is there, and empty at first. Every check
    builds machines over directories of its own, below pytest's `tmp_path`, drives them in an event loop of its own, and
    stops them. No plugin is needed. A failure says what the contract demands, and with which numbers it was not so.

    A machine that takes other commands than `Put`, `Delete` and `CompareAndSwap`, or offers less than all, says so by
    further *hooks*:

    supports: the groups that apply, by default `StateMachineSuite.supports`, which is all but "spanning". A check whose
        group is not among them is skipped, and `pytest -ra` says which. To leave some out:
        `supports = StateMachineSuite.supports - {"reopen", "kills"}`. The groups, and what they need:

            delete, swap  the commands of these names
            spanning      `move`, below
            failing       a command that fails its chunk
            get_multi     `get_multi(keys)`, as an engine has it: values in the order of the keys
            scan          `scan_prefix(prefix, limit, start_after, reverse)`, as an engine has it
            standing      `update_last_applied`, `persist_last_applied`
            snapshots     `generate_snapshot_data`, `apply_snapshot_from_file`, and the metadata of the last snapshot
            reset         `reset`
            hard_state    `save_hard_state`, `hard_state`
            reopen        a machine that is built over a directory has the state of the one that was stopped there
            kills         the same where its process was killed: then whole chunks, and all that were acknowledged

    key(number), value(number): keys, and what `get` gives of them once it was put; all different, for numbers from 0.
        By default the keys are short, of any bytes, some prefixes of others, and value(0) is empty. Give some the
        largest size that the machine takes to have that tried.
    put(key, value), delete(key), swap(key, expected, value): such a command as `Entry.data`; a swap whose key has
        another value than `expected`, None: than none, is refused: succeeded=False, and no trace.
    move(source, target): a command over two keys: `target` gets the value of `source`, which is absent then; refused
        where it was absent before.
    failing(): data whose chunk must fail; by default bytes that are no command.
    kills: how many processes are killed, 12; a process for each is started, and the machine opened in it and here.
    watchdog_s: a check that takes longer fails, 60; not while the machine blocks.

    All other names of methods are the suite's own.

    The process that is killed imports the class by its module and name, or loads its file, and calls `build` on a new
    object: fixtures do not reach it, and the class must stand in a module.

    The last check reports how long 10,000 entries took (`pytest -rP` shows it), and demands nothing of that.
    """
