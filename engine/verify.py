"""Judge what lies at rest, a stopped directory or a snapshot, or what a live engine shows. Changes nothing.

A page that is wrong under a right checksum can end the process that opens it, inside liblmdb. So the files are looked
at in a child: what that does not survive is a finding, and another child goes on with the next file.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shardengine.engine.beside import each
from shardengine.engine.commit.decision import DecisionFile, recover
from shardengine.engine.config import load_config
from shardengine.engine.errors import EngineError, FormatError, StoreError
from shardengine.engine.read.attach import Reader
from shardengine.engine.run.launch import launch_of, machine_name
from shardengine.engine.snapshot.check import Claim, Verdict, claims_of, fault_of_records, judge
from shardengine.engine.snapshot.manifest import Manifest, read_manifest
from shardengine.engine.snapshot.parts import damaged, read_part
from shardengine.engine.storage.files import Lock, data_path
from shardengine.engine.storage.generations import Directory, Generation
from shardengine.engine.storage.hardstate import HardStateFile
from shardengine.engine.storage.matching import check_machine
from shardengine.engine.storage.placing import made
from shardengine.ipc.errors import hint_for
from shardengine.ipc.ring import RingReader
from shardengine.shards.digest import checksum
from shardengine.shards.kv import KeyValue
from shardengine.shards.machine import Machine
from shardengine.shards.store import ReadTx
from shardengine.shards.types import LogId, Standing
from shardengine.shards.worker import Process, import_machine

log = logging.getLogger("shardengine")

PREDECESSORS_MS = 30_000
"""How long workers whose coordinator was killed may take to end, milliseconds."""

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
"""What a page that is wrong can end a process with."""
_PROGRAM = "from shardengine.engine.verify import child; child(*sys.argv[1:], given.read())"
_LIVE_MS = 86_400_000
"""How long a live directory may take, milliseconds."""
_CHILD_S, _BYTES_PER_S = 120, 1 << 20  # how long a child may take: so long, and as it reads a very slow disk


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong. `shard` is None when it concerns all of them."""

    shard: int | None
    problem: str


def verify_directory(path: str | Path, machine: type[Machine] | None = None) -> list[Finding]:
    """Everything wrong with the live generation, and with the hard state; empty when all is well. Reads every page and
    every key; blocks that long.

    Whether each key lies where the machine places it is judged by `machine`; None: by the built-in one in a directory
    of that, and not at all in another one's, which a warning in the log then says.

    Raises EngineLockedError while an engine runs on it, FormatError when there is nothing to judge, and
    MachineMismatchError when the directory is of another machine than `machine`; StoreError or ConfigError when this
    host lacks what it takes to look, so that nothing is known.
    """
    directory = Directory(data_path(path))
    if not os.path.lexists(directory.path / "config"):
        raise FormatError(f"{path} is no data directory", hint="name the directory an engine was opened with")
    if os.statvfs(directory.path).f_flag & os.ST_RDONLY:
        return _verify(directory, machine)  # nobody can write there, nor take a lock
    lock = Lock(directory.path / "LOCK")
    try:
        lock.take()
        directory.check_ours()
        directory.await_predecessors(PREDECESSORS_MS)
        return _verify(directory, machine)
    finally:
        lock.close()


class Live(msgspec.Struct, frozen=True):
    """What a live engine shows, judged: the entry it stands at, its records, their digest."""

    findings: list[Finding]
    last_applied: LogId
    entries: int
    digest: bytes


def verify_live(path: str | Path, machine: type[Machine] = KeyValue) -> Live:
    """Judge one cut of a directory beside its engine: every record against the limits and the place that `machine`
    gives its key, and their number. Pages, rings and the decision record are not looked at: they change meanwhile, and
    a page that is wrong may end this process.

    Blocks for as long as it takes to read all of it twice; the engine's files grow meanwhile. Raises as `Reader`.
    """
    instance, findings = made(machine), []
    config = load_config(view_age_max_ms=_LIVE_MS)
    with Reader(path, machine, config=config) as reader, reader.view() as view:
        cut = view.cut()
        generation = reader.generation
        for shard, transaction in enumerate(cut.shards):
            if isinstance(transaction, ReadTx):
                name, limits = generation.shard(shard).name, generation.info.config.limits
                fault = fault_of_records(Claim(name, generation.identity(shard), limits), transaction, instance)
                findings += [Finding(shard, fault)] if fault else []
        return Live(findings, view.last_applied, len(view), view.digest())


def _verify(directory: Directory, machine: type[Machine] | None) -> list[Finding]:
    try:
        directory.load()
        generation = directory.current()
    except (EngineError, OSError) as error:
        return [Finding(None, str(error))]
    if generation is None:
        return [Finding(None, "there is no live generation: it was never finished, or it was set aside")]
    fixed = generation.info.config
    if machine is not None:
        check_machine(fixed, machine, directory.path)

    findings = _judge_hard_state(directory)
    standings: list[Standing] = []
    claims = [
        Claim(generation.shard(shard).name, generation.identity(shard), fixed.limits)
        for shard in range(generation.shards)
    ]
    for shard, verdict in enumerate(_in_children(generation.path, claims, _placing(machine, fixed.machine))):
        findings += [Finding(shard, problem) for problem in verdict.problems]
        if verdict.standing is not None:
            standings.append(verdict.standing)
        for name in ("ring", "owner"):
            if not (generation.shard(shard) / name).is_file():
                findings.append(Finding(shard, f"its {name} is missing"))
    if len(standings) == generation.shards:
        findings += _judge(generation, standings)
    return findings


def _judge_hard_state(directory: Directory) -> list[Finding]:
    try:
        HardStateFile(directory.path).judge()
    except (EngineError, OSError) as error:
        return [Finding(None, str(error))]
    return []


def _placing(machine: type[Machine] | None, name: str) -> type[Machine] | None:
    """The machine that says where keys belong in files of machine `name`; None: nobody here knows."""
    if machine is None and name == KeyValue.name:
        return KeyValue
    if machine is None:
        log.warning("whether keys lie on the right shards was not checked: that takes the machine %r", name)
    return machine


def _judge(generation: Generation, standings: list[Standing]) -> list[Finding]:
    """Where shards stand, against the record; the parts of a group that is still to be redone, against their sums."""
    try:
        decision = DecisionFile(generation.decision, readonly=True)
    except (EngineError, OSError) as error:
        return [Finding(None, str(error))]
    decision.close()
    try:
        recovery = recover(decision.record, standings)
    except EngineError as error:
        return [Finding(None, str(error))]
    findings: list[Finding] = []
    redo = (recovery.redo.participants if recovery.redo else frozenset()) - recovery.committed
    for shard in sorted(redo):
        ring = RingReader(generation.shard(shard) / "ring")
        extent = decision.record.participants[shard]
        if checksum(ring.view(extent.offset, extent.length)) != extent.checksum:
            findings.append(Finding(shard, f"the decided part at {extent.offset} in its ring fails its checksum"))
        ring.close()
    return findings


def verify_snapshot(path: Path, *, deep: bool = False, machine: type[Machine] | None = None) -> Manifest:
    """Check everything a snapshot says of itself: its manifest, every part's length and checksum, in parallel; with
    `deep`, every page and every record of them. Blocks for as long as it takes to read them.

    `machine` as in `verify_directory`. Raises SnapshotDamagedError or SnapshotFormatError, which name the part, and
    MachineMismatchError; StoreError or ConfigError as `verify_directory`.
    """
    manifest = read_manifest(path)
    each(lambda part: read_part(path / part.file, part), manifest.parts)
    if deep:
        verdicts = _in_children(path, claims_of(manifest), _placing(machine, manifest.machine))
        for part, verdict in zip(manifest.parts, verdicts, strict=True):
            if verdict.problems:
                raise damaged(path / part.file, "; ".join(verdict.problems[:3]))
    return manifest


def _in_children(folder: Path, claims: list[Claim], machine: type[Machine] | None) -> list[Verdict]:
    """A verdict for each claim. A child that ends by a fault, or takes too long, is the verdict on what it was looking
    at. StoreError: it ended otherwise, and nothing is known; ConfigError: none can be started."""
    verdicts: list[Verdict] = []
    while len(verdicts) < len(claims):
        found, end = _in_a_child(folder, claims[len(verdicts) :], machine)
        verdicts += found
        if len(verdicts) < len(claims):
            verdicts.append(Verdict([f"{folder / claims[len(verdicts)].file}: {end}"]))
    return verdicts


def _in_a_child(folder: Path, claims: list[Claim], machine: type[Machine] | None) -> tuple[list[Verdict], str]:
    """The verdicts of one child, and how it ended before it had one for all."""
    launch = launch_of(load_config().interpreter)
    name = "" if machine is None else machine_name(machine)
    seconds = _CHILD_S + sum(size for claim in claims for size in _sizes(folder / claim.file)) / _BYTES_PER_S
    try:
        done = subprocess.run(
            launch.child(_PROGRAM, str(folder), name),
            input=launch.told(msgspec.json.encode(claims)),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except OSError as error:
        raise StoreError(f"no process can be had to look at {folder}: {error}", hint=hint_for(error)) from error
    except subprocess.TimeoutExpired as late:
        return _verdicts(late.stdout or b""), f"looking at it took longer than {seconds:.0f} s"
    verdicts = _verdicts(done.stdout)
    if -done.returncode in _FAULTS:
        kind = signal.Signals(-done.returncode).name
        return verdicts, f"looking at it ended the process with {kind}: a page is wrong in a way LMDB does not survive"
    if len(verdicts) < len(claims):
        raise _unknown(folder / claims[len(verdicts)].file, done)
    return verdicts, ""


def _unknown(file: Path, done: subprocess.CompletedProcess[bytes]) -> StoreError:
    """The child ended, and what it was looking at is not why."""
    said = done.stderr.decode(errors="replace").strip()[-500:]
    how = f"exit status {done.returncode}: {said}"
    if done.returncode < 0:
        how = f"signal {-done.returncode} ({signal.strsignal(-done.returncode)})"
    return StoreError(
        f"{file} was not judged: the process that looked at it ended with {how}",
        hint="nothing is known of it; verify again, with more memory if the system was short of it",
        path=str(file),
    )


def _sizes(path: Path) -> Iterator[int]:
    """Bytes on the disk of a file, or of the files in a directory."""
    for file in path.iterdir() if path.is_dir() else [path]:
        try:
            yield file.lstat().st_blocks * 512
        except OSError:
            yield 0


def _verdicts(lines: bytes) -> list[Verdict]:
    return [msgspec.json.decode(line, type=Verdict) for line in lines.splitlines(keepends=True) if line.endswith(b"\n")]


def child(folder: str, name: str, claims: bytes) -> None:
    """Be the child: write a verdict for each of the claims, one JSON a line, as soon as it is there."""
    Process.is_worker = True  # the machine's module may make an engine
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout = sys.stderr  # what the machine's module may print is no verdict
    machine = import_machine(name)() if name else None
    for claim in msgspec.json.decode(claims, type=list[Claim]):
        os.write(1, msgspec.json.encode(judge(claim, Path(folder), machine)) + b"\n")
