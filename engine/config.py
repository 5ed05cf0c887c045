"""Every limit and choice of an engine, named with its unit last, in one place.

`EngineConfig` is the whole list: type, range, default and meaning of a setting stand at its field and nowhere else.
Values come from a TOML file, then from `SHARDENGINE_*` environment variables, then from arguments; later wins: that is
what `load_config` does, what an engine without a configuration does, and what the command line does. A value that
cannot be is a `ConfigError` that names the key, the value, what was expected and where it came from. A variable that
is empty counts as not set; one that is called like no setting is not ours (orchestrators make such), and a warning
names it once.

    ring_bytes = 33_554_432              # in a TOML file, at the top level
    SHARDENGINE_RING_BYTES=33_554_432    # in the environment
    EngineConfig(ring_bytes=33_554_432)  # in code

Three settings are remembered by the directory, and `shards` is implied by it: there, `None` takes what it has.
"""

from __future__ import annotations

import difflib
import errno
import functools
import logging
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from shardengine.engine.errors import ConfigError
from shardengine.shards.fast import SWITCH as COMPILED_SWITCH

log = logging.getLogger("shardengine")

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

ENV_PREFIX: Final = "SHARDENGINE_"

DATA_VARIABLE: Final = "SHARDENGINE_DATA"
"""No setting, but the directory that the command line takes where none is named."""

BAD_ENTRY_DEFAULT: Final = "fail"
KEY_BYTES_MAX_DEFAULT: Final = 480
VALUE_BYTES_MAX_DEFAULT: Final = 1 * MIB
"""What a new directory gets where its configuration says `None`."""

_FILE_BYTES_MAX: Final = 1 * MIB

KEY_BYTES_LIMIT: Final = 480
VALUE_BYTES_LIMIT: Final = 1 * GIB
"""More than these no directory's limits can be."""

ENTRY_OVERHEAD_BYTES: Final = 256
"""More than the encoding of one command adds to its key and value on the way into a ring."""

_ShardCount = Annotated[int, Meta(ge=1, le=256)]
_KeyBytes = Annotated[int, Meta(ge=1, le=KEY_BYTES_LIMIT)]
_ValueBytes = Annotated[int, Meta(ge=1, le=VALUE_BYTES_LIMIT)]
_MapBytes = Annotated[int, Meta(ge=1 * MIB, le=16 * 1024 * GIB, multiple_of=4096)]
_RingBytes = Annotated[int, Meta(ge=64 * KIB, le=8 * GIB, multiple_of=4096)]
_BatchBytes = Annotated[int, Meta(ge=1, le=8 * GIB)]
_Chunks = Annotated[int, Meta(ge=1, le=65_536)]
_Views = Annotated[int, Meta(ge=1, le=16_384)]
_SpinUs = Annotated[int, Meta(ge=0, le=10_000)]
_TimeMs = Annotated[int, Meta(ge=1, le=86_400_000)]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one engine: immutable, and checked when made.

    Raises:
        ConfigError: a value has the wrong type, lies out of range, or contradicts another one.
    """

    shards: _ShardCount | None = None
    """Shards, one worker process each. None: what the directory has, else by usable CPUs."""

    durability: Literal["process", "power"] = "process"
    """What an acknowledged chunk survives: the end of any process, or a power loss too (fsync before each answer)."""

    bad_entry: Literal["fail", "reject"] | None = None
    """A committed entry that is no valid command fails its chunk, or is consumed with `succeeded=False`.
    Fixed when the directory is created. None: what the directory has, else "fail"."""

    key_bytes_max: _KeyBytes | None = None
    """Longest key, bytes. Fixed when the directory is created. None: what the directory has, else 480."""

    value_bytes_max: _ValueBytes | None = None
    """Longest value, bytes. Fixed when the directory is created. None: what the directory has, else 1 MiB."""

    map_bytes: _MapBytes = 64 * GIB
    """Largest size of one shard's data file, bytes. Reserves address space, not disk."""

    ring_bytes: _RingBytes = 32 * MIB
    """Size of one shard's ring, bytes, two halves. What one chunk holds for a shard may be a quarter of it at most."""

    in_flight_chunks_max: _Chunks = 256
    """Accepted chunks that have no result yet, at most; further calls of `apply_chunk` wait in order."""

    in_flight_bytes_max: _BatchBytes = 64 * MIB
    """Data bytes of accepted chunks that have no result yet, at most. A larger chunk goes alone."""

    group_bytes_max: _BatchBytes = 4 * MIB
    """Data bytes of queued chunks that go through one commit together, at most; a single chunk may be larger.
    Never more than fits a ring, whatever is set here: see `group_bytes`."""

    spin_us: _SpinUs = 500
    """How long workers poll for the next order, and the coordinator for a small answer (not in mode "power"), before
    they sleep, microseconds; as long as that pays off and nobody else wants the core. 0: not at all."""

    interpreter: str | None = None
    """The Python that runs the workers, with this program's packages. None: the one that runs this program; a program
    that is frozen, or has Python embedded, must name one."""

    worker_timeout_ms: _TimeMs = 30_000
    """How long a worker may owe an answer before it is killed and replaced, milliseconds. While it waits for the disk,
    in a flush or in a commit of mode "power", it says that it is alive, and has `flush_timeout_ms`. Commands over
    several shards, which run in this process, may take as long before they are interrupted; the loop waits for them."""

    flush_timeout_ms: _TimeMs = 600_000
    """How long a flush, or a commit in mode "power", may take, milliseconds: writing all of a large state to a
    slow disk is no hang."""

    start_timeout_ms: _TimeMs = 30_000
    """How long `start()` waits for locks, and any worker may take to its first word, milliseconds."""

    stop_timeout_ms: _TimeMs = 30_000
    """How long `stop()` waits for what is in flight and for workers to end, milliseconds."""

    views_max: _Views = 64
    """Views open at once, at most."""

    readers_max: _Views = 64
    """Other processes that read the directory through a `Reader` at once, at most."""

    view_age_max_ms: _TimeMs = 60_000
    """How long a view may stay open, milliseconds: an old one makes the data files grow. Those of a `Reader` are
    closed when that is used next."""

    snapshot_timeout_ms: _TimeMs = 600_000
    """How long a snapshot may take from the call to its last byte, and how long an install waits for what is in flight,
    milliseconds; then it is given up."""

    snapshots_keep: _Chunks = 3
    """Snapshots of its own log that `create_snapshot` keeps in the directory, the newest by index; and as many of other
    logs, those that were written last."""

    snapshot_verify: bool = True
    """Whether a snapshot's pages and keys are all looked at before it is opened: pages that are wrong under a right
    checksum would end the process. About 3 microseconds a record; False only for snapshots of your own making."""

    after_power_loss: Literal["refuse", "empty"] = "refuse"
    """When the state cannot be trusted and no snapshot can replace it: refuse to start, or start empty.
    The old state is set aside, never deleted."""

    @property
    def part_bytes_max(self) -> int:
        """What one chunk may hold for one shard, in bytes: half of one half of the ring."""
        return self.ring_bytes // 4

    @property
    def group_bytes(self) -> int:
        """The group limit that holds: `group_bytes_max`, or what a ring takes if that is less."""
        return min(self.group_bytes_max, self.part_bytes_max)

    def __post_init__(self) -> None:
        for key, kind in _kinds().items():
            _convert(key, getattr(self, key), f"argument {key}", kind, strict=True)
        for fault in _contradictions(self):
            raise fault


def load_config(path: str | os.PathLike[str] | None = None, **settings: object) -> EngineConfig:
    """Settings from a TOML file, if one is named, then `SHARDENGINE_*` variables, then arguments; later wins.

    An argument that is None counts as not given. `EngineConfig(...)` looks at nothing but its arguments.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or a source holds an unknown key or an impossible value.
    """
    return resolve_config(path=path, overrides=settings)


def resolve_config(
    *,
    path: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> EngineConfig:
    """Settings from a TOML file, then the environment, then arguments; later wins.

    Args:
        path: a TOML file with settings at its top level, or None.
        environ: what to look for `SHARDENGINE_*` in; None is this process's environment.
        overrides: arguments by setting name; a value of None counts as not given.

    Raises:
        ConfigError: names the key, the value, what was expected, and the source.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    kinds = _kinds()
    env = os.environ if environ is None else environ
    for key, value, source, strict in (*_from_file(path), *_from_environment(env), *_from_arguments(overrides or {})):
        if key not in kinds:
            raise _unknown(key, source)
        values[key] = _convert(key, value, source, kinds[key], strict=strict)
        sources[key] = source
    try:
        return EngineConfig(**values)
    except ConfigError as error:  # each value alone was right: a contradiction between two of them
        origin = ", ".join(f"{key} from {sources.get(key, 'its default')}" for key in error.facts["keys"])
        raise ConfigError(f"{error.message}; {origin}", hint=error.hint, **error.facts) from None


_Setting = tuple[str, object, str, bool]
"""Key, value, source, and whether the value has its final type already."""


def _from_file(path: str | os.PathLike[str] | None) -> list[_Setting]:
    if path is None:
        return []
    source = f"file {os.fspath(path)}"
    try:
        table = tomllib.loads(_text_of(path))
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}", hint="check the path", source=source) from error
    except (ValueError, TypeError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, a NUL, no path
        raise ConfigError(
            f"{source}: not TOML: {error}", hint="write one `key = value` a line", source=source
        ) from error
    return [(key, value, source, True) for key, value in table.items()]


def _text_of(path: str | os.PathLike[str]) -> str:
    """All of a file that people write settings in. A link will do, but nothing endless, nor a pipe: it may be one that
    nobody writes to."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no plain file")
        data = file.read(_FILE_BYTES_MAX + 1)
    if len(data) > _FILE_BYTES_MAX:
        raise ValueError(f"more than {_FILE_BYTES_MAX} bytes")
    return data.decode("utf-8")


def _from_environment(environ: Mapping[str, str]) -> list[_Setting]:
    found: list[_Setting] = []
    foreign: list[str] = []
    kinds = _kinds()
    for name in sorted(environ):
        text = environ[name].strip()
        key = name.removeprefix(ENV_PREFIX).lower()
        if not name.startswith(ENV_PREFIX) or name in (COMPILED_SWITCH, DATA_VARIABLE) or not text:
            continue
        if key not in kinds:
            foreign.append(name)
            continue
        if re.fullmatch(r"[+-]?\d+(_\d+)*", text):
            text = text.replace("_", "")
        found.append((key, text, f"environment variable {name}", False))
    if foreign:
        _warn_of(tuple(foreign))
    return found


@functools.cache
def _warn_of(names: tuple[str, ...]) -> None:
    """Say once that these variables are no settings."""
    told = []
    for name in names:
        near = difflib.get_close_matches(name.removeprefix(ENV_PREFIX).lower(), list(_kinds()), n=1, cutoff=0.75)
        told.append(f"{name} (did you mean {ENV_PREFIX}{near[0].upper()}?)" if near else name)
    log.warning("no setting is called so, ignored: %s", ", ".join(told))


def _from_arguments(overrides: Mapping[str, object]) -> list[_Setting]:
    return [(key, value, f"argument {key}", True) for key, value in overrides.items() if value is not None]


@functools.cache
def _kinds() -> Mapping[str, Any]:
    """The type of every setting, by name."""
    return {field.name: field.type for field in msgspec.structs.fields(EngineConfig)}


def _convert(key: str, value: object, source: str, kind: Any, *, strict: bool) -> object:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        expected = _expectation(kind, error)
        raise ConfigError(
            f"{key} = {value!r} ({source}): expected {expected}",
            hint=f"change it there, or leave {key} out",
            key=key,
            value=value,
            source=source,
            expected=expected,
        ) from None


def _expectation(kind: Any, error: msgspec.ValidationError) -> str:
    for part in (kind, *get_args(kind)):
        if get_origin(part) is Literal:
            return " or ".join(repr(choice) for choice in get_args(part))
    return str(error).removeprefix("Expected ").split(", got")[0].replace("`", "")


def _unknown(key: str, source: str) -> ConfigError:
    known = list(_kinds())
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}"
    return ConfigError(f"no setting is called {key} ({source})", hint=hint, key=key, source=source)


def _contradictions(config: EngineConfig) -> list[ConfigError]:
    """What the values say against each other: the largest entry has to fit into whatever it passes through."""
    if config.value_bytes_max is None:
        return []
    largest = config.value_bytes_max + (config.key_bytes_max or KEY_BYTES_MAX_DEFAULT) + ENTRY_OVERHEAD_BYTES
    rooms = [
        ("ring_bytes", config.part_bytes_max, "a quarter of ring_bytes", 4 * largest),
        ("map_bytes", config.map_bytes // 2, "half of map_bytes", 2 * largest),
    ]
    return [
        ConfigError(
            f"value_bytes_max = {config.value_bytes_max} makes an entry of up to {largest} bytes, but {name} is {room}",
            hint=f"set {key} to {needed + -needed % 4096} or more, or lower value_bytes_max",
            keys=("value_bytes_max", key),
            key=key,
            value=getattr(config, key),
        )
        for key, room, name, needed in rooms
        if largest > room
    ]
