"""The process around a shard. Started by the coordinator as `main(spec)`, with two inherited descriptors.

Order of life: ignore the signals that supervisors send to whole groups, take the shard's lock (and wait for it: a
predecessor may still be dying), import the machine, open store and ring, say Hello, serve. It ends when the link does,
when the coordinator's pidfd fires (a forked child of the host may keep the link open), or on Stop.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import itertools
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from ipc.errors import EngineError, LinkClosedError
from ipc.files import open_file
from ipc.link import Link
from ipc.ring import RingReader
from shards import wire
from shards.errors import MachineImportError
from shards.machine import Machine
from shards.shard import Shard, problem_of
from shards.snapshot import COPIER_ORDERS, Copier
from shards.store import Identity, Store
from shards.types import Limits

_RETRY_S = 0.2
_COLLECT_EVERY = 1024  # orders between garbage collections
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class WorkerSpec(msgspec.Struct, frozen=True):
    """All that a worker is told. `link` and `parent` are descriptor numbers: its end of the link, and a pidfd of the
    coordinator, whose pid is `coordinator`. `directory` is encoded as the system does."""

    directory: bytes
    identity: Identity
    machine: str
    limits: Limits
    map_bytes: int
    readers_max: int
    sync: bool
    spin_us: int
    link: int
    parent: int
    coordinator: int
    sys_path: list[str]


def import_machine(name: str) -> type[Machine]:
    """The class that `module:qualname` names. MachineImportError: there is none, or it is no Machine."""
    module, _, qualname = name.partition(":")
    hint = "define the machine class at the top level of a module that is importable from sys.path"
    try:
        found: object = importlib.import_module(module)
        for attribute in qualname.split("."):
            found = getattr(found, attribute)
    except Exception as error:
        raise MachineImportError(
            f"worker cannot import {name}: {type(error).__name__}: {error}", hint=hint, machine=name
        ) from error
    if not (isinstance(found, type) and issubclass(found, Machine)):
        raise MachineImportError(f"{name} is no subclass of Machine", hint=hint, machine=name)
    return found


def main(text: str) -> None:
    """Be a worker, as the JSON of a WorkerSpec says, until the coordinator ends or says Stop."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    spec = msgspec.json.decode(text, type=WorkerSpec)
    end = socket.socket(fileno=spec.link)
    with closing(Link(end, blocking=True, spin_us=spec.spin_us)) as link:
        try:
            _run(spec, link)
        except LinkClosedError:
            pass
        except EngineError as error:
            link.send(wire.encode(wire.Failed(problem_of(error))))


def _run(spec: WorkerSpec, link: Link) -> None:
    directory = Path(os.fsdecode(spec.directory))
    with _owning(directory / "owner", spec.coordinator):
        machine = import_machine(spec.machine)()
        store = Store(directory, spec.identity, map_bytes=spec.map_bytes, readers_max=spec.readers_max, sync=spec.sync)
        ring = RingReader(directory / "ring")
        shard = Shard(store, machine, spec.limits, ring.view)
        solo = store.solo_results()
        results = wire.decode_results(solo) if solo else wire.PartResults({}, {})
        voice = threading.Lock()

        def say(answer: wire.Answer) -> None:
            with voice:
                link.send(wire.encode(answer))

        say(wire.Hello(spec.identity.shard, store.position, results))
        threading.Thread(target=_die_with, args=(spec.parent,), daemon=True).start()
        gc.freeze()
        gc.disable()
        _serve(shard, Copier(store, say), link, say)
        store.close()


@contextmanager
def _owning(path: Path, coordinator: int) -> Iterator[None]:
    """Hold the shard's lock, which the kernel drops with the process, however it ends.

    LinkClosedError when the coordinator is gone by then: its successor, which found the lock free, relies on it that
    nobody who comes late touches a file.
    """
    with os.fdopen(open_file(path, os.O_RDWR), "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        if os.getppid() != coordinator:
            raise LinkClosedError("the coordinator is gone")
        file.write(b"%d" % os.getpid())
        file.truncate()
        file.flush()
        yield


def _die_with(coordinator: int) -> None:
    """Exit at once when the coordinator's process, a pidfd, has ended, as by a kill: a forked child of the host may
    keep our link open for ever."""
    select.select([coordinator], [], [])
    os._exit(1)


def _serve(shard: Shard, copier: Copier, link: Link, say: Callable[[wire.Answer], None]) -> None:
    """Answer orders until Stop. LinkClosedError: the coordinator is gone."""
    for served in itertools.count(1):
        if shard.stalled and not select.select([link], [], [], _RETRY_S)[0]:
            answers = shard.retry()
        else:
            order = wire.decode_order(link.receive() or b"")
            if isinstance(order, wire.Stop):
                return
            if isinstance(order, COPIER_ORDERS):
                answers = copier.handle(order)
            else:
                answers = shard.handle(order)
        for answer in answers:
            say(answer)
        if served % _COLLECT_EVERY == 0:
            gc.collect()


def bootstrap() -> str:
    """The program text of a worker: `python -P -c TEXT SPEC`. It imports nothing of the caller's `__main__`."""
    return (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1])['sys_path']; "
        "from shards.worker import main; main(sys.argv[1])"
    )
