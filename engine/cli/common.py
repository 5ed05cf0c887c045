"""What the commands share: options, exit codes, output, opening an engine, stopping on a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine import Engine
from engine.config import EngineConfig, resolve_config

DONE, DATA_SAYS_NO, WRONG_USE, COULD_NOT = 0, 1, 2, 3

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_Command = TypeVar("_Command", bound=Callable[..., Any])


class DataSaysNoError(Exception):
    """The command worked and the answer is no: exit code 1."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def data_option(*, required: bool = True, text: str = "The engine's directory.") -> Callable[[_Command], _Command]:
    folder = click.Path(file_okay=False, path_type=Path)
    return click.option("--data", type=folder, required=required, metavar="DIR", help=text)


config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file of settings; SHARDENGINE_* variables and options override it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
hex_option = click.option("--hex", "as_hex", is_flag=True, help="Keys and values are hexadecimal, not text.")


def existing(data: Path) -> Path:
    """`data`, if an engine was ever created there: a command that reads must not create one."""
    if not (data / "config").is_file():
        raise click.UsageError(f"{data} holds no engine; name the directory that `shardengine load` created")
    return data


@contextmanager
def opened(data: Path, config_file: Path | None) -> Iterator[Engine]:
    """A started engine on an existing directory, stopped at the end."""
    db = Engine(existing(data), config=resolve_config(path=config_file))
    db.start()
    try:
        yield db
    finally:
        db.stop()


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


def print_bytes(line: bytes) -> None:
    """One line on standard output, untouched by any encoding."""
    sys.stdout.buffer.write(line + b"\n")


def print_json(facts: object) -> None:
    print_bytes(msgspec.json.encode(facts))


def say(text: str) -> None:
    """A remark for the person at the terminal: standard error, so that facts can be piped."""
    sys.stderr.write(text + "\n")  # looked up at each call: a live progress bar stands in for it


def print_table(title: str, rows: Mapping[str, object]) -> None:
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name.replace("_", " "), escape(readable(value)))
    console().print(table)


def readable(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def console() -> Console:
    """Standard output for tables; a pipe gets room enough that nothing is cut."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


class StoppedError(Exception):
    """A signal asked for the end, and all that was in flight is finished: exit code 128 + its number."""

    def __init__(self, number: signal.Signals, hint: str = "") -> None:
        super().__init__(number)
        self.message = f"stopped by {number.name}"
        self.hint = hint
        self.exit_code = 128 + number


class Stop:
    """Whether a signal asked for the end, and which."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def asked(self) -> bool:
        return self.signal is not None

    def check(self, hint: str = "") -> None:
        """Raise StoppedError if a signal came."""
        if self.signal is not None:
            raise StoppedError(self.signal, hint)


@contextmanager
def stopping_on_signals(on_stop: Callable[[], None] = lambda: None) -> Iterator[Stop]:
    """Inside a running loop: the first SIGINT, SIGTERM or SIGHUP only sets `Stop`; a second one acts as usual."""
    loop = asyncio.get_running_loop()
    stop = Stop()

    def restore() -> None:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)

    def handle(number: signal.Signals) -> None:
        stop.signal = number
        restore()
        on_stop()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, handle, number)
    try:
        yield stop
    finally:
        restore()
