"""The process around a shard. Started by the coordinator with two inherited descriptors, as `bootstrap` says.

Order of life: take the spec from the link, ignore what supervisors send to whole groups, take the shard's lock (and
wait for it: a predecessor may still be dying), import the machine, open store and ring, say Hello, serve. It ends when
the link does, when the coordinator has ended (a forked child of the host may keep the link open), on Stop, or with an
error that only a new process can get over: its last word is then Failed.
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
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import ClassVar

import msgspec

from shardengine.ipc.errors import EngineError, LinkClosedError, hint_for
from shardengine.ipc.files import open_file
from shardengine.ipc.link import PACKET_BYTES, Link
from shardengine.ipc.ring import RingReader
from shardengine.shards import wire
from shardengine.shards.errors import MachineImportError, StoreError
from shardengine.shards.machine import Machine
from shardengine.shards.running import problem_of, text_of
from shardengine.shards.shard import Fork, OrphanError, Shard
from shardengine.shards.snapshot import COPIER_ORDERS, Copier
from shardengine.shards.stamps import Stamped
from shardengine.shards.store import Identity, Store
from shardengine.shards.types import Limits, Position

Say = Callable[[wire.Answer], None]
_RETRY_S = 0.2
_ALIVE_S = 0.2
_WATCH_S = 1.0  # between looks at who our parent is, where no pidfd can be had
_COLLECT_EVERY = 1024  # orders between garbage collections
IGNORED_SIGNALS = signal.valid_signals() - {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGCHLD, signal.SIGXCPU),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS),
}
"""Every signal that would end or stop a process and reports no fault of its own: terminals and supervisors send them to
whole groups."""


class Process:
    """What this process is. A worker's own children are no workers, so no environment variable says so."""

    is_worker: ClassVar[bool] = False


class WorkerSpec(msgspec.Struct, frozen=True):
    """All that a worker is told. `parent` is the number of an inherited pidfd of the coordinator, or -1 where there is
    none; `coordinator` is its pid. `directory` is encoded as the system does."""

    directory: bytes
    identity: Identity
    machine: str
    limits: Limits
    map_bytes: int
    readers_max: int
    sync: bool
    spin_us: int
    parent: int
    coordinator: int


def bootstrap(link: int, *, instead: bool) -> str:
    """The program text of a worker that has its end of the link as descriptor `link`: it takes the first message, of
    `first_message`, and imports nothing that is not part of the interpreter before it has taken the host's path."""
    return (
        "import gc, posix, sys\n"
        "gc.disable()\n"  # imports leave nothing for it to find
        "text, piece = b'', b'\\0'\n"
        "while piece[:1] == b'\\0':\n"
        f"    piece = posix.read({link}, {PACKET_BYTES})\n"
        "    text += piece[1:]\n"
        "*path, spec = text.split(b'\\0')\n"
        f"{path_taken(instead=instead)}\n"
        "if not spec: sys.exit('the coordinator is gone')\n"
        "from shardengine.shards.worker import main\n"
        f"main({link}, spec)"
    )


def path_taken(*, instead: bool) -> str:
    """The program text, of a process that was started, by which `path`, entries as the system encodes them, becomes its
    `sys.path`; or, when not `instead`, comes behind what its interpreter knows by itself. `sys` is imported there."""
    return (
        "coding = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()\n"
        f"sys.path{'[:]' * instead} {'+' * (not instead)}= [str(entry, *coding) for entry in path]"
    )


def first_message(spec: WorkerSpec, sys_path: list[bytes]) -> bytes:
    """What a worker is sent before anything else: the entries of its `sys.path` and its spec, a NUL between two."""
    return b"\0".join([*sys_path, msgspec.json.encode(spec)])


def import_machine(name: str) -> type[Machine]:
    """The class that `module:qualname` names. MachineImportError: there is none, or it is no Machine."""
    module, _, qualname = name.partition(":")
    hint = "define the machine class at the top level of a module that is importable from sys.path"
    try:
        found: object = importlib.import_module(module)
        for attribute in qualname.split("."):
            found = getattr(found, attribute)
    except BaseException as error:
        raise MachineImportError(
            f"worker cannot import {name}: {type(error).__name__}: {text_of(error)}", hint=hint, machine=name
        ) from error
    if not (isinstance(found, type) and issubclass(found, Machine)):
        raise MachineImportError(f"{name} is no subclass of Machine", hint=hint, machine=name)
    return found


def main(link: int, text: bytes) -> None:
    """Be a worker, as the JSON of a WorkerSpec says, until the coordinator ends or says Stop."""
    Process.is_worker = True
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
    spec = msgspec.json.decode(text, type=WorkerSpec)
    sys.stdout = sys.stderr = Stamped(2, f"shard {spec.identity.shard} [{os.getpid()}]")
    threading.Thread(target=_die_with, args=(spec.parent, spec.coordinator), daemon=True).start()
    end = socket.socket(fileno=link)
    with closing(Link(end, blocking=True, spin_us=spec.spin_us)) as to_coordinator:
        try:
            _run(spec, to_coordinator, end)
        except LinkClosedError:
            pass
        except OrphanError:
            os._exit(1)
        except Exception:
            traceback.print_exc()  # before the link ends: then it is killed
            sys.exit(1)


def _run(spec: WorkerSpec, link: Link, end: socket.socket) -> None:
    directory = Path(os.fsdecode(spec.directory))
    voice = threading.Lock()

    def say(answer: wire.Answer) -> None:
        with voice:
            link.send(wire.encode(answer))

    with ExitStack() as held:
        try:
            held.enter_context(_owning(directory / "owner", spec.coordinator))
            store, shard = _open(directory, spec, say)
        except LinkClosedError:
            raise
        except (EngineError, OSError) as error:
            say(wire.Failed(_unready(error)))
            traceback.print_exception(error)
            return

        def in_child() -> None:
            """This is a child: it answers nobody, and does not keep the link open."""
            shard.fork = Fork.CHILD
            end.close()

        os.register_at_fork(after_in_parent=lambda: setattr(shard, "fork", Fork.PARENT), after_in_child=in_child)
        solo = store.solo_results()
        results = wire.decode_results(solo) if solo else wire.PartResults({}, {})
        say(wire.Hello(spec.identity.shard, store.position, results))
        gc.freeze()
        try:
            _serve(shard, Copier(store, say), link, say)
        except LinkClosedError:
            raise
        except Exception as error:
            traceback.print_exception(error)
            with suppress(LinkClosedError):
                say(wire.Failed(problem_of(error)))
            sys.exit(1)
        store.close()


def _unready(error: EngineError | OSError) -> wire.Problem:
    """Why this process cannot serve. One that is `passing` may be over when the next one starts."""
    if isinstance(error, OSError):
        error = StoreError(f"it cannot start: {error}", hint=hint_for(error), passing=1)
    return problem_of(error)


def _open(directory: Path, spec: WorkerSpec, say: Say) -> tuple[Store, Shard]:
    """All that is needed to serve. Raises EngineErrors that no other process would fare better with."""
    kind = import_machine(spec.machine)
    try:
        machine = kind()
    except BaseException as error:
        raise MachineImportError(
            f"worker cannot make a {spec.machine}: {type(error).__name__}: {text_of(error)}",
            hint="its class takes no arguments",
            machine=spec.machine,
        ) from error
    store = _Telling(directory, spec, say)
    ring = RingReader(directory / "ring")
    return store, Shard(store, machine, spec.limits, ring.view, ring.half_bytes)


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
        with suppress(OSError):  # it tells people who holds the lock; a full disk is no reason not to serve
            os.truncate(file.fileno(), os.write(file.fileno(), b"%d" % os.getpid()))
        yield


def _die_with(pidfd: int, coordinator: int) -> None:
    """Exit at once when the coordinator's process has ended, as by a kill: a forked child of the host may keep our link
    open for ever."""
    if pidfd >= 0:
        _readable(pidfd, None)
    while pidfd < 0 and os.getppid() == coordinator:
        time.sleep(_WATCH_S)
    os._exit(1)


def _readable(descriptor: int, timeout_s: float | None) -> bool:
    """Wait for a descriptor, of any number."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


@contextmanager
def _saying_alive(say: Say) -> Iterator[None]:
    """Let the coordinator know, as long as it takes, that to wait for the disk is no hang."""
    ended = threading.Event()

    def speak() -> None:
        with suppress(LinkClosedError):
            while not ended.wait(_ALIVE_S):
                say(wire.Alive())

    speaking = threading.Thread(target=speak, daemon=True)
    with suppress(RuntimeError):  # no thread can be had: then it has to be done in time
        speaking.start()
    try:
        yield
    finally:
        ended.set()
        if speaking.ident is not None:
            speaking.join()


class _Telling(Store):
    """A shard's store that says Alive while it waits for the disk."""

    def __init__(self, directory: Path, spec: WorkerSpec, say: Say) -> None:
        super().__init__(
            directory, spec.identity, map_bytes=spec.map_bytes, readers_max=spec.readers_max, sync=spec.sync
        )
        self._say = say

    def commit(self, position: Position, solo_results: bytes | None = None, solo_runs: bytes = b"") -> None:
        with _saying_alive(self._say) if self._syncs else nullcontext():
            super().commit(position, solo_results, solo_runs)

    def sync(self) -> None:
        with _saying_alive(self._say):
            super().sync()


def _serve(shard: Shard, copier: Copier, link: Link, say: Say) -> None:
    """Answer orders until Stop. LinkClosedError: the coordinator is gone."""
    for served in itertools.count(1):
        answers: Iterable[wire.Answer]
        if shard.stalled and not _readable(link.fileno(), _RETRY_S):
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
