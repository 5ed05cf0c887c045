"""The command `cluster demo`: three servers, three nodes and real input, and what is left when some of them are killed.

Every node proposes its share of the standard library's lines. On the way a server and a node get SIGKILL and come
back, and a fourth node begins with nothing when the log has been cut. In the end every node must hold every line that
was acknowledged to anybody, and all the same.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import msgspec

from shardengine import ClusterError, Put, encode, run
from shardengine.engine.cli.common import (
    DONE,
    DataSaysNoError,
    json_option,
    owned,
    quiet_option,
    remark,
    stopping_on_signals,
)
from shardengine.engine.cli.corpus import Corpus
from shardengine.engine.cli.progress import Progress
from shardengine.engine.cli.streams import print_json, print_table
from shardengine.engine.cluster.nodes import NodeProcess
from shardengine.engine.cluster.program import Options
from shardengine.engine.cluster.servers import Servers

STREAM = "lines"
NODES = 3
AT_ONCE = 4
"""Frames that each node has in flight."""
FRAME_LINES = 250
KEEP_ENTRIES = 1000
MEMBER_TIMEOUT_S = 4.0
"""How long a node that was killed keeps the log from being cut."""
GIVE_UP_S = 120.0
"""So long nothing is acknowledged before the demonstration fails."""

LOOK_S = 0.1

Lines = Sequence[tuple[bytes, bytes]]


@click.group()
def cluster() -> None:
    """Several nodes on one replicated log."""


@cluster.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="An empty directory to work in and keep, with all configurations.  [default: a temporary one, removed]",
)
@click.option("--limit", type=click.IntRange(4 * NODES * FRAME_LINES), default=60_000, show_default=True, help="Lines.")
@click.option("--shards", type=click.IntRange(1, 64), default=2, show_default=True, help="Shards of each node.")
@quiet_option
@json_option
def demo(data: Path | None, limit: int, shards: int, quiet: bool, as_json: bool) -> int:
    """See three machines work, on this one, and lose nothing when some of them die.

    Starts three nats-servers and three nodes as processes, and proposes every line of the running Python's standard
    library on all three. Kills a server and a node with SIGKILL on the way, starts them again, cuts the log behind
    snapshots, and adds a fourth node, which has to begin from another's snapshot. Exit code 1 if anything acknowledged
    is missing anywhere, or two nodes differ. Needs the extra `cluster`.

    \b
    Examples:
      shardengine cluster demo
      shardengine cluster demo --limit 200000 --data cluster --json
    """
    if data is not None and data.is_dir() and any(data.iterdir()):
        raise click.UsageError(f"{data} is not empty; the demonstration wants a directory of its own")
    with _workplace(data) as place:
        facts = run(lambda: Demo(Corpus(limit), place, shards, quiet).run())
    if as_json:
        print_json(facts)
    else:
        nodes = {f"node {name}": _in_words(found) for name, found in facts.pop("nodes").items()}
        print_table("shardengine cluster demo", {**facts, **nodes})
    return DONE


class Demo:
    """One demonstration: the cluster, what is still to be proposed, and what was acknowledged.

    Its attributes are these, and what happened on the way.
    """

    def __init__(self, corpus: Corpus, place: Path, shards: int, quiet: bool) -> None:
        self._corpus = corpus
        self._place = place
        self._quiet = quiet
        self._servers = Servers(place / "servers")
        self._options = Options(
            path="",
            servers=self._servers.urls,
            stream=STREAM,
            shards=shards,
            keep_entries=KEEP_ENTRIES,
            member_timeout=MEMBER_TIMEOUT_S,
        )
        self._nodes: dict[str, NodeProcess] = {}
        self._frames: deque[Lines] = deque(_frames_of(corpus.lines()))
        self._acknowledged: list[Lines] = []
        self._moved = asyncio.Event()
        self._taken = self._done = self._bound = 0
        self._unsure = 0
        self._snapshots = 0
        self._kills: list[str] = []

    async def run(self) -> dict[str, Any]:
        """The facts of the final table.

        Raises:
            DataSaysNoError: something acknowledged is missing, or two nodes differ.
            ClusterError: a server or a node could not be started, or nothing is acknowledged any more.
            StoppedError: a signal came. Everything that was started has ended, as in all other cases.
        """
        with stopping_on_signals(self._moved.set) as self._stop, self._servers:
            remark(f"three servers, configured in {self._place / 'servers'}: {', '.join(self._servers.urls)}")
            async with self._stopped_nodes():
                await asyncio.gather(*(self._add(f"{number}") for number in range(1, NODES + 1)))
                seconds = await self._propose()
                found = await self._compare()
        return {
            "lines": self._corpus.entries,
            "bytes": self._corpus.bytes,
            "acknowledged": self._done,
            "lost": 0,
            "proposed_again": self._unsure,
            "entries_per_second": round(self._corpus.entries / seconds),
            "snapshots": self._snapshots,
            "killed": ", ".join(self._kills),
            "nodes": found,
        }

    @asynccontextmanager
    async def _stopped_nodes(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.gather(*(node.kill() for node in self._nodes.values()))

    async def _add(self, name: str) -> dict[str, Any]:
        """A node, new or of before; returns its status when it has applied what the log holds."""
        if name not in self._nodes:
            options = msgspec.structs.replace(self._options, path=str(self._place / f"node-{name}"))
            self._nodes[name] = NodeProcess(name, options, self._place / f"node-{name}.errors")
        began = time.monotonic()
        status = await self._nodes[name].start()
        behind = f", the first {status['durable'][0]:,} from a snapshot" if status["durable"][0] else ""
        remark(
            f"node {name} runs as process {self._nodes[name].pid}: {status['applied'][0]:,} entries "
            f"after {time.monotonic() - began:.1f} s{behind}"
        )
        return status

    # ---- the stream ----------------------------------------------------------------------------------------------

    async def _propose(self) -> float:
        """Have everything proposed, and let happen on the way what happens. Returns the seconds that took."""
        began = time.monotonic()
        try:
            with Progress("lines", self._corpus.entries, quiet=self._quiet) as self._progress:
                async with asyncio.TaskGroup() as tasks:
                    for name in list(self._nodes):
                        self._work(name, tasks)
                    await self._direct(tasks)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return time.monotonic() - began

    async def _direct(self, tasks: asyncio.TaskGroup) -> None:
        """Let each step happen when its share of the lines is acknowledged. Meanwhile no more is proposed than up to
        the next one, so that all of them happen in mid-stream."""
        steps = [(int(share * self._corpus.entries), step) for share, step in self._steps()]
        bounds = [lines for lines, _ in steps[1:]] + [self._corpus.entries]
        for (lines, step), self._bound in zip(steps, bounds, strict=True):
            self._moved.set()
            await self._until(partial(self._has_done, lines))
            name = await step()
            if name is not None:
                self._work(name, tasks)

    def _work(self, name: str, tasks: asyncio.TaskGroup) -> None:
        """Propose through one node, several frames at a time, until nothing is left or the node has ended."""
        for _ in range(AT_ONCE):
            tasks.create_task(self._work_alone(name))

    async def _work_alone(self, name: str) -> None:
        while self._frames:
            if self._taken >= self._bound:
                await self._until(lambda: self._taken < self._bound or not self._frames)
                continue
            lines = self._frames.popleft()
            self._taken += len(lines)
            try:
                await self._nodes[name].ask("propose", [encode(Put(key, value)) for key, value in lines])
            except ClusterError:
                if self._nodes[name].pid is not None:
                    raise
                self._frames.appendleft(lines)  # it may be in the log: the same lines again change nothing
                self._taken -= len(lines)
                self._unsure += len(lines)
                return
            self._acknowledged.append(lines)
            self._done += len(lines)
            self._moved.set()
            self._progress.update(len(lines), self._done)

    def _has_done(self, lines: int) -> bool:
        return self._done >= lines

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Raises StoppedError; ClusterError when nothing moves any more."""
        while not condition():
            self._stop.check()
            self._moved.clear()
            try:
                async with asyncio.timeout(GIVE_UP_S):
                    await self._moved.wait()
            except TimeoutError:
                message = f"nothing was acknowledged for {GIVE_UP_S:.0f} s{await self._complaints()}"
                raise ClusterError(message, hint=f"see {self._place}, and whether its disk is full") from None
        self._stop.check()

    async def _complaints(self) -> str:
        """What the nodes say that holds them up."""
        said = set[str]()
        for name in self._running():
            with suppress(ClusterError, TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    status = await self._nodes[name].ask("status")
                    said |= {str(status[what]) for what in ("stalled", "failure") if status[what]}
        return "".join(f"; {text}" for text in sorted(said))

    # ---- what happens on the way ---------------------------------------------------------------------------------

    def _steps(self) -> list[tuple[float, Callable[[], Awaitable[str | None]]]]:
        """From which share of the lines on, what is done; a name: that node proposes from then on."""
        return [
            (0.15, self._take_snapshots),
            (0.25, self._kill_a_server),
            (0.40, self._kill_a_node),
            (0.50, self._take_snapshots),
            (0.55, self._return_the_server),
            (0.65, self._cut),
            (0.75, self._begin_with_nothing),
            (0.85, self._return_the_node),
        ]

    async def _take_snapshots(self) -> None:
        indices = await asyncio.gather(*(self._nodes[name].ask("snapshot") for name in self._running()))
        self._snapshots += len(indices)
        remark(f"snapshots at entries {', '.join(f'{index:,}' for index in indices)}")

    async def _kill_a_server(self) -> None:
        server = self._servers.all[0]
        self._kill(f"server {server.name}", server.pid)
        server.kill()

    async def _return_the_server(self) -> None:
        self._servers.all[0].start()
        remark(f"server {self._servers.all[0].name} is back")

    async def _kill_a_node(self) -> None:
        node = self._nodes["2"]
        self._kill("node 2 and its workers", node.pid)
        await node.kill()

    def _kill(self, what: str, pid: int | None) -> None:
        self._kills.append(what)
        remark(f"SIGKILL to {what} (process {pid}), after {self._done:,} acknowledged lines")

    async def _cut(self) -> None:
        """Wait until the log is cut: what a node needs that has ended keeps it for a while."""
        await self._take_snapshots()
        for _ in range(int(GIVE_UP_S / LOOK_S)):
            self._stop.check()
            if (cut := (await self._nodes["1"].ask("status"))["cut_before"]) > 1:
                remark(f"the log is cut before position {cut:,}")
                return
            await asyncio.sleep(LOOK_S)
        raise ClusterError(f"the log was not cut for {GIVE_UP_S:.0f} s", hint=f"see {self._place}")

    async def _begin_with_nothing(self) -> str:
        await self._add("4")
        return "4"

    async def _return_the_node(self) -> str:
        await self._add("2")
        return "2"

    def _running(self) -> list[str]:
        return [name for name, node in sorted(self._nodes.items()) if node.pid is not None]

    # ---- the end -------------------------------------------------------------------------------------------------

    async def _compare(self) -> dict[str, dict[str, Any]]:
        """Where each node stands. Raises DataSaysNoError when it lacks something, or they differ."""
        found: dict[str, dict[str, Any]] = {}
        for name in self._running():
            state = await self._nodes[name].ask("state")
            lost = await self._lost(name)
            if lost:
                raise DataSaysNoError(f"node {name} lacks {lost} acknowledged lines", hint=f"see {self._place}")
            found[name] = {
                "records": state["entries"],
                "index": state["applied"][0],
                "snapshot_at": state["durable"][0],
                "digest": state["digest"].hex(),
            }
        if len({(facts["records"], facts["index"], facts["digest"]) for facts in found.values()}) != 1:
            raise DataSaysNoError(f"the nodes differ: {found}", hint=f"see {self._place}")
        remark(f"{len(found)} nodes hold every acknowledged line, and the same")
        return found

    async def _lost(self, name: str) -> int:
        lost = 0
        for lines in self._acknowledged:
            values = await self._nodes[name].ask("get", [key for key, _ in lines])
            lost += sum(value != wanted for value, (_, wanted) in zip(values, lines, strict=True))
        return lost


def _in_words(node: Mapping[str, Any]) -> str:
    return (
        f"{node['records']:,} records, {node['index']:,} entries, snapshot at {node['snapshot_at']:,}, {node['digest']}"
    )


def _frames_of(lines: Iterator[tuple[bytes, bytes]]) -> Iterator[Lines]:
    while frame := list(islice(lines, FRAME_LINES)):
        yield frame


@contextmanager
def _workplace(data: Path | None) -> Iterator[Path]:
    """`data`, made and ours, or a temporary directory."""
    if data is None:
        with tempfile.TemporaryDirectory(prefix="shardengine-cluster-") as folder:
            yield Path(folder)
        return
    owned(data)
    data.mkdir(parents=True, exist_ok=True)
    yield data.resolve()
