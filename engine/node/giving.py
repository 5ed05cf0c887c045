"""A node's newest snapshot, given to others piece by piece, as they ask.

A question names a snapshot by the checksum of its manifest, and a piece of it by its number; each is answered from the
files alone, so one that is asked again gets the same answer. While a snapshot is given, its files have a second name,
which no retention removes; where a dead process left that, the next start sweeps it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from shardengine.engine.errors import EngineError, PeerError, SnapshotError
from shardengine.engine.node.shared import Member
from shardengine.engine.node.shelf import Shelf
from shardengine.engine.run.tasks import Tasks
from shardengine.engine.snapshot.folder import Found, Partial, snapshots_in
from shardengine.engine.snapshot.manifest import MANIFEST, Manifest
from shardengine.engine.snapshot.transfer import Piece, encode_piece, numbered
from shardengine.engine.storage.generations import Directory
from shardengine.ipc.files import open_plain
from shardengine.shards.types import LogId

GIVEN_BYTES = 256 << 10
"""So much of a snapshot is in one answer."""
GIVEN_MAX = 2
"""Snapshots that are given at one time."""
FORGET_S = 60.0
"""A snapshot that nobody asked for as long is not given any more."""
MAKE_WAY_S = 15.0
"""One that nobody asked for as long makes way for another: who goes on fetching it asks sooner."""
log = logging.getLogger("shardengine")


class Want(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A question: piece `number` of the snapshot whose manifest has the checksum `source`; empty: of the newest.
    reach: where the log begins; if the newest does not lead there, another one is taken first. 0: that is not asked."""

    source: bytes
    number: int
    reach: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Want).decode


def wanted(source: bytes, number: int, reach: int = 0) -> bytes:
    """The question, as it travels."""
    return _encode(Want(source, number, reach))


def pieces_in(manifest: Manifest) -> int:
    """How many pieces a snapshot is given in."""
    return 1 + sum(-(-part.bytes // GIVEN_BYTES) for part in manifest.parts)


def piece_of(folder: Path, manifest: Manifest, number: int) -> Piece:
    """The piece that `stream_snapshot` would give as that number, of a snapshot of `GIVEN_BYTES`. Blocks. Raises
    PeerError when there is no such piece, OSError. Whether the parts are sound, who takes the pieces finds out."""
    if number == 0:
        return next(numbered(manifest, ()))
    left = number - 1
    for part, info in enumerate(manifest.parts):
        pieces = -(-info.bytes // GIVEN_BYTES)
        if 0 <= left < pieces:
            offset = left * GIVEN_BYTES
            with open(open_plain(folder / info.file), "rb", buffering=0) as file:
                data = os.pread(file.fileno(), GIVEN_BYTES, offset)
            last = number == pieces_in(manifest) - 1
            return Piece(bytes.fromhex(manifest.checksum), number, part, offset, data, b"", last).summed()
        left -= pieces
    raise PeerError(f"the snapshot has no piece {number}: it has {pieces_in(manifest)}", number=number)


class _Given:
    """A snapshot that is being given: where its second name is, and when it was last asked for; `ended`: for its last
    piece."""

    def __init__(self, partial: Partial, manifest: Manifest) -> None:
        self.partial = partial
        self.manifest = manifest
        self.asked_at = time.monotonic()
        self.ended = False


class Giver:
    """What one node gives: to who asks, and to a shelf, if there is one. Files are read in threads. `take` takes a
    snapshot."""

    def __init__(self, directory: Path, take: Callable[[], Awaitable[object]], shelf: Shelf | None = None) -> None:
        self._directory = directory
        self._take = take
        self._shelf = shelf
        self._laying: asyncio.Task[None] | None = None
        self._laid = LogId(0, 0)
        self._newest: Found | None = None
        self._given: dict[bytes, _Given] = {}
        self._turn = asyncio.Lock()
        self._closed = False
        self._work = Tasks()

    async def look(self) -> LogId:
        """See what is there to give, and forget what nobody asks for; returns the newest snapshot's label, (0, 0) when
        there is none."""
        try:
            self._newest = await self._work.in_thread(self._find)
        except (EngineError, OSError) as error:
            log.warning("it is not known which snapshots there are to give: %s", error)
        late = time.monotonic() - FORGET_S
        await self._forget([source for source, given in self._given.items() if given.asked_at < late])
        if self._newest is None:
            return LogId(0, 0)
        newest = self._newest.info.last_included
        if self._shelf is not None and newest > self._laid and (self._laying is None or self._laying.done()):
            self._laid = newest
            self._laying = asyncio.ensure_future(self._lay(self._newest, self._shelf))
        return newest

    async def _lay(self, found: Found, shelf: Shelf) -> None:
        try:
            given = await self._work.in_thread(lambda: _held(found))
            try:
                await self._work.in_thread(lambda: shelf.put(given.partial.path, found.info.last_included))
            finally:
                await self._work.in_thread(given.partial.remove)
        except (EngineError, OSError) as error:
            log.warning("the snapshot %s is not among the shared ones: %s", found.path, error)

    def _find(self) -> Found | None:
        """The newest one of the state's own lineage."""
        generation = Directory(self._directory).current()
        lineage = "" if generation is None else generation.info.config.lineage
        found = snapshots_in(self._directory / "snapshots")
        return next((one for one in reversed(found) if one.manifest.lineage == lineage), None)

    async def answer(self, request: bytes) -> bytes:
        """What to answer. Raises what is then told to who asked."""
        want = _decode(request)
        if want.reach:
            newest = await self._work.in_thread(self._find)
            if newest is None or newest.info.last_included.term + 1 < want.reach:
                await self._take()
        given = await self._of(want.source)
        given.asked_at = time.monotonic()
        given.ended = want.number == pieces_in(given.manifest) - 1
        return await self._work.in_thread(
            lambda: encode_piece(piece_of(given.partial.path, given.manifest, want.number))
        )

    async def _of(self, source: bytes) -> _Given:
        async with self._turn:
            if self._closed:
                raise PeerError("the node stops", hint="ask another one")
            if source in self._given:
                return self._given[source]
            found = await self._work.in_thread(lambda: self._named(source))
            source = bytes.fromhex(found.manifest.checksum)
            if source not in self._given:
                if len(self._given) >= GIVEN_MAX:
                    await self._make_way()
                self._given[source] = await self._work.in_thread(lambda: _held(found))
            return self._given[source]

    async def _make_way(self) -> None:
        """Forget one that was given whole, or that nobody goes on with. Raises PeerError: there is no such one."""
        late = time.monotonic() - MAKE_WAY_S
        able = [source for source, given in self._given.items() if given.ended or given.asked_at < late]
        if not able:
            raise PeerError(f"{GIVEN_MAX} snapshots are being given already", hint="ask again later")
        await self._forget(able[:1])

    def _named(self, source: bytes) -> Found:
        newest = self._find()
        if newest is None or source.hex() not in ("", newest.manifest.checksum):
            raise PeerError("that snapshot is not here", hint="ask for the newest one")
        return newest

    async def _forget(self, sources: list[bytes]) -> None:
        for source in sources:
            given = self._given.pop(source)
            try:
                await self._work.in_thread(given.partial.remove)
            except (EngineError, OSError) as error:
                log.warning("%s is left to the next start: %s", given.partial.path, error)

    async def close(self) -> None:
        """Nothing is given any more."""
        self._closed = True
        if self._laying is not None:
            await asyncio.wait([self._laying])
        async with self._turn:
            await self._forget(list(self._given))


def _held(found: Found) -> _Given:
    """Give the files a second name each."""
    partial = Partial(found.path.parent, "given")
    try:
        for name in (MANIFEST, *(part.file for part in found.manifest.parts)):
            os.link(found.path / name, partial.path / name)
    except OSError as error:
        partial.remove()
        raise SnapshotError(f"{found.path} cannot be kept while it is given: {error}") from error
    return _Given(partial, found.manifest)


def gives(member: Member, first: int, applied: LogId) -> bool:
    """Whether the member's snapshot leads from a state at `applied` to where a log goes on that begins at `first`."""
    return member.snapshot.term + 1 >= first and member.snapshot > applied
