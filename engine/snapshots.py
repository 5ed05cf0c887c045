"""Snapshots on the disk: writing one into place, checking one before it is installed, keeping the newest. No loop.

Every method blocks on files; the engine calls the long ones in a thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.config import EngineConfig
from engine.contract import SnapshotInfo, SnapshotMetadata
from engine.errors import SnapshotDamagedError, SnapshotError, SnapshotFormatError, SnapshotStaleError
from engine.files import make_directories, read_json, sync_directory, write_json
from engine.generations import DirectoryConfig
from engine.install import Origin, origin_of, verify_snapshot
from engine.manifest import SNAPSHOT_FORMAT, Manifest, PartInfo, read_manifest, write_manifest
from engine.pinning import Sealed, part_name
from engine.retention import Partial, prune, remove_snapshot, snapshot_info, sweep, valid_snapshots
from ipc.errors import hint_for
from shards.machine import Machine
from shards.types import LogId

METADATA = "snapshot-metadata"
log = logging.getLogger("shardengine")


class Snapshots:
    """The snapshots of one data directory. `newest` is the last one that a power loss would be recovered from."""

    def __init__(self, directory: Path, machine: type[Machine], config: EngineConfig) -> None:
        self._directory = directory
        self._machine = machine
        self._config = config
        self.newest = LogId(0, 0)
        self.metadata: SnapshotMetadata | None = None

    @property
    def path(self) -> Path:
        return self._directory / "snapshots"

    def start(self, lineage: str) -> None:
        """Sweep what dead runs left; see what is there."""
        sweep(self.path)
        if self.path.is_dir():
            sync_directory(self.path)  # what an earlier run could not say for sure of the names it gave
        self.look(lineage)
        try:
            self.metadata = read_json(self._directory / METADATA, SnapshotMetadata)
        except FileNotFoundError:
            self.metadata = None

    def look(self, lineage: str) -> None:
        """The state is of `lineage` now: only snapshots of that would replace it."""
        own = [info.last_included for info in self.all() if read_manifest(Path(info.path)).lineage == lineage]
        self.newest = max(own, default=LogId(0, 0))

    def all(self) -> list[SnapshotInfo]:
        return valid_snapshots(self.path)

    def partial(self) -> _Partial:
        """A place to write a snapshot in, which is removed unless it was kept. Raises SnapshotError."""
        try:
            return _Partial(Partial(self.path, "create"))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    @contextmanager
    def into(self, directory: Path) -> Iterator[Path]:
        """Write into `directory`, the caller's, which must be empty or not there; leave nothing when that fails.

        Raises SnapshotError when it is not empty, or cannot be made.
        """
        made = not directory.exists()
        try:
            make_directories(directory)
            foreign = sorted(os.listdir(directory))
        except OSError as error:
            raise _unwritable(directory, error) from error
        if foreign:
            raise SnapshotError(
                f"{directory} is not empty: it holds {foreign[0]!r}", hint="name a new directory", path=str(directory)
            )
        try:
            yield directory
        except BaseException:
            for path in directory.iterdir():
                path.unlink()
            if made:
                directory.rmdir()
            raise

    def seal(self, directory: Path, fixed: DirectoryConfig, sealed: Sealed) -> Manifest:
        """Write the manifest of parts that are on the disk: from here on `directory` holds a snapshot."""
        position = sealed.position
        manifest = Manifest(
            format=SNAPSHOT_FORMAT,
            lineage=fixed.lineage,
            last_included=LogId(position.index, position.term),
            clock=position.clock,
            term_runs=sealed.term_runs,
            slots=fixed.slots,
            shards=len(sealed.parts),
            machine=fixed.machine,
            machine_version=self._machine.version,
            limits=fixed.limits,
            bad_entry=fixed.bad_entry,
            parts=[
                PartInfo(part_name(shard), part.size, part.entries, part.checksum.hex())
                for shard, part in enumerate(sealed.parts)
            ],
        ).sealed()
        try:
            sync_directory(directory)
            write_manifest(directory, manifest)
        except OSError as error:
            raise _unwritable(directory, error) from error
        return manifest

    def keep(self, partial: _Partial) -> SnapshotInfo:
        """Give a sealed snapshot its name among the others, and remove the oldest beyond `snapshots_keep`.

        One of the same log at the same entry holds the same state, and stays; one of another log makes way. Raises
        SnapshotError when what lies there is neither, or the disk refuses.
        """
        manifest = read_manifest(partial.path)
        path = self.path / manifest.name
        try:
            there = snapshot_info(path)
            if there is not None and read_manifest(path).lineage != manifest.lineage:
                remove_snapshot(path)
                there = None
            info = there or snapshot_info(partial.seal(manifest.name))
            prune(self.path, self._config.snapshots_keep)
        except OSError as error:
            raise _unwritable(path, error) from error
        if info is None:
            raise SnapshotDamagedError(f"{path} is not what was written", hint="check the disk", path=str(path))
        self.newest = max(self.newest, info.last_included)
        self.metadata = SnapshotMetadata(info.last_included, info.checksum)
        return info

    def verified(
        self, path: Path, metadata: SnapshotMetadata | None, fixed: DirectoryConfig
    ) -> tuple[SnapshotMetadata, Origin]:
        """The snapshot at `path`, verified in full: its name, and what to build from. `fixed` is what the engine has.

        Raises SnapshotDamagedError when it is damaged or not the one that `metadata` names, SnapshotFormatError when
        it is another machine's, or has limits that the configuration forbids.
        """
        manifest = read_manifest(path)
        if metadata is not None:
            self._check_named(path, manifest, metadata)
        self._check_kind(path, manifest)
        manifest = verify_snapshot(path)
        for what in ("lineage", "limits", "bad_entry"):
            found, own = getattr(manifest, what), getattr(fixed, what)
            if found != own:
                log.warning("%s brings another %s along: %r instead of %r", path, what, found, own)
        return metadata_of(manifest), origin_of(path, manifest)

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

    def check_newer(self, origin: Origin, applied: LogId, *, force: bool) -> None:
        """Raises SnapshotStaleError when `origin` is older than what is applied, unless forced."""
        if origin.position.index < applied.index and not force:
            raise SnapshotStaleError(
                f"the snapshot ends at index {origin.position.index}; the state stands at {applied.index}",
                hint="restore(path, force=True) goes back",
                asked=origin.position.index,
                applied=applied.index,
            )

    def persist(self, metadata: SnapshotMetadata) -> None:
        write_json(self._directory / METADATA, metadata)
        self.metadata = metadata


def metadata_of(manifest: Manifest) -> SnapshotMetadata:
    """What names the snapshot of that manifest."""
    return SnapshotMetadata(manifest.last_included, bytes.fromhex(manifest.checksum))


def _unwritable(path: Path, error: OSError) -> SnapshotError:
    return SnapshotError(f"cannot write {path}: {error}", hint=hint_for(error), path=str(path))


class _Partial:
    """A partial snapshot for the length of a `with`."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self.path = partial.path

    def seal(self, name: str) -> Path:
        return self._partial.seal(name)

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self._partial.remove()


def newest_trusted(directory: Path, fixed: DirectoryConfig) -> Origin | None:
    """The newest snapshot in a data directory that belongs to its log and machine and is whole; None: there is none."""
    for info in reversed(valid_snapshots(directory / "snapshots")):
        path = Path(info.path)
        try:
            manifest = verify_snapshot(path)
        except SnapshotError as error:
            log.warning("not restored: %s", error)
            continue
        own = (fixed.lineage, fixed.machine, fixed.limits, fixed.bad_entry)
        if (manifest.lineage, manifest.machine, manifest.limits, manifest.bad_entry) == own:
            return origin_of(path, manifest)
        log.warning("not restored: %s is of another lineage, machine, or set of limits", path)
    return None
