"""The machine a figure comes from, and what processes have used of it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from shardengine.shards.fast import COMPILED

_ROUND_TRIPS = 101
_PACKAGES = ("lmdb", "msgspec", "xxhash", "uvloop")


def machine() -> dict[str, Any]:
    """Facts that a figure means nothing without."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "puts": "compiled" if COMPILED else "python",
        **{name: version(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory_bytes() -> int:
    """Of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of a living process have used: by its CPU clock, see clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def kept_waiting_ns(pid: int | str) -> int:
    """How long the first thread of a process ("self": this one's) wanted a core and had none; 0 where the system does
    not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    except OSError:
        return 0


def anonymous_bytes() -> int:
    """This process's resident memory that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def wake_ns() -> float:
    """How long it takes to wake a process that sleeps: half of a round trip of a byte through two pipes, median."""
    echo = "import os\nwhile os.read(0, 1): os.write(1, b'x')"
    times = []
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(_ROUND_TRIPS):
            began = time.perf_counter_ns()
            process.stdin.write(b"x")
            process.stdout.read(1)
            times.append(time.perf_counter_ns() - began)
        process.stdin.close()
    return median(times) / 2
