"""The manifest of a snapshot: what it contains, written last. A directory without a valid one is no snapshot.

    SNAPSHOT/  manifest.json  shard-000.mdb  shard-001.mdb  ...

`manifest.json` is the JSON of a `Manifest`. Its `checksum` is the XXH3-128, in hex, of the same JSON, without white
space, with an empty `checksum`; a manifest that was edited does not match it any more. Each part's checksum is the
XXH3-128 of its file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from shardengine.engine.config import KEY_BYTES_LIMIT, VALUE_BYTES_LIMIT
from shardengine.engine.errors import SnapshotDamagedError, SnapshotError, SnapshotFormatError
from shardengine.engine.intake.tail import can_be_runs
from shardengine.engine.storage.files import write_whole
from shardengine.ipc.errors import LACKING, hint_for
from shardengine.ipc.files import read_plain
from shardengine.shards.digest import checksum128
from shardengine.shards.placement import SHARDS_MAX, SLOTS
from shardengine.shards.types import U64_MAX, Limits, LogId

SNAPSHOT_FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 64 << 20

_PART_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._-]{0,57}", re.ASCII)
_CHECKSUM = re.compile(r"[0-9a-f]{32}", re.ASCII)
_BAD_ENTRY = ("fail", "reject")


class PartInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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

    def summed(self) -> Manifest:
        """This manifest with the checksum that belongs to it."""
        return msgspec.structs.replace(self, checksum=self.expected_checksum())

    def expected_checksum(self) -> str:
        return checksum128(msgspec.json.encode(msgspec.structs.replace(self, checksum=""))).hex()

    @property
    def name(self) -> str:
        """The directory a snapshot of this content is kept in: index and term."""
        return f"{self.last_included.index:020}-{self.last_included.term:010}"


def manifest_bytes(manifest: Manifest) -> bytes:
    """What its file holds, to the byte."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Returns when the manifest, and its name, are on the disk. `manifest` must have its checksum."""
    assert manifest.checksum == manifest.expected_checksum()
    write_whole(directory / MANIFEST, manifest_bytes(manifest))


def read_manifest(directory: Path) -> Manifest:
    """Raises SnapshotFormatError when this version cannot read it; SnapshotDamagedError when it is missing, no plain
    file, does not match its own checksum, or says what no honest manifest says; SnapshotError when this process lacks
    what it takes to look."""
    path = directory / MANIFEST
    try:
        return parse_manifest(read_plain(path, MANIFEST_BYTES_MAX), str(path))
    except FileNotFoundError:
        raise SnapshotDamagedError(f"{directory} is no snapshot: it has no {MANIFEST}", path=str(directory)) from None
    except OSError as error:
        kind = SnapshotError if error.errno in LACKING else SnapshotDamagedError
        raise kind(f"{path} is unreadable: {error}", hint=hint_for(error), path=str(directory)) from error
    except ValueError as error:
        raise SnapshotDamagedError(
            f"{path} {error}", hint="take another snapshot, or fetch this one again", path=str(directory)
        ) from error


def parse_manifest(data: bytes, what: str) -> Manifest:
    """The manifest whose JSON is `data`, found at `what`. The one judge of manifests, wherever they come from.

    Raises SnapshotFormatError when this version cannot read it; ValueError when it is no manifest, not what its
    checksum says, or says what cannot be.
    """
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
        if found.get("format") != SNAPSHOT_FORMAT:
            raise _other_format(what, "format", found.get("format"), SNAPSHOT_FORMAT)
        manifest = msgspec.convert(found, Manifest)
        expected = manifest.expected_checksum()
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"is no manifest: {error}") from error
    if manifest.checksum != expected:
        raise ValueError("does not match its checksum: it was edited or damaged")
    if manifest.slots != SLOTS:
        raise _other_format(what, "slots", manifest.slots, SLOTS)
    if fault := _fault_of(manifest):
        raise ValueError(f"says what cannot be: {fault}")
    return manifest


def _other_format(what: str, key: str, found: object, own: int) -> SnapshotFormatError:
    told = found if isinstance(found, int | str) else type(found).__name__
    return SnapshotFormatError(
        f"{what} has {key} {told!r}; this version reads {key} {own}",
        hint="install it with the version that wrote it",
        **{key: told},
    )


def _fault_of(manifest: Manifest) -> str:
    """What no honest manifest says, or "": names that lead out of the directory or clash, numbers that cannot be."""
    place, limits = manifest.last_included, manifest.limits
    if not 1 <= manifest.shards <= SHARDS_MAX or len(manifest.parts) != manifest.shards:
        return f"{len(manifest.parts)} parts for {manifest.shards} shards"
    for what, number in (("index", place.index), ("term", place.term), ("clock", manifest.clock)):
        if not 0 <= number <= U64_MAX:
            return f"{what} {number}"
    if not (1 <= limits.key_bytes_max <= KEY_BYTES_LIMIT and 1 <= limits.value_bytes_max <= VALUE_BYTES_LIMIT):
        return f"{limits}"
    if manifest.bad_entry not in _BAD_ENTRY:
        return f"bad_entry {manifest.bad_entry!r}"
    return _fault_of_terms(manifest) or _fault_of_parts(manifest.parts)


def _fault_of_terms(manifest: Manifest) -> str:
    runs, place = manifest.term_runs, manifest.last_included
    if not can_be_runs(runs, place):
        return f"terms up to {runs[-1]} in a log that ends at {place}"
    return ""


def _fault_of_parts(parts: list[PartInfo]) -> str:
    for part in parts:
        if not _PART_NAME.fullmatch(part.file) or part.file.startswith(MANIFEST):
            return f"{part.file!r} is no name for a part: it leads out of the snapshot, or is not like ours"
        if part.bytes < 0 or part.entries < 0 or not _CHECKSUM.fullmatch(part.checksum):
            return f"{part.file}: {part.bytes} bytes with {part.entries} entries and checksum {part.checksum!r}"
        if part.bytes == 0 and (part.entries or part.checksum != checksum128(b"").hex()):
            return f"{part.file}: {part.entries} entries with checksum {part.checksum} in no byte"
    if len({part.file for part in parts}) < len(parts):
        return "two parts have the same name"
    return ""
