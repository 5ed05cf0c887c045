"""Worker processes: start, kill, reap. Who dies and when is the coordinator's business; this only does as told.

A worker is another interpreter, as `launch.py` says, started with `subprocess`, not forked and not re-importing the
caller's `__main__`. It inherits two descriptors, its end of the link and a pidfd of this process, and no names; the
first message on the link tells it the rest. The signals that supervisors send to whole groups are blocked while it
starts, and ignored from then on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import msgspec

from shardengine.engine.commit import lives
from shardengine.engine.errors import EngineError, WorkerFailedError
from shardengine.engine.run.launch import Launch
from shardengine.ipc import link as links
from shardengine.ipc.errors import LinkClosedError
from shardengine.ipc.files import open_file
from shardengine.shards import wire
from shardengine.shards.worker import IGNORED_SIGNALS, WorkerSpec, bootstrap, first_message

LOG_BYTES_MAX = 1 << 20
log = logging.getLogger("shardengine")


class Workers:
    """One process and one link for each shard.

    Invariant: `links[shard]` is set exactly while a process of that shard was started and is not reaped.
    """

    def __init__(self, specs: list[WorkerSpec], launch: Launch, directory: Path) -> None:
        """`specs` lack the descriptors. `directory` is the data directory, whose `worker.log` takes what workers say.

        Raises OSError, and leaves nothing open then.
        """
        self._specs = specs
        self._launch = launch
        self._directory = directory
        self._log_path = directory / "worker.log"
        self._log = open_file(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._parent = _pidfd()
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(specs)
        self.links: list[links.Link | None] = [None] * len(specs)
        self.starts = [0] * len(specs)
        self.trim_log()

    def start(self, shard: int) -> links.Link:
        """Start the worker of `shard` and return the coordinator's end of its link.

        Raises OSError when there is no descriptor, process, memory or interpreter for it; nothing is left of it then.
        """
        assert self._processes[shard] is None
        ours, theirs = links.pair()
        try:
            self._processes[shard] = self._spawn(shard, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.starts[shard] += 1
        link = self.links[shard] = links.Link(ours, blocking=False)
        spec = msgspec.structs.replace(self._specs[shard], parent=self._parent)
        with contextlib.suppress(LinkClosedError):
            link.send(first_message(spec, self._launch.sys_path))
        return link

    def _spawn(self, shard: int, link: int) -> subprocess.Popen[bytes]:
        title = f"shardengine worker shard {shard} of {len(self._specs)}:".split()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            return subprocess.Popen(
                [*self._launch.command, "-c", bootstrap(link, instead=self._launch.instead), *title, self._directory],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(link,) if self._parent < 0 else (link, self._parent),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def send(self, shard: int, order: wire.Order) -> None:
        """Send `order`, or queue it. The end of a link shows where the link is read, not here."""
        link = self.links[shard]
        assert link is not None
        try:
            link.send(wire.encode(order))
        except LinkClosedError:
            return

    def flush(self) -> None:
        """Send what full links kept back."""
        for link in self.links:
            if link is not None:
                with contextlib.suppress(LinkClosedError):
                    link.flush()

    def pid(self, shard: int) -> int | None:
        process = self._processes[shard]
        return None if process is None else process.pid

    def kill(self, shard: int) -> None:
        """SIGKILL. The end of its link follows."""
        process = self._processes[shard]
        if process is not None:
            process.kill()

    def kill_all(self) -> None:
        """SIGKILL to every worker. Any thread."""
        for shard in range(len(self._specs)):
            self.kill(shard)

    def reap(self, shard: int) -> None:
        """Kill what may still run, wait for its end, close its link. WorkerFailedError: it does not end."""
        process, link = self._processes[shard], self.links[shard]
        self._processes[shard] = self.links[shard] = None
        if link is not None:
            link.close()
        if process is not None:
            process.kill()
            try:
                process.wait(lives.DYING_S)
            except subprocess.TimeoutExpired:
                raise lives.undying(shard, process.pid, lives.DYING_S) from None

    def stop(self, timeout_ms: int) -> None:
        """Tell every worker to close its store and exit, and wait for that. What does not end in time is killed by
        `close`."""
        deadline = time.monotonic() + timeout_ms / 1000
        for shard, link in enumerate(self.links):
            if link is not None:
                self.send(shard, wire.Stop())
        for process in self._processes:
            if process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Kill and reap all that is left, and give every descriptor back. A process that does not end is named in the
        log; the locks of its shard are its own until it does."""
        for shard in range(len(self._specs)):
            self.kill(shard)
        for shard in range(len(self._specs)):
            try:
                self.reap(shard)
            except WorkerFailedError as error:
                log.error("%s", error)
        if self._parent >= 0:
            os.close(self._parent)
        os.close(self._log)

    def trim_log(self) -> None:
        """Move what workers said to `worker.log.1` when it has become too long. Workers may write meanwhile: the file
        stays the same. Where there is no room for the copy, it goes without one."""
        if os.fstat(self._log).st_size <= LOG_BYTES_MAX:
            return
        with contextlib.suppress(OSError, EngineError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            beside = open_file(self._log_path.with_name("worker.log.1"), flags)
            with open(beside, "wb") as copy, self._log_path.open("rb") as said:
                shutil.copyfileobj(said, copy)
        with contextlib.suppress(OSError):
            os.ftruncate(self._log, 0)


def _pidfd() -> int:
    """A pidfd of this process, or -1 where the system gives none: workers then look who their parent is."""
    try:
        return os.pidfd_open(os.getpid())
    except OSError:
        return -1
