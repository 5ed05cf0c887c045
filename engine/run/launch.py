"""How worker processes are started: by the interpreter that runs this program, with its options, and with its module
search path as it is when the engine starts. Refuses what could not become a worker, or could not be imported by one,
before anything is started.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from shardengine.engine.errors import ConfigError, MachineImportError
from shardengine.shards.machine import Machine
from shardengine.shards.worker import path_taken

_LETTERS = {
    "debug": "d",
    "dont_write_bytecode": "B",
    "no_site": "S",
    "verbose": "v",
    "bytes_warning": "b",
    "optimize": "O",
}
_ISOLATION = {"ignore_environment": "E", "no_user_site": "s"}
_HINT = "set interpreter to a Python that has this program's packages (EngineConfig, or SHARDENGINE_INTERPRETER)"


class Launch(msgspec.Struct, frozen=True):
    """`command`: the interpreter, absolute, and its options. `sys_path`: where its modules are, absolute, as the system
    encodes it: the program may change its directory while workers come and go. `instead`: not behind what another
    interpreter knows by itself, but instead of it."""

    command: list[str]
    sys_path: list[bytes]
    instead: bool

    def child(self, program: str, *arguments: str) -> list[str]:
        """The command of a process other than a worker, which reads its path from standard input, where it is sent what
        `told` makes, then runs `program`: `given` holds what comes behind, `sys.argv[1:]` the `arguments`. Nothing is
        imported before."""
        text = (
            "import sys\n"
            "given = sys.stdin.buffer\n"
            "path = given.read(int(sys.argv.pop(1))).split(b'\\0')\n"
            f"{path_taken(instead=self.instead)}\n"
            f"{program}"
        )
        return [*self.command, "-c", text, str(len(self._path)), *arguments]

    def told(self, given: bytes) -> bytes:
        """What a `child` is sent."""
        return self._path + given

    @property
    def _path(self) -> bytes:
        return b"\0".join(self.sys_path)


def launch_of(interpreter: str | None) -> Launch:
    """How to start workers; `interpreter` None: by the one that runs. ConfigError: that is no Python."""
    return Launch([_program(interpreter), *_options(), "-P"], _search_path(), interpreter is None)


def _program(interpreter: str | None) -> str:
    if interpreter is not None:
        found = shutil.which(interpreter)
        if found is None:
            raise _refusal(f"interpreter={interpreter!r} is no program that can be run", interpreter)
        return str(Path(found).absolute())
    program: str | None = sys.executable
    if getattr(sys, "frozen", False):
        raise _refusal(f"this program is frozen: {program!r} is the program itself and no Python", program)
    if not program:
        raise _refusal("this Python does not know its own program (sys.executable is empty)", program)
    if not any(name in Path(program).name.lower() for name in ("python", "pypy")):
        raise _refusal(f"Python is embedded in {program!r}, which is no Python itself", program)
    return str(Path(program).absolute())


def _refusal(what: str, value: str | None) -> ConfigError:
    return ConfigError(f"workers cannot be started: {what}", hint=_HINT, key="interpreter", value=value)


def _options() -> list[str]:
    """The options that this interpreter was given, so that workers see the same modules in the same way."""
    flags = sys.flags
    options = [f"-{letter * int(getattr(flags, name))}" for name, letter in _LETTERS.items() if getattr(flags, name)]
    if flags.isolated:
        options.append("-I")
    else:
        options += [f"-{letter}" for name, letter in _ISOLATION.items() if getattr(flags, name)]
    options += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    return options + [f"-W{filter_}" for filter_ in sys.warnoptions]


def _search_path() -> list[bytes]:
    """`sys.path`, its directories and files absolute. Imports pass over what is no str in it, and cannot use what the
    system does not encode; what is no path, such as the mark of an import hook, stays as it is."""
    encoded = []
    for entry in sys.path:
        if isinstance(entry, str) and "\0" not in entry:
            with suppress(UnicodeError):
                there = os.access(os.fsencode(entry or "."), os.F_OK)
                encoded.append(os.fsencode(Path(entry).absolute() if there else entry))
    return encoded


def check_machine(machine: type[Machine]) -> None:
    """Raise MachineImportError when that is no machine."""
    if not (isinstance(machine, type) and issubclass(machine, Machine)) or machine.__abstractmethods__:
        lacking = sorted(getattr(machine, "__abstractmethods__", ())) if isinstance(machine, type) else []
        hint = f"define {' and '.join(lacking)}" if lacking else "pass a class that derives from Machine, itself"
        raise MachineImportError(f"{machine!r} is no class that implements Machine", hint=hint)
    known = {name: getattr(machine, name, None) for name in ("name", "version", "command")}
    if not isinstance(known["name"], str) or not isinstance(known["version"], int) or known["command"] is None:
        raise MachineImportError(
            f"{machine.__qualname__} has name={known['name']!r}, version={known['version']!r}, "
            f"command={known['command']!r}",
            hint="a machine's class names a str, an int, and its commands' type",
        )
    _check_methods(machine)
    _check_commands(machine)


def _check_methods(machine: type[Machine]) -> None:
    """`apply` answers when it is called, with what happened."""
    for kind, found in (
        ("a coroutine", inspect.iscoroutinefunction(machine.apply)),
        ("a generator", inspect.isgeneratorfunction(machine.apply) or inspect.isasyncgenfunction(machine.apply)),
    ):
        if found:
            raise MachineImportError(
                f"{machine.__qualname__}.apply is {kind}", hint="write it as a plain function: it waits for nothing"
            )


def _check_commands(machine: type[Machine]) -> None:
    """Its type is one that data can be decoded to."""
    try:
        msgspec.msgpack.Decoder(machine.command)
        found = msgspec.inspect.type_info(machine.command)
        kinds = found.types if isinstance(found, msgspec.inspect.UnionType) else (found,)
        foreign = [kind.cls.__qualname__ for kind in kinds if isinstance(kind, msgspec.inspect.CustomType)]
        said = f"msgspec does not decode {', '.join(foreign)}" if foreign else ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    if said:
        raise MachineImportError(
            f"{machine.__qualname__}.command is no type of commands: {said}",
            hint="make each command a msgspec.Struct, and command one of them, or a union of tagged ones (tag=True)",
            machine=machine.__qualname__,
        )


def machine_name(machine: type[Machine]) -> str:
    """`module:qualname`. MachineImportError when that is no machine, or no other process can import it."""
    check_machine(machine)
    if machine.__module__ == "__main__" or "<locals>" in machine.__qualname__:
        raise MachineImportError(
            f"workers cannot import the machine class {machine.__module__}.{machine.__qualname__}",
            hint="define it at the top level of an importable module, not in the program's main file or a function",
            machine=machine.__qualname__,
        )
    return f"{machine.__module__}:{machine.__qualname__}"
