"""Snapshot directories made by hand, any bytes as parts under a whole manifest; deaths at every step of file work."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine.engine.snapshot.manifest import Manifest, PartInfo, write_manifest
from shardengine.engine.snapshot.transfer import Piece, SnapshotAssembler, stream_snapshot
from shardengine.shards.digest import checksum128
from shardengine.shards.types import Limits, LogId

PARTS = [b"", bytes(range(100)), b"", b"x" * 64, b""]
PIECE = 32  # four pieces of part 1, the last one short; two full ones of part 3

STEPS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock", "os.fsync"})


def part_of(shard: int, content: bytes) -> PartInfo:
    return PartInfo(f"shard-{shard:03}.mdb", len(content), len(content) // 10, checksum128(content).hex())


def manifest_for(parts: Sequence[bytes], /, index: int = 7, term: int = 2, **changes: Any) -> Manifest:
    manifest = Manifest(
        format=1,
        lineage="a lineage",
        last_included=LogId(index, term),
        clock=1_000,
        term_runs=[LogId(1, term)],
        slots=16_384,
        shards=len(parts),
        machine="kv",
        machine_version=1,
        limits=Limits(),
        bad_entry="fail",
        parts=[part_of(shard, content) for shard, content in enumerate(parts)],
    )
    return msgspec.structs.replace(manifest, **changes).summed()


def make_snapshot(folder: Path, parts: Sequence[bytes], /, index: int = 7, term: int = 2, **changes: Any) -> Path:
    """A snapshot in `folder`, under its proper name. `changes` are made to its manifest."""
    manifest = manifest_for(parts, index, term, **changes)
    path = folder / manifest.name
    path.mkdir(parents=True)
    for shard, content in enumerate(parts):
        (path / f"shard-{shard:03}.mdb").write_bytes(content)
    write_manifest(path, manifest)
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` by relative name, and every directory, with None."""
    if not folder.exists():
        return {}
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def assemble(pieces: Sequence[Piece] | Iterator[Piece], directory: Path) -> Path:
    with SnapshotAssembler(directory) as assembler:
        for piece in pieces:
            assembler.add(piece)
        return assembler.finish()


def pieces_in(folder: Path, parts: list[bytes] = PARTS, piece_bytes: int = PIECE, index: int = 7) -> list[Piece]:
    path = make_snapshot(folder, parts, index)
    return list(stream_snapshot(path, piece_bytes))


def changed(piece: Piece, **changes: Any) -> Piece:
    return msgspec.structs.replace(piece, **changes)


def resummed(piece: Piece, **changes: Any) -> Piece:
    return changed(piece, **changes).summed()


def file_work(patch: pytest.MonkeyPatch) -> list[str]:
    """From now on, every file that is synced ("sync NAME") and every name that is given ("name NAME"), in order."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def traced_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def traced_rename(source: Path, target: Path) -> None:
        rename(source, target)
        done.append(f"name {Path(target).name}")

    patch.setattr(os, "fsync", traced_fsync)
    patch.setattr(os, "rename", traced_rename)
    return done


def deaths(work: Callable[[], object]) -> Iterator[int]:
    """Run `work` in children that are killed at its first step on the file system, its second, and so on.

    Yields the number of the step after each death, and ends when a child has lived through all of them.
    """
    fatal = 1
    while _dies(work, fatal):
        yield fatal
        fatal += 1


def _dies(work: Callable[[], object], fatal: int) -> bool:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _kill_at(fatal)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the work failed before its step {fatal}: status {status}"
    return status != 0


def _kill_at(fatal: int) -> None:
    """From now on this process dies before it takes its `fatal`-th step."""
    reached = 0

    def step(event: str, _: tuple[Any, ...]) -> None:
        nonlocal reached
        if event in STEPS:
            reached += 1
            if reached == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    original = os.fsync

    def fsync(descriptor: Any) -> None:
        step("os.fsync", ())
        original(descriptor)

    setattr(os, "fsync", fsync)  # noqa: B010
    sys.addaudithook(step)
