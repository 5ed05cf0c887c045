"""The servers that tests share: one cluster for each process that runs tests, from the first that asks to the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardengine.engine.cluster.servers import Servers
from tests.forking import STANDING

PAYLOAD_BYTES_MAX = 272 << 10
"""The longest message that they take: tests send nine of the longest."""


@contextmanager
def standing(directory: Path) -> Iterator[Servers]:
    """Servers that outlive the test that started them."""
    with Servers(directory, payload_bytes_max=PAYLOAD_BYTES_MAX) as servers:
        pids = {server.pid for server in servers.all if server.pid is not None}
        STANDING.update(pids)
        yield servers
    STANDING.difference_update(pids)
