"""The data directory: what it remembers, its generations, and whether they can be trusted.

    DIR/  LOCK  CURRENT  config  run-mark  hardstate  worker.log
          gen-000001/  GENERATION  decision  control  shard-000/{data.mdb lock.mdb owner ring}  shard-001/...
          snapshots/  snapshot-metadata
          node  log/                 of a node: which log it applies, its name there, and that log if it is a local one
          loads                      what `shardengine load` took, and of what
          set-aside-gen-000001/      a generation that could not be trusted after a power loss; never deleted

`CURRENT` names the live generation and is renamed into place last: a crash leaves the old one or the new one. A
generation that CURRENT never named is half-built, and removed at the next start. Numbers are never used again.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from shardengine.engine.commit.decision import DecisionFile, Record, create_decision
from shardengine.engine.errors import (
    DamagedError,
    EngineError,
    FormatError,
    disk_error,
)
from shardengine.engine.storage.files import (
    BESIDE,
    Lock,
    read_checked,
    read_small,
    replace_file,
    sync_directory,
    write_checked,
)
from shardengine.ipc.files import (
    SyncError,
    allocate,
    check_file,
    check_owner,
    create_file,
    drop_from_memory,
    make_directory,
    sync_path,
)
from shardengine.ipc.ring import create_ring
from shardengine.shards.placement import SLOTS
from shardengine.shards.store import FORMAT, Identity, Store, damage_in
from shardengine.shards.types import Limits, Position

log = logging.getLogger("shardengine")
_NAME = re.compile(r"gen-\d{6,}")
SET_ASIDE = "set-aside-"
_REPLACED = ("CURRENT", "config", "run-mark", "snapshot-metadata", "loads", "hardstate", "node")
CREATE_MAP_BYTES = 1 << 20
LOCK_BYTES = 64 << 10  # a thousand readers


class DirectoryConfig(msgspec.Struct, frozen=True):
    """What is fixed when a directory is created: part of the state machine, not of a node's configuration. A
    generation keeps its own, since an installed snapshot brings its lineage, limits and choices along; the directory's
    `config` file is that of the first one."""

    format: int
    lineage: str
    machine: str
    machine_version: int
    slots: int
    limits: Limits
    bad_entry: str


class GenerationInfo(msgspec.Struct, frozen=True):
    """id: unlike any other generation's. shards: how many. config: what is fixed for it."""

    id: str
    shards: int
    config: DirectoryConfig


class Generation:
    """The paths and identities of one generation."""

    def __init__(self, path: Path, info: GenerationInfo | None = None) -> None:
        self.path = path
        self.info = info or read_checked(path / "GENERATION", GenerationInfo)

    @property
    def shards(self) -> int:
        return self.info.shards

    @property
    def decision(self) -> Path:
        return self.path / "decision"

    @property
    def control(self) -> Path:
        return self.path / "control"

    def shard(self, shard: int) -> Path:
        return self.path / f"shard-{shard:03}"

    def identity(self, shard: int) -> Identity:
        return Identity(self.info.id, shard, self.info.shards, SLOTS, self.info.config.machine)

    def is_whole(self) -> bool:
        """Whether every page of every shard is sound on the disk itself: what the kernel holds of it in memory, which
        may be more, is dropped before. Blocks for as long as it takes to read all of it."""
        for shard in range(self.shards):
            file = self.shard(shard) / "data.mdb"
            drop_from_memory(file)
            if findings := damage_in(self.shard(shard)):
                log.error("%s is damaged: %s", file, "; ".join(findings[:3]))
                return False
        return True

    @property
    def guards(self) -> list[Path]:
        """The files that keep a second engine, or a second readers' table, out."""
        return [self.shard(shard) / name for shard in range(self.shards) for name in ("owner", "lock.mdb")]

    def mend_guards(self) -> None:
        """A cleaner may have taken what is as good new, while nobody runs. Raises DamagedError when an `owner` is
        missing: an engine might live that only it would tell of."""
        for file in self.guards:
            if file.exists():
                continue
            if file.name == "owner":
                raise DamagedError(
                    f"{file} is missing: nothing tells whether a worker still writes there",
                    hint="who cleans up in this directory? See that no engine runs on it, then make that file, empty",
                    path=str(file),
                )
            _make_readers_table(file)

    def remove(self) -> None:
        """Delete it; CURRENT must not name it. Nothing happens when it is gone."""
        shutil.rmtree(self.path, ignore_errors=True)

    def upgrade(self, version: int) -> None:
        """Remember that a later version of the machine has taken over."""
        config = msgspec.structs.replace(self.info.config, machine_version=version)
        self.info = msgspec.structs.replace(self.info, config=config)
        write_checked(self.path / "GENERATION", self.info)


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
            config = read_checked(self._config, DirectoryConfig)
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
        write_checked(self._config, config)

    def current(self) -> Generation | None:
        """The live generation, or None: there is none yet, or it was set aside."""
        name = self._current_name()
        if name is None:
            self._refuse_unnamed()
            return None
        path = self.path / name
        if not path.is_dir():
            if (self.path / f"{SET_ASIDE}{name}").is_dir():
                return None
            raise FormatError(f"{self.path}: CURRENT names {name}, which is not there", hint="was it moved away?")
        return Generation(path)

    def _current_name(self) -> str | None:
        """What CURRENT says; None when it is missing. FormatError: that is no generation's name."""
        try:
            name = read_small(self.path / "CURRENT").decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        if not _NAME.fullmatch(name):
            raise FormatError(
                f"{self.path}: CURRENT holds {name!r}, no generation's name", hint="write the name of the right one"
            )
        return name

    def _generations(self) -> list[Path]:
        return [path for path in sorted(self.path.iterdir()) if _NAME.fullmatch(path.name) and path.is_dir()]

    def _refuse_unnamed(self) -> None:
        """Without CURRENT, a generation that is more than a creation broken off is somebody's state."""
        for path in self._generations():
            if not (path / "GENERATION").is_file():
                continue
            decision = DecisionFile(path / "decision")
            decision.close()
            if decision.record.position != Position():
                raise DamagedError(
                    f"{self.path}: CURRENT is missing, but {path.name} holds a state",
                    hint="write the name of the right generation into CURRENT",
                    path=str(self.path),
                )

    def check_ours(self) -> None:
        """Nothing in it is another user's, and where a generation has files nothing else lies. Raises
        FileRefusedError."""
        check_owner(self.path, self.path.stat())
        for entry in self.path.iterdir():
            check_owner(entry, entry.lstat())
        for generation in self._generations():
            for file in (
                *(generation / name for name in ("GENERATION", "decision", "control")),
                *generation.glob("shard-*/*"),
            ):
                with suppress(FileNotFoundError):
                    check_file(file)

    def set_aside(self, generation: Generation) -> Path:
        """Put an untrusted generation out of the way, whole. Returns where it is."""
        aside = self.path / f"{SET_ASIDE}{generation.path.name}"
        generation.path.rename(aside)
        sync_directory(self.path)
        return aside

    def aside(self) -> Path | None:
        """Where the generation is that CURRENT names and that was set aside."""
        aside = self.path / f"{SET_ASIDE}{self._current_name()}"
        return aside if aside.is_dir() else None

    def begin(self, shards: int, config: DirectoryConfig) -> Generation:
        """A new, empty directory for a generation beside whatever is there. Nobody knows it yet. Raises StoreError."""
        path = self.path / f"gen-{self._next_number():06}"
        try:
            make_directory(path)
            try:
                for shard in range(shards):
                    _begin_shard(path / f"shard-{shard:03}")
            except OSError:
                shutil.rmtree(path, ignore_errors=True)
                raise
        except OSError as error:
            raise disk_error(f"{path} cannot be made", error, path=str(path)) from error
        return Generation(path, GenerationInfo(f"{path.name}-{os.urandom(8).hex()}", shards, config))

    def create(self, shards: int, config: DirectoryConfig, half_bytes: int) -> Generation:
        """Build an empty generation beside whatever is there, and make it durable. CURRENT does not name it yet.

        Raises StoreFullError when the disk has no room; nothing is left of it then.
        """
        generation = self.begin(shards, config)
        try:
            for shard in range(shards):
                path = generation.shard(shard)
                Store(path, generation.identity(shard), map_bytes=CREATE_MAP_BYTES, readers_max=1, sync=True).close()
            self.complete(generation, Record(Position(), [], {}, config.machine_version), half_bytes)
        except OSError as error:
            generation.remove()
            raise disk_error(f"{generation.path} cannot be made", error, path=str(generation.path)) from error
        except BaseException:
            generation.remove()
            raise
        return generation

    def complete(self, generation: Generation, record: Record, half_bytes: int) -> None:
        """Give a generation, whose environments are there, its rings and first record, and make all of it durable."""
        for shard in range(generation.shards):
            path = generation.shard(shard)
            create_ring(path / "ring", half_bytes)
            os.close(create_file(path / "owner"))
            for name in ("data.mdb", "ring", "owner"):
                sync_path(path / name)
            sync_directory(path)
        create_decision(generation.decision, record)
        write_checked(generation.path / "GENERATION", generation.info)

    def make_current(self, generation: Generation) -> SyncError | None:
        """From here on there is no way back: the next start, whoever dies, finds this generation.

        What is raised has changed nothing. Returned is what keeps the new name from the disk: a power loss may bring
        the old one back, so both generations must stay.
        """
        replace_file(self.path / "CURRENT", generation.path.name.encode())
        try:
            sync_directory(self.path)
        except SyncError as error:
            return error
        return None

    def names(self, generation: Generation) -> bool:
        """Whether CURRENT names it, or may."""
        try:
            return self._current_name() == generation.path.name
        except (OSError, EngineError):
            return True

    def discard(self, generation: Generation) -> None:
        """Remove a generation that is not wanted, unless CURRENT names it."""
        if not self.names(generation):
            generation.remove()

    def await_predecessors(self, timeout_ms: int) -> None:
        """Return when no worker of an earlier run lives in any generation: what they write in may be removed then.

        One that comes later finds its coordinator gone before it touches anything. Blocks for up to `timeout_ms` a
        shard; EngineLockedError names the worker that does not end.
        """
        with ExitStack() as held:
            for owner in [owner for path in self._generations() for owner in sorted(path.glob("shard-*/owner"))]:
                lock = Lock(owner)
                held.callback(lock.close)
                lock.take(timeout_ms, sign=False)

    def remove_half_built(self) -> None:
        """Delete the generations that CURRENT does not name: an unfinished creation left them. CURRENT is on the disk
        before that."""
        sync_directory(self.path)
        current = self._current_name()
        for path in self._generations():
            if path.name != current:
                shutil.rmtree(path)

    def sweep_beside(self) -> None:
        """Remove what a death left of files that were being replaced: plain files with names of ours, no others. What
        cannot be removed is in nobody's way."""
        files = [self.path / name for name in _REPLACED]
        for generation in self._generations():
            files += [generation / "GENERATION", *generation.glob("shard-*/ring")]
        for file in files:
            beside = file.with_name(file.name + BESIDE)
            with suppress(OSError):
                if stat.S_ISREG(beside.lstat().st_mode):
                    beside.unlink()

    def _next_number(self) -> int:
        names = [path.name.removeprefix(SET_ASIDE) for path in self.path.iterdir()]
        return max([int(name[4:]) for name in names if _NAME.fullmatch(name)], default=0) + 1

    def bytes_on_disk(self) -> int:
        """Disk blocks in use by everything in the directory, in bytes. What comes or goes meanwhile may be missing."""
        used = 0
        for folder, folders, files in os.walk(self.path):
            for name in folders + files:
                with suppress(OSError):
                    used += Path(folder, name).lstat().st_blocks * 512
        return used


def _begin_shard(path: Path) -> None:
    """The directory of a shard, and in it the files that LMDB would make with modes of its own. The readers' table gets
    its disk here, since LMDB writes into it unasked: without any, that is a SIGBUS."""
    make_directory(path)
    os.close(create_file(path / "data.mdb"))
    _make_readers_table(path / "lock.mdb")


def _make_readers_table(path: Path) -> None:
    descriptor = create_file(path)
    try:
        allocate(descriptor, 0, LOCK_BYTES)
    finally:
        os.close(descriptor)


def new_lineage() -> str:
    """Unlike any other log's."""
    return os.urandom(16).hex()
