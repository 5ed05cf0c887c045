"""From a directory, and what is asked of it, to a run."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from shardengine.engine.config import EngineConfig, load_config
from shardengine.engine.contract import StartReport
from shardengine.engine.errors import ConfigError, EngineStateError, disk_error
from shardengine.engine.run.launch import launch_of
from shardengine.engine.run.opening import Opened, open_directory
from shardengine.engine.run.reshard import convert
from shardengine.engine.run.runtime import Runtime
from shardengine.engine.snapshot.keeper import Snapshots
from shardengine.engine.storage.hardstate import HardStateFile
from shardengine.shards.fast import COMPILED
from shardengine.shards.machine import Machine
from shardengine.shards.worker import Process

log = logging.getLogger("shardengine")


def settled(config: EngineConfig | None, shards: int | None) -> EngineConfig:
    """The settings of an engine that is made with these two arguments. Raises ConfigError."""
    if not isinstance(config, EngineConfig | None):
        raise ConfigError(
            f"config is of type {type(config).__name__}, not EngineConfig",
            hint="pass EngineConfig(...), or load_config(...)",
        )
    config = config or load_config(shards=shards)
    if shards is None:
        return config
    if config.shards not in (None, shards):
        raise ConfigError(f"shards={shards}, but config says {config.shards}", key="shards", value=shards)
    return msgspec.structs.replace(config, shards=shards)


def refuse_worker() -> None:
    """A module with a machine and an engine is imported by workers, whose engines would start workers of their own."""
    if Process.is_worker:
        raise EngineStateError(
            "this is a worker process, in which no engine may be made or started",
            hint='make it in a function, or below `if __name__ == "__main__":`: workers import the machine\'s module',
        )


def start_run(
    path: Path,
    machine: type[Machine],
    config: EngineConfig,
    snapshots: Snapshots,
    hard: HardStateFile,
    *,
    reshard: bool,
) -> tuple[Runtime, StartReport]:
    """See `Engine.start`. Whatever is raised leaves nothing running, and the directory unlocked."""
    try:
        launch = launch_of(config.interpreter)
        hard.judge()  # before anything is converted, or set aside
        first: Opened | None = None
        if reshard and config.shards is not None:
            first = convert(path, config.shards, machine, config)
        opened = open_directory(path, machine, config)
        try:
            runtime = Runtime(opened, machine, config, launch)
            hard.start()
            snapshots.start()
            runtime.start()
        except BaseException:
            opened.lock.close()
            raise
    except OSError as error:
        raise disk_error(f"{path} cannot be opened", error, path=str(path)) from error
    snapshots.look(runtime.fixed.lineage, runtime.last_applied)
    return runtime, _reported(runtime, first)


def _reported(runtime: Runtime, first: Opened | None) -> StartReport:
    """What was found; `first` is what was, before the directory was converted."""
    opened = runtime.opened
    if not COMPILED:
        log.info("puts are split and sorted in Python: the compiled part was not built, or is switched off")
    told = first if first is not None and runtime.outcome == "opened" else opened
    discarded = None if told.discarded is None else str(told.discarded)
    outcome = told.outcome if told is first else runtime.outcome
    report = StartReport(outcome, runtime.last_applied, discarded)
    where = f"index {report.last_applied.index}"
    if discarded is not None:
        where += f", what was there is set aside in {discarded}"
    log.info("%s: started (%s) at %s over %d shards", opened.directory.path, outcome, where, runtime.shards)
    return report
