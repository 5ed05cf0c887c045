"""Snapshots on the disk: writing one into place, checking one before it is installed, keeping the newest. No loop.

Every method blocks on files; the engine calls the long ones in a thread.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from shardengine.engine.commit.pinning import Completed, part_name
from shardengine.engine.config import EngineConfig
from shardengine.engine.contract import SnapshotInfo, SnapshotMetadata
from shardengine.engine.errors import (
    FileRefusedError,
    FormatError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotFormatError,
    SnapshotStaleError,
)
from shardengine.engine.snapshot.build import Origin, Snapshot, Target, install
from shardengine.engine.snapshot.folder import (
    Found,
    Partial,
    prune,
    snapshot_at,
    snapshot_info,
    snapshots_in,
    sweep,
    sweep_removed,
    take_name,
    valid_snapshots,
)
from shardengine.engine.snapshot.manifest import SNAPSHOT_FORMAT, Manifest, PartInfo, read_manifest, write_manifest
from shardengine.engine.snapshot.parts import read_part
from shardengine.engine.storage.files import read_json, sync_directory, write_json
from shardengine.engine.storage.generations import Directory, DirectoryConfig, Generation, new_lineage
from shardengine.ipc.errors import LACKING, hint_for
from shardengine.shards.machine import Machine
from shardengine.shards.types import LogId

METADATA = "snapshot-metadata"
log = logging.getLogger("shardengine")


class Known:
    """What is known of snapshots wherever they are: of which `machine` they must be, and which was the last one."""

    def __init__(self, machine: type[Machine], config: EngineConfig) -> None:
        self._machine = machine
        self._config = config
        self.metadata: SnapshotMetadata | None = None

    def complete(self, directory: Path, fixed: DirectoryConfig, completed: Completed) -> Manifest:
        """Write the manifest of parts that are on the disk: from here on `directory` holds a snapshot."""
        position = completed.position
        manifest = Manifest(
            format=SNAPSHOT_FORMAT,
            lineage=fixed.lineage,
            last_included=LogId(position.index, position.term),
            clock=position.clock,
            term_runs=completed.term_runs,
            slots=fixed.slots,
            shards=len(completed.parts),
            machine=fixed.machine,
            machine_version=self._machine.version,
            limits=fixed.limits,
            bad_entry=fixed.bad_entry,
            parts=[
                PartInfo(part_name(shard), part.size, part.entries, part.checksum.hex())
                for shard, part in enumerate(completed.parts)
            ],
        ).summed()
        try:
            sync_directory(directory)
            write_manifest(directory, manifest)
        except OSError as error:
            raise _unwritable(directory, error) from error
        return manifest

    def asked_for(self, path: Path, metadata: SnapshotMetadata | None, fixed: DirectoryConfig) -> Snapshot:
        """The snapshot at `path`, as far as its manifest says. `fixed` is what the engine has.

        Raises SnapshotDamagedError when that is damaged or not the one that `metadata` names, SnapshotFormatError when
        it is another machine's, or has limits that the configuration forbids.
        """
        manifest = read_manifest(path)
        if metadata is not None:
            self._check_named(path, manifest, metadata)
        self._check_kind(path, manifest)
        for what in ("limits", "bad_entry"):
            found, own = getattr(manifest, what), getattr(fixed, what)
            if found != own:
                log.warning("%s brings other %s along: %r instead of %r", path, what, found, own)
        return Snapshot(path, manifest)

    def _check_named(self, path: Path, manifest: Manifest, metadata: SnapshotMetadata) -> None:
        if manifest.last_included != metadata.last_included or manifest.checksum != metadata.checksum.hex():
            raise SnapshotDamagedError(
                f"{path} is the snapshot {manifest.checksum} at {manifest.last_included}, "
                f"not {metadata.checksum.hex()} at {metadata.last_included}",
                hint="the label or the directory is wrong",
                path=str(path),
            )

    def _check_kind(self, path: Path, manifest: Manifest) -> None:
        machine, config = self._machine, self._config
        if manifest.machine != machine.name or manifest.machine_version > machine.version:
            raise SnapshotFormatError(
                f"{path} belongs to machine {manifest.machine!r} version {manifest.machine_version}, "
                f"not {machine.name!r} version {machine.version}",
                hint="install it with that machine, or a later version of it",
                path=str(path),
            )
        asked = (
            ("key_bytes_max", config.key_bytes_max, manifest.limits.key_bytes_max),
            ("value_bytes_max", config.value_bytes_max, manifest.limits.value_bytes_max),
            ("bad_entry", config.bad_entry, manifest.bad_entry),
        )
        for key, own, found in asked:
            if own is not None and own != found:
                raise SnapshotFormatError(
                    f"{path} was taken with {key}={found!r}; the configuration asks for {own!r}",
                    hint=f"leave {key} out of the configuration: it is part of the state machine",
                    path=str(path),
                )

    def check_newer(self, place: LogId, applied: LogId, *, force: bool) -> None:
        """Raises SnapshotStaleError when `place` is older than what is applied, unless forced."""
        if place.index < applied.index and not force:
            raise SnapshotStaleError(
                f"the snapshot ends at index {place.index}; the state stands at {applied.index}",
                hint="restore(path, force=True) goes back",
                asked=place.index,
                applied=applied.index,
            )

    def remember(self, metadata: SnapshotMetadata) -> None:
        """Until the engine ends. SnapshotError: a file with it could not be read back."""
        try:
            readable = msgspec.json.decode(msgspec.json.encode(metadata), type=SnapshotMetadata) == metadata
        except (msgspec.MsgspecError, TypeError, OverflowError, UnicodeError):
            readable = False
        if not readable:
            raise SnapshotError(f"{metadata!r} names no snapshot", hint="pass a SnapshotMetadata")
        self.metadata = metadata


class Snapshots(Known):
    """The snapshots of one data directory. `newest` is the last one that a power loss would be recovered from."""

    def __init__(self, directory: Path, machine: type[Machine], config: EngineConfig) -> None:
        super().__init__(machine, config)
        self._directory = directory
        self._lineage = ""
        self._here: list[Found] | None = None  # from `start` to the first `look`
        self.newest = LogId(0, 0)

    @property
    def path(self) -> Path:
        return self._directory / "snapshots"

    def start(self) -> None:
        """Sweep what dead runs left, and read what is there. Nothing that lies among the snapshots stops it.

        Raises OSError, or SnapshotError, when this process lacks what it takes to look: `durable()` would fall below
        where the log was cut.
        """
        self._lineage = ""
        try:
            sweep(self.path)
            if self.path.is_dir():
                sync_directory(self.path)  # what an earlier run could not say for sure of the names it gave
        except OSError as error:
            if error.errno in LACKING:
                raise
            log.warning("%s cannot be swept: %s", self.path, error)
        try:
            self._here = snapshots_in(self.path)
        except SnapshotError as error:
            if getattr(error.__cause__, "errno", None) in LACKING:
                raise
            log.warning("%s", error)
            self._here = []
        self.metadata = self._read_metadata()

    def _read_metadata(self) -> SnapshotMetadata | None:
        """What was persisted, or None: it tells the host what it told us, and no state hangs on it."""
        try:
            return read_json(self._directory / METADATA, SnapshotMetadata)
        except FileNotFoundError:
            return None
        except (FormatError, FileRefusedError, OSError) as error:
            log.warning("it is not known which snapshot the host named last: %s", error)
            return None

    def look(self, lineage: str, applied: LogId) -> None:
        """The state is of `lineage` now, and stands at `applied`: only snapshots of its past would replace it.

        One of that lineage ahead of it would not have been passed over, or the state would be there: it is damaged, or
        not ours yet. One that counted before counts on, whether or not it can be read just now: the log may be cut.
        """
        here, self._here = self._here, None
        if here is None:
            here = self._listed()
        own = [one.info.last_included for one in here if one.manifest.lineage == lineage]
        if lineage == self._lineage:
            own.append(self.newest)
        self.newest = max((place for place in own if place <= applied), default=LogId(0, 0))
        self._lineage = lineage

    def _listed(self) -> list[Found]:
        try:
            return snapshots_in(self.path)
        except SnapshotError as error:
            log.warning("%s", error)
            return []

    def all(self) -> list[SnapshotInfo]:
        return valid_snapshots(self.path)

    def partial(self) -> Partial:
        """A place to write a snapshot in, which is removed unless it was kept. Raises SnapshotError."""
        try:
            return Partial(self.path, "create")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def keep(self, partial: Partial) -> SnapshotInfo:
        """Give a complete snapshot its name among the others, and remove what has had its day: see `folder.py`.

        One of the same log at the same entry holds the same state, and stays if it is whole; one of another log makes
        way. Raises SnapshotError when what lies there is neither, or the disk refuses. What cannot be removed stays.
        """
        manifest = read_manifest(partial.path)
        path = self.path / manifest.name
        try:
            info = self._there(path, manifest.lineage) or self._named(partial, path)
        except OSError as error:
            raise _unwritable(path, error) from error
        self.newest = max(self.newest, info.last_included)
        self.metadata = SnapshotMetadata(info.last_included, info.checksum)
        try:
            prune(self.path, self._config.snapshots_keep, manifest)
        except (OSError, SnapshotError) as error:
            log.warning("older snapshots than %s stay: %s", path, error)
        return info

    def _there(self, path: Path, lineage: str) -> SnapshotInfo | None:
        """The snapshot of `lineage` at `path`, read in full: nobody shall rely on it because we had another one."""
        there = snapshot_at(path)
        if there is None or there.manifest.lineage != lineage:
            return None
        for part in there.manifest.parts:
            read_part(path / part.file, part)
        sync_directory(self.path)  # who gave it its name may have died before
        return there.info

    def _named(self, partial: Partial, path: Path) -> SnapshotInfo:
        stranger = take_name(path) if snapshot_at(path) is not None else None
        try:
            info = snapshot_info(partial.seal(path.name))
        except OSError:
            if stranger is not None and not path.exists():
                stranger.rename(path)
            raise
        if stranger is not None:
            sweep_removed(self.path)
        if info is None:
            raise SnapshotDamagedError(f"{path} is not what was written", hint="check the disk", path=str(path))
        return info

    def admitted(self, origin: Origin, applied: LogId, *, force: bool) -> Origin:
        """`origin`, as what it may take the place of a state at `applied`. Blocks on files.

        It keeps its lineage, of which it is a state, unless entries that were applied behind it are given up: then
        another future begins, and no snapshot of the one that was left may ever replace it. So it does when a snapshot
        of that lineage is here whose state is ahead of it.

        Raises SnapshotStaleError when it is older than what is applied, unless forced; SnapshotError when what is here
        cannot be listed.
        """
        place = LogId(origin.position.index, origin.position.term)
        self.check_newer(place, applied, force=force)
        lineage = origin.config.lineage
        here = [one for one in snapshots_in(self.path) if one.manifest.lineage == lineage]
        ahead = any(one.info.last_included > place for one in here)
        if place.index >= applied.index and not ahead:
            return origin
        return msgspec.structs.replace(origin, config=msgspec.structs.replace(origin.config, lineage=new_lineage()))

    def installed(self, snapshot: Snapshot) -> None:
        """Remember for good which snapshot the state came from."""
        self.metadata = metadata_of(snapshot.manifest)
        try:
            self.persist(self.metadata)
        except OSError as error:
            log.warning("the metadata of the snapshot that was installed is kept until the engine ends: %s", error)

    def persist(self, metadata: SnapshotMetadata) -> None:
        """For good. Raises as `remember`; OSError."""
        self.remember(metadata)
        write_json(self._directory / METADATA, metadata)


def metadata_of(manifest: Manifest) -> SnapshotMetadata:
    """What names the snapshot of that manifest."""
    return SnapshotMetadata(manifest.last_included, bytes.fromhex(manifest.checksum))


def _unwritable(path: Path, error: OSError) -> SnapshotError:
    return SnapshotError(f"cannot write {path}: {error}", hint=hint_for(error), path=str(path))


def restore_newest(directory: Directory, fixed: DirectoryConfig, target: Target) -> Generation | None:
    """A generation with the state of the newest snapshot in a data directory that belongs to its log and machine and
    is whole; None: there is none. Raises StoreFullError when there is no room for it, SnapshotError when this process
    lacks what it takes to look."""
    own = (fixed.lineage, fixed.machine, fixed.limits, fixed.bad_entry)
    for found in reversed(snapshots_in(directory.path / "snapshots")):
        manifest = found.manifest
        if (manifest.lineage, manifest.machine, manifest.limits, manifest.bad_entry) != own:
            log.warning("not restored: %s is of another lineage, machine, or set of limits", found.path)
            continue
        try:
            return install(directory, Snapshot(found.path, manifest), target)
        except (SnapshotDamagedError, SnapshotFormatError) as error:
            log.warning("not restored: %s", error)
    return None
