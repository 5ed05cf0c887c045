"""The manifest of a snapshot: what it contains, written last. A directory without a valid one is no snapshot.

    SNAPSHOT/  manifest.json  shard-000.mdb  shard-001.mdb  ...

`manifest.json` is the JSON of a `Manifest`. Its `checksum` is the XXH3-128, in hex, of the same JSON, without white
space, with an empty `checksum`; a manifest that was edited does not match it any more. Each part's checksum is the
XXH3-128 of its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from engine.errors import SnapshotDamagedError, SnapshotFormatError
from engine.files import write_json
from shards.digest import checksum128
from shards.types import Limits, LogId

SNAPSHOT_FORMAT = 1
MANIFEST = "manifest.json"


class PartInfo(msgspec.Struct, frozen=True):
    """One shard's part: its file's name, size in bytes, live records, and XXH3-128 in hex."""

    file: str
    bytes: int
    entries: int
    checksum: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a snapshot is. `last_included` and `clock` say where the log goes on; `term_runs` the first index of each
    term up to there; `lineage` which log and directory family it comes from."""

    format: int
    lineage: str
    last_included: LogId
    clock: int
    term_runs: list[LogId]
    slots: int
    shards: int
    machine: str
    machine_version: int
    limits: Limits
    bad_entry: str
    parts: list[PartInfo]
    checksum: str = ""

    def sealed(self) -> Manifest:
        """This manifest with the checksum that belongs to it."""
        return msgspec.structs.replace(self, checksum=self.expected_checksum())

    def expected_checksum(self) -> str:
        return checksum128(msgspec.json.encode(msgspec.structs.replace(self, checksum=""))).hex()

    @property
    def name(self) -> str:
        """The directory a snapshot of this content is kept in: index and term."""
        return f"{self.last_included.index:020}-{self.last_included.term:010}"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Returns when the manifest, and its name, are on the disk. `manifest` must be sealed."""
    assert manifest.checksum == manifest.expected_checksum()
    write_json(directory / MANIFEST, manifest)


def read_manifest(directory: Path) -> Manifest:
    """Raises SnapshotFormatError when this version cannot read it, SnapshotDamagedError when it is missing or does not
    match its own checksum."""
    path = directory / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise SnapshotDamagedError(f"{directory} is no snapshot: it has no {MANIFEST}", path=str(directory)) from None
    except OSError as error:
        raise SnapshotDamagedError(f"{path} is unreadable: {error}", path=str(directory)) from error
    except ValueError as error:
        raise SnapshotDamagedError(
            f"{path} {error}", hint="take another snapshot, or fetch this one again", path=str(directory)
        ) from error


def parse_manifest(data: bytes, what: str) -> Manifest:
    """The manifest whose JSON is `data`, found at `what`.

    Raises SnapshotFormatError when this version cannot read it; ValueError when it is no manifest, or not what its
    checksum says.
    """
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
        if found.get("format") != SNAPSHOT_FORMAT:
            raise SnapshotFormatError(
                f"{what} has format {found.get('format')!r}; this version reads format {SNAPSHOT_FORMAT}",
                hint="install it with the version that wrote it",
                format=found.get("format"),
            )
        manifest = msgspec.convert(found, Manifest)
    except msgspec.MsgspecError as error:
        raise ValueError(f"is no manifest: {error}") from error
    if manifest.checksum != manifest.expected_checksum():
        raise ValueError("does not match its checksum: it was edited or damaged")
    return manifest
