"""The data directory: what it remembers, its generations, and whether they can be trusted.

    DIR/  LOCK  CURRENT  config  run-mark  worker.log
          gen-000001/  GENERATION  decision  shard-000/{data.mdb lock.mdb owner ring}  shard-001/...
          set-aside-gen-000001/      a generation that could not be trusted after a power loss; never deleted

`CURRENT` names the live generation and is renamed into place last: a crash leaves the old one or the new one. A
generation that CURRENT never named is half-built, and removed at the next start. Numbers are never used again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from engine.decision import Record, create_decision
from engine.errors import FormatError, MachineMismatchError, ShardCountMismatchError
from engine.files import read_json, sync_directory, sync_file, write_json, write_whole
from ipc.ring import create_ring
from shards.machine import Machine
from shards.placement import SLOTS
from shards.store import FORMAT, Identity, Store
from shards.types import Limits, Position

CREATE_MAP_BYTES = 1 << 20


class DirectoryConfig(msgspec.Struct, frozen=True):
    """What is fixed when a directory is created: part of the state machine, not of a node's configuration."""

    format: int
    lineage: str
    machine: str
    machine_version: int
    slots: int
    limits: Limits
    bad_entry: str


class GenerationInfo(msgspec.Struct, frozen=True):
    """id: unlike any other generation's. shards: how many."""

    id: str
    shards: int


class RunMark(msgspec.Struct, frozen=True):
    """Whether what is in the files may be more than what is on the disk. Durable before the first write of a run."""

    clean: bool
    boot_id: str
    mode: str
    lineage: str


class Generation:
    """The paths and identities of one generation."""

    def __init__(self, path: Path, machine: str) -> None:
        self.path = path
        self.info = read_json(path / "GENERATION", GenerationInfo)
        self._machine = machine

    @property
    def shards(self) -> int:
        return self.info.shards

    @property
    def decision(self) -> Path:
        return self.path / "decision"

    def shard(self, shard: int) -> Path:
        return self.path / f"shard-{shard:03}"

    def identity(self, shard: int) -> Identity:
        return identity_of(self.info, shard, self._machine)


def identity_of(info: GenerationInfo, shard: int, machine: str) -> Identity:
    return Identity(info.id, shard, info.shards, SLOTS, machine)


class Directory:
    """A data directory whose lock is held."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def _config(self) -> Path:
        return self.path / "config"

    def load(self) -> DirectoryConfig | None:
        """What the directory remembers; None when it is new. FormatError: it is something else."""
        try:
            config = read_json(self._config, DirectoryConfig)
        except FileNotFoundError:
            self._refuse_foreign()
            return None
        if config.format != FORMAT or config.slots != SLOTS:
            raise FormatError(
                f"{self.path}: format {config.format} with {config.slots} slots; this version reads format {FORMAT} "
                f"with {SLOTS}",
                hint="open it with the version that wrote it",
                format=config.format,
            )
        return config

    def _refuse_foreign(self) -> None:
        foreign = sorted(name for name in os.listdir(self.path) if name not in ("LOCK", "config.new"))
        if foreign:
            raise FormatError(
                f"{self.path} is no data directory, and not empty: it holds {foreign[0]!r}",
                hint="name an empty or a new directory",
            )

    def save(self, config: DirectoryConfig) -> None:
        write_json(self._config, config)

    def check_machine(self, config: DirectoryConfig, machine: type[Machine]) -> None:
        """Raises MachineMismatchError unless `machine` may go on where `config`'s did."""
        if machine.name != config.machine or machine.version < config.machine_version:
            raise MachineMismatchError(
                f"{self.path} belongs to machine {config.machine!r} version {config.machine_version}, "
                f"not {machine.name!r} version {machine.version}",
                hint="open it with the machine that wrote it, or a later version of it",
                found=config.machine,
                expected=machine.name,
            )

    def current(self, machine: str) -> Generation | None:
        """The live generation, or None: there is none yet, or it was set aside."""
        try:
            name = (self.path / "CURRENT").read_text().strip()
        except FileNotFoundError:
            return None
        path = self.path / name
        if not path.is_dir():
            if (self.path / f"set-aside-{name}").is_dir():
                return None
            raise FormatError(f"{self.path}: CURRENT names {name}, which is not there", hint="was it moved away?")
        return Generation(path, machine)

    def set_aside(self, generation: Generation) -> Path:
        """Put an untrusted generation out of the way, whole. Returns where it is."""
        aside = self.path / f"set-aside-{generation.path.name}"
        generation.path.rename(aside)
        sync_directory(self.path)
        return aside

    def aside(self) -> Path | None:
        """Where the generation is that CURRENT names and that was set aside."""
        try:
            aside = self.path / f"set-aside-{(self.path / 'CURRENT').read_text().strip()}"
        except FileNotFoundError:
            return None
        return aside if aside.is_dir() else None

    def create(self, shards: int, machine: type[Machine], half_bytes: int) -> Generation:
        """Build an empty generation beside whatever is there, durable before CURRENT names it."""
        path = self.path / f"gen-{self._next_number():06}"
        path.mkdir()
        info = GenerationInfo(f"{path.name}-{os.urandom(8).hex()}", shards)
        for shard in range(shards):
            _create_shard(path / f"shard-{shard:03}", identity_of(info, shard, machine.name), half_bytes)
        create_decision(path / "decision", Record(Position(), [], {}, machine.version))
        write_json(path / "GENERATION", info)
        write_whole(self.path / "CURRENT", path.name.encode())
        return Generation(path, machine.name)

    def remove_half_built(self) -> None:
        """Delete the generations that CURRENT does not name: an unfinished creation left them."""
        try:
            current = (self.path / "CURRENT").read_text().strip()
        except FileNotFoundError:
            current = ""
        for path in self.path.glob("gen-[0-9]*"):
            if path.name != current:
                shutil.rmtree(path)

    def _next_number(self) -> int:
        numbers = [int(path.name.rpartition("-")[2]) for path in self.path.glob("*gen-[0-9]*")]
        return max(numbers, default=0) + 1

    def run_mark(self) -> RunMark | None:
        """The mark of the last run; None when it is missing or unreadable."""
        try:
            return read_json(self.path / "run-mark", RunMark)
        except (FileNotFoundError, FormatError):
            return None

    def write_run_mark(self, mark: RunMark) -> None:
        """Returns when it is durable."""
        write_json(self.path / "run-mark", mark)

    def bytes_on_disk(self) -> int:
        """Disk blocks in use by everything in the directory, in bytes."""
        return sum(path.lstat().st_blocks * 512 for path in self.path.rglob("*") if path.is_file())


def _create_shard(path: Path, identity: Identity, half_bytes: int) -> None:
    path.mkdir()
    Store(path, identity, map_bytes=CREATE_MAP_BYTES, readers_max=1, sync=True).close()
    create_ring(path / "ring", half_bytes)
    (path / "owner").touch()
    for name in ("data.mdb", "ring", "owner"):
        sync_file(path / name)
    sync_directory(path)


def boot_id() -> str:
    """Unlike any other boot of any machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def check_shard_count(found: int, asked: int | None) -> None:
    if asked is not None and asked != found:
        raise ShardCountMismatchError(
            f"the directory holds {found} shards, not {asked}",
            hint=f"open it with shards={found} or None, or convert it with `shardengine reshard DIR --shards {asked}`",
            found=found,
            asked=asked,
        )
