"""What the host allows this process: cores, the sizes of maps and files, disk that is reserved."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

from shardengine.engine.config import EngineConfig
from shardengine.engine.errors import ConfigError
from shardengine.engine.storage.files import filesystem_of, reserved_disk_holds

log = logging.getLogger("shardengine")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def default_shards() -> int:
    """min(8, max(2, usable cores - 1))."""
    return min(8, max(2, usable_cores() - 1))


def usable_cores() -> int:
    """Cores that this process may use, by affinity and by the tightest quota of its cgroup and of all above it; a
    fraction counts as a whole one."""
    quotas = [quota for folder in _folders() if (quota := _quota(folder)) is not None]
    return min([len(os.sched_getaffinity(0)), *quotas])


def _quota(folder: Path) -> int | None:
    """What `cpu.max` of cgroups v2, or `cpu.cfs_*` of v1, allow; None where there is no limit."""
    words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    numbers = [int(word) for word in words if word.isdecimal()]  # else "max", or -1
    if len(numbers) != 2 or not all(numbers):
        return None
    quota, period = numbers
    return -(-quota // period)


def _folders() -> list[Path]:
    """The folders of the cgroups this process is in, and of all above them, as far as they are to be seen."""
    roots = {CGROUPS: Path("/")}
    for line in _text(OWN_CGROUPS).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = Path(os.path.normpath(f"/{path.lstrip('/')}"))  # outside of a namespace it begins with /..
        if not controllers:
            roots[CGROUPS] = roots[CGROUPS / "unified"] = inside
        elif "cpu" in controllers.split(","):
            roots[CGROUPS / "cpu"] = roots[CGROUPS / controllers] = inside
    return [root / str(at).lstrip("/") for root, inside in roots.items() for at in (inside, *inside.parents)]


def _words(path: Path) -> list[str]:
    return _text(path).split()[:2]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def check_resource_limits(config: EngineConfig, shards: int) -> None:
    """Raise ConfigError when this process may not map what an engine maps, all shards' files and rings, or a worker
    may not write a file as large as a map."""
    maps, file = shards * (config.map_bytes + config.ring_bytes), max(config.map_bytes, config.ring_bytes)
    needs = (("RLIMIT_AS", resource.RLIMIT_AS, "-v", maps), ("RLIMIT_FSIZE", resource.RLIMIT_FSIZE, "-f", file))
    for name, limit, option, needed in needs:
        allowed = resource.getrlimit(limit)[0]
        if allowed != resource.RLIM_INFINITY and allowed < needed:
            raise ConfigError(
                f"map_bytes={config.map_bytes} over {shards} shards takes {needed} bytes, "
                f"but {name} allows this process {allowed}",
                hint=f"lower map_bytes, or raise the limit (ulimit {option})",
                key="map_bytes",
                value=config.map_bytes,
                allowed=allowed,
            )


def look_at_filesystem(path: Path) -> tuple[str, bool]:
    """What `path` lies on, and whether disk that is reserved there stays so; a warning when not."""
    filesystem = filesystem_of(path.resolve())
    maps_hold = reserved_disk_holds(filesystem)
    if not maps_hold:
        log.warning(
            "%s lies on %s, which promises nothing for reserved disk: on a full disk a worker may die of SIGBUS, "
            "and be started again; nothing that was acknowledged is lost. Keep disk free, or use ext4 or xfs",
            path,
            filesystem,
        )
    return filesystem, maps_hold
