"""From a path to a directory that is locked, known, trusted, and holds a generation. Changes no state in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardengine.engine.config import BAD_ENTRY_DEFAULT, KEY_BYTES_MAX_DEFAULT, VALUE_BYTES_MAX_DEFAULT, EngineConfig
from shardengine.engine.errors import StateUntrustedError
from shardengine.engine.run.resources import check_resource_limits, default_shards
from shardengine.engine.snapshot.build import Target
from shardengine.engine.snapshot.keeper import restore_newest
from shardengine.engine.storage.files import Lock, make_directories, refuse_network_filesystem
from shardengine.engine.storage.generations import (
    SET_ASIDE,
    Directory,
    DirectoryConfig,
    Generation,
    new_lineage,
)
from shardengine.engine.storage.matching import check_fixed, check_machine, check_shard_count
from shardengine.engine.storage.runmark import read_mark, trusted, why_untrusted, write_clean
from shardengine.ipc.files import check_owner
from shardengine.shards.machine import Machine
from shardengine.shards.placement import SLOTS
from shardengine.shards.store import FORMAT, PAGE_BYTES, check_library
from shardengine.shards.types import Limits


@dataclass(frozen=True)
class Opened:
    """An open directory. `outcome` and `discarded` are those of a StartReport."""

    directory: Directory
    lock: Lock
    generation: Generation
    outcome: str
    discarded: Path | None


def open_directory(path: Path, machine: type[Machine], config: EngineConfig) -> Opened:
    """Lock `path`, making it when it is not there, and settle on a generation.

    Raises EngineLockedError, FormatError, MachineMismatchError, ShardCountMismatchError, ConfigError, or
    StateUntrustedError; the lock is free then.
    """
    check_library()
    if config.shards or not (path / "config").exists():  # else first how many the directory has
        check_resource_limits(config, config.shards or default_shards())
    make_directories(path)
    refuse_network_filesystem(path)
    check_owner(path, path.stat())
    lock = Lock(path / "LOCK")
    try:
        lock.take()
        return _open_locked(Directory(path), lock, machine, config)
    except BaseException:
        lock.close()
        raise


def _open_locked(directory: Directory, lock: Lock, machine: type[Machine], config: EngineConfig) -> Opened:
    directory.check_ours()
    directory.await_predecessors(config.start_timeout_ms)
    remembered = directory.load()
    if remembered is None:
        remembered = _new_config(machine, config)
        directory.save(remembered)
    generation = directory.current()
    discarded = directory.aside() if generation is None else None
    last = generation if discarded is None else Generation(discarded)
    fixed = remembered if last is None else last.info.config
    check_machine(fixed, machine, directory.path)
    check_fixed(fixed, config)
    directory.remove_half_built()
    directory.sweep_beside()
    if generation is not None:
        check_shard_count(generation.shards, config.shards)
        check_resource_limits(config, generation.shards)
        if trusted(read_mark(directory.path), generation, generation.is_whole):
            generation.mend_guards()
            return Opened(directory, lock, generation, "opened", None)
        discarded = directory.set_aside(generation)
    shards = config.shards or (default_shards() if last is None else last.shards)
    check_resource_limits(config, shards)
    target = Target(shards, machine, half_bytes(config), config.map_bytes, config.snapshot_verify)
    generation = None if discarded is None else restore_newest(directory, fixed, target)
    if generation is not None:
        outcome = "restored"
    else:
        outcome = _decide_to_create(discarded, config)
        generation = directory.create(shards, fixed, half_bytes(config))
    # First the mark: a generation without one of its own could not be trusted after the next death.
    write_clean(directory.path, generation, config.durability)
    if (problem := directory.make_current(generation)) is not None:
        raise problem
    return Opened(directory, lock, generation, outcome, discarded)


def _new_config(machine: type[Machine], config: EngineConfig) -> DirectoryConfig:
    limits = Limits(
        config.key_bytes_max or KEY_BYTES_MAX_DEFAULT,
        config.value_bytes_max or VALUE_BYTES_MAX_DEFAULT,
    )
    bad_entry = config.bad_entry or BAD_ENTRY_DEFAULT
    return DirectoryConfig(FORMAT, new_lineage(), machine.name, machine.version, SLOTS, limits, bad_entry)


def _decide_to_create(discarded: Path | None, config: EngineConfig) -> str:
    if discarded is None:
        return "created"
    if config.after_power_loss == "empty":
        return "emptied"
    why, may_be_known_better = why_untrusted(read_mark(discarded.parent))
    hint = 'feed the log again into an empty state with after_power_loss="empty", or use durability="power"'
    if may_be_known_better:
        name = discarded.name.removeprefix(SET_ASIDE)
        hint += (
            f'; who knows that the machine did not go down starts once with after_power_loss="empty", stops, renames '
            f"{discarded.name} to {name}, and writes {name} into CURRENT"
        )
    raise StateUntrustedError(
        f"{why}; so the files cannot be trusted; they are set aside, whole, in {discarded}",
        hint=hint,
        discarded=str(discarded),
    )


def half_bytes(config: EngineConfig) -> int:
    """The size of half a ring: whole pages."""
    return config.ring_bytes // 2 // PAGE_BYTES * PAGE_BYTES
