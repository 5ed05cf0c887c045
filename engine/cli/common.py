"""What the commands share: options, exit codes, output, opening an engine, stopping on a signal."""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import os
import pwd
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from shardengine import (
    Engine,
    EngineError,
    KeyValue,
    Machine,
    MachineImportError,
    NoCutError,
    Reader,
    StateUntrustedError,
)
from shardengine.engine.cli.streams import say
from shardengine.engine.config import DATA_VARIABLE, EngineConfig, resolve_config
from shardengine.engine.run.launch import check_machine
from shardengine.engine.storage.files import Lock
from shardengine.engine.storage.generations import Directory, DirectoryConfig

DONE, DATA_SAYS_NO, WRONG_USE, COULD_NOT = 0, 1, 2, 3

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_VIEW_AGE_MS = 86_400_000  # who reads the output of a scan may take a day

_QUIET = "shardengine.quiet"

_Command = TypeVar("_Command", bound=Callable[..., Any])


class DataSaysNoError(Exception):
    """The command worked and the answer is no: exit code 1."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def data_option(*, required: bool = True, text: str = "The engine's directory.") -> Callable[[_Command], _Command]:
    folder = click.Path(file_okay=False, path_type=Path)
    return click.option(
        "--data", type=folder, required=required, metavar="DIR", envvar=DATA_VARIABLE, show_envvar=True, help=text
    )


class MachineType(click.ParamType):  # type: ignore[type-arg]  # not generic in every release
    """`module:Class`, looked for where Python looks, and then in the current directory."""

    name = "machine"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> type[Machine]:
        if isinstance(value, type):
            return value
        module, _, name = value.partition(":")
        if not module or not name:
            self.fail(f"{value!r} is no module:Class", param, ctx)
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except Exception as error:  # a module may raise anything
            self.fail(f"{value!r} cannot be imported: {type(error).__name__}: {error}", param, ctx)
        if not (isinstance(found, type) and issubclass(found, Machine)):
            self.fail(f"{value!r} is no Machine", param, ctx)
        try:
            check_machine(found)
        except MachineImportError as error:
            self.fail(str(error), param, ctx)
        return found


def _quieted(ctx: click.Context, _: click.Parameter, quiet: bool) -> bool:
    if quiet:
        ctx.meta[_QUIET] = True
        logging.getLogger("shardengine").setLevel(logging.ERROR)
    return quiet


config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file of settings; SHARDENGINE_* variables and options override it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
hex_option = click.option("--hex", "as_hex", is_flag=True, help="Keys and values are hexadecimal, not text.")
quiet_option = click.option(
    "--quiet", is_flag=True, is_eager=True, callback=_quieted, help="No progress, no remarks, no warnings."
)
shards_option = click.option(
    "--shards", type=click.IntRange(1, 256), help="Shards of a new directory.  [default: by usable CPUs]"
)
machine_option = click.option(
    "--machine",
    type=MachineType(),
    default=lambda: KeyValue,
    metavar="MODULE:CLASS",
    help="What the directory's commands mean.  [default: the key-value machine]",
)


def remark(text: str) -> None:
    """Something that a person may like to know; nothing with --quiet."""
    if not click.get_current_context().meta.get(_QUIET):
        say(text)


def existing(data: Path) -> Path:
    """`data`, if an engine was ever created there: a command that reads must not create one."""
    if not (data / "config").is_file():
        raise click.UsageError(f"{data} holds no engine; name the directory that `shardengine load` created")
    return owned(data)


def owned(data: Path) -> Path:
    """`data`, unless the engine in it is somebody else's: the files made there would be none that its owner can use.
    Reading makes files, too: locks. An empty directory that root made may be for us."""
    if not data.exists():
        return data
    engine = (data / "config").exists()
    owner = (data / "config" if engine else data).stat().st_uid
    ours = owner == os.geteuid() or (owner == 0 and not engine)
    if ours or os.statvfs(data).f_flag & os.ST_RDONLY:
        return data
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    raise EngineError(
        f"{data} belongs to user {name} ({owner}), and this runs as user {os.geteuid()}: "
        f"files that it makes there, locks even where it only reads, would be in {name}'s way",
        hint=f"run it as that user: sudo -u {shlex.quote(name)} shardengine ...",
        owner=owner,
        user=os.geteuid(),
    )


def fixed_in(data: Path) -> DirectoryConfig:
    """What is fixed for the state in the directory of a running engine: lineage, limits."""
    generation = Directory(data).current()
    assert generation is not None
    return generation.info.config


@contextmanager
def opened(data: Path, machine: type[Machine], config_file: Path | None) -> Iterator[Engine]:
    """A started engine on an existing directory, stopped at the end."""
    db = Engine(existing(data), machine=machine, config=resolve_config(path=config_file))
    db.start()
    try:
        yield db
    finally:
        db.stop()


@contextmanager
def reading(data: Path, machine: type[Machine], config_file: Path | None) -> Iterator[Reader]:
    """A reader of an existing directory, beside its engine if one runs. What an engine that died left half done, so
    that no state of one index is there, is finished first, by one that is started here."""
    config = resolve_config(path=config_file, overrides={"view_age_max_ms": _VIEW_AGE_MS})
    try:
        reader = Reader(existing(data), machine, config=config)
    except (NoCutError, StateUntrustedError):
        if Lock.held(data / "LOCK"):
            raise
        with opened(data, machine, config_file):
            pass
        reader = Reader(data, machine, config=config)
    with reader:
        yield reader


def settings(config_file: Path | None, overrides: Mapping[str, object]) -> EngineConfig:
    return resolve_config(path=config_file, overrides=overrides)


def to_bytes(text: str, as_hex: bool, name: str) -> bytes:
    """A key from the command line: hexadecimal, or the very bytes that were typed."""
    if not as_hex:
        return os.fsencode(text)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not hexadecimal", param_hint=name) from None


def field(name: str, data: bytes, as_hex: bool) -> dict[str, str]:
    """`data` as one JSON field: text, or under `name_hex` when asked to or when it is not UTF-8."""
    if not as_hex:
        try:
            return {name: data.decode()}
        except UnicodeDecodeError:
            pass
    return {f"{name}_hex": data.hex()}


class StoppedError(Exception):
    """A signal asked for the end, and all that was in flight is finished: exit code 128 + its number."""

    def __init__(self, number: signal.Signals, hint: str = "") -> None:
        super().__init__(number)
        self.message = f"stopped by {number.name}"
        self.hint = hint
        self.exit_code = 128 + number


class Stop:
    """Whether something asked for the end: a signal, and which, or the work itself."""

    def __init__(self, on_stop: Callable[[], None] = lambda: None) -> None:
        self.signal: signal.Signals | None = None
        self.asked = False
        self._on_stop = on_stop

    def end(self, number: signal.Signals | None = None) -> None:
        """Ask for the end; for a signal's sake, or because going on makes no sense."""
        self.signal = self.signal or number
        self.asked = True
        self._on_stop()

    def check(self, hint: str = "") -> None:
        """Raise StoppedError if a signal came."""
        if self.signal is not None:
            raise StoppedError(self.signal, hint)


@contextmanager
def stopping_on_signals(on_stop: Callable[[], None] = lambda: None) -> Iterator[Stop]:
    """Inside a running loop: the first SIGINT, SIGTERM or SIGHUP only ends `Stop`; a second one acts as usual."""
    loop = asyncio.get_running_loop()
    stop = Stop(on_stop)

    def restore() -> None:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)

    def handle(number: signal.Signals) -> None:
        restore()
        stop.end(number)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, handle, number)
    try:
        yield stop
    finally:
        restore()


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """The first SIGTERM or SIGHUP raises StoppedError where the main thread stands, so that nothing half made is left;
    a second one acts as usual. One that is handled or ignored already stays so."""
    handled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]

    def restore() -> None:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)

    def end(number: int, _: object) -> None:
        restore()
        raise StoppedError(signal.Signals(number))

    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        restore()
