"""The command group: names, and what an error becomes."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import click
from click.shell_completion import shell_complete

from shardengine.engine.cli.check import verify
from shardengine.engine.cli.cluster import cluster
from shardengine.engine.cli.common import COULD_NOT, DATA_SAYS_NO, DONE, WRONG_USE, DataSaysNoError, StoppedError
from shardengine.engine.cli.demo import demo
from shardengine.engine.cli.hints import for_machine, in_command_words
from shardengine.engine.cli.keep import compact, export_, import_, reshard, restore, snapshot, snapshots
from shardengine.engine.cli.load import load
from shardengine.engine.cli.log import log
from shardengine.engine.cli.propose import cas, delete, put
from shardengine.engine.cli.show import digest, get, scan, stats
from shardengine.engine.cli.streams import abandon, flush_remarks, named, occupy, say
from shardengine.engine.errors import ConfigError, EngineError, MachineMismatchError
from shardengine.ipc.errors import hint_for

_COMPLETE = "_SHARDENGINE_COMPLETE"
"""What a shell sets to ask for completions."""


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata  # which brings all of `email` along

    try:
        version = metadata.version("shardengine")
    except metadata.PackageNotFoundError:
        version = "not installed"
    click.echo(f"shardengine {version}")
    ctx.exit()


_COMMANDS: list[click.Command] = [
    *(demo, cluster, load, put, delete, cas, get, scan, digest, stats, verify),
    *(snapshot, snapshots, restore, export_, import_, reshard, compact, log),
]


@click.group(commands=_COMMANDS, context_settings={"max_content_width": 120})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def shardengine() -> None:
    """A sharded, replicated state machine engine: committed log entries in, durable readable state out.

    \b
    Exit codes: 0 done, 1 the data says no, 2 wrong use, 3 the engine could not, 128+n stopped by signal n.

    \b
    Examples:
      shardengine demo
      shardengine cluster demo
      shardengine load words.tsv --data words --shards 4
      shardengine get apple --data words
      eval "$(_SHARDENGINE_COMPLETE=bash_source shardengine)"
    """


def run_command(argv: list[str]) -> int:
    """Run the command that `argv` names. Every foreseen error becomes a line on standard error and an exit code."""
    occupy()
    if instruction := os.environ.get(_COMPLETE):
        return shell_complete(shardengine, {}, "shardengine", _COMPLETE, instruction)
    code = _run(argv)
    try:
        with named("standard output"):
            sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_gone()
    except OSError as error:
        abandon(sys.stdout)
        code = code or _refused(error)
    flush_remarks()
    return code


def _run(argv: list[str]) -> int:
    try:
        with shardengine.make_context("shardengine", argv) as context:  # `main` would keep EPIPE and SIGINT to itself
            code = shardengine.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return WRONG_USE
    except ConfigError as error:
        return _report(error, WRONG_USE)
    except DataSaysNoError as error:
        return _report(error, DATA_SAYS_NO)
    except StoppedError as error:
        return _report(error, error.exit_code)
    except EngineError as error:
        return _report(error, COULD_NOT)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        return _refused(error)
    except Exception as error:  # a defect of ours is no excuse for a traceback
        say(f"error: defect: {type(error).__name__}: {error}")
        return COULD_NOT
    return code if isinstance(code, int) else DONE


def _report(error: DataSaysNoError | StoppedError | EngineError, code: int) -> int:
    say(f"error: {error.message}")
    hint = in_command_words(error.hint)
    if isinstance(error, MachineMismatchError):
        hint = for_machine(hint)
    if hint:
        say(f"hint: {hint}")
    return code


def _refused(error: OSError) -> int:
    said = error.strerror or str(error)
    say(f"error: {said}" if error.filename is None else f"error: {os.fsdecode(error.filename)}: {said}")
    say(f"hint: {hint_for(error)}")
    return COULD_NOT


def _interrupted() -> int:
    say("error: stopped by SIGINT")
    return 130


def _reader_gone() -> int:
    """Whoever read standard output has enough."""
    abandon(sys.stdout)
    return 141
