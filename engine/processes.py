"""Worker processes: start, kill, reap. Who dies and when is the coordinator's business; this only does as told.

A worker is the running interpreter, started with `subprocess`, not forked and not re-importing the caller's
`__main__`. It inherits two descriptors, its end of the link and a pidfd of this process, and no names. The signals
that supervisors send to whole groups are blocked while it starts, and ignored from then on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from ipc import link as links
from ipc.errors import LinkClosedError
from ipc.files import open_file
from shards import wire
from shards.worker import IGNORED_SIGNALS, WorkerSpec, bootstrap


class Workers:
    """One process and one link for each shard.

    Invariant: `links[shard]` is set exactly while a process of that shard was started and is not reaped.
    """

    def __init__(self, specs: list[WorkerSpec], error_log: Path) -> None:
        """`specs` lack the descriptors; `error_log` takes the workers' standard error."""
        self._specs = specs
        self._log = open_file(error_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            self._parent = os.pidfd_open(os.getpid())
        except OSError:
            os.close(self._log)
            raise
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(specs)
        self.links: list[links.Link | None] = [None] * len(specs)
        self.starts = [0] * len(specs)

    def start(self, shard: int) -> links.Link:
        """Start the worker of `shard` and return the coordinator's end of its link."""
        assert self._processes[shard] is None
        ours, theirs = links.pair()
        spec = msgspec.structs.replace(self._specs[shard], link=theirs.fileno(), parent=self._parent)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            self._processes[shard] = subprocess.Popen(
                [sys.executable, "-P", "-c", bootstrap(), msgspec.json.encode(spec).decode()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(), self._parent),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
        self.starts[shard] += 1
        link = self.links[shard] = links.Link(ours, blocking=False)
        return link

    def send(self, shard: int, order: wire.Order) -> None:
        """Send `order`, or queue it. The end of a link shows where the link is read, not here."""
        link = self.links[shard]
        assert link is not None
        try:
            link.send(wire.encode(order))
        except LinkClosedError:
            return

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
        """Kill what may still run, wait for its end, close its link."""
        process, link = self._processes[shard], self.links[shard]
        if process is not None:
            process.kill()
            process.wait()
        if link is not None:
            link.close()
        self._processes[shard] = self.links[shard] = None

    def stop(self, timeout_ms: int) -> None:
        """Tell every worker to close its store and exit, and wait for that. What does not end in time is killed by
        `close`."""
        deadline = time.monotonic() + timeout_ms / 1000
        for shard in range(len(self._specs)):
            self.send(shard, wire.Stop())
        for process in self._processes:
            if process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Kill and reap all that is left, and give every descriptor back."""
        for shard in range(len(self._specs)):
            self.reap(shard)
        os.close(self._parent)
        os.close(self._log)
