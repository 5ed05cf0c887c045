"""Whether a data directory is what it is opened as."""

from __future__ import annotations

from pathlib import Path

from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import ConfigError, MachineMismatchError, ShardCountMismatchError
from shardengine.engine.storage.generations import DirectoryConfig
from shardengine.shards.machine import Machine


def check_machine(config: DirectoryConfig, machine: type[Machine], path: Path) -> None:
    """Raises MachineMismatchError unless `machine` may go on where `config`'s did."""
    if machine.name != config.machine or machine.version < config.machine_version:
        raise MachineMismatchError(
            f"{path} belongs to machine {config.machine!r} version {config.machine_version}, "
            f"not {machine.name!r} version {machine.version}",
            hint="open it with the machine that wrote it, or a later version of it",
            found=config.machine,
            expected=machine.name,
        )


def check_shard_count(found: int, asked: int | None) -> None:
    if asked is not None and asked != found:
        raise ShardCountMismatchError(
            f"the directory holds {found} shards, not {asked}",
            hint=f"open it with shards={found} or None, or convert it with `shardengine reshard DIR --shards {asked}`",
            found=found,
            asked=asked,
        )


def check_fixed(remembered: DirectoryConfig, config: EngineConfig) -> None:
    """Raise ConfigError when `config` asks for other limits than the directory was created with."""
    fixed = {
        "key_bytes_max": (remembered.limits.key_bytes_max, config.key_bytes_max),
        "value_bytes_max": (remembered.limits.value_bytes_max, config.value_bytes_max),
        "bad_entry": (remembered.bad_entry, config.bad_entry),
    }
    for key, (found, asked) in fixed.items():
        if asked is not None and asked != found:
            raise ConfigError(
                f"{key}={asked!r}, but the directory was created with {found!r}",
                hint="it is part of the state machine and cannot change; leave the setting out",
                key=key,
                value=asked,
                found=found,
            )
