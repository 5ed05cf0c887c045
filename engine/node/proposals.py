"""What is proposed, from the call to its outcome.

A call's entries wait in a queue until the next frame is made; the frame's outcome is that of all its calls:

    not accepted    nothing of the frame is in the log, nor will be: every call gets the reason
    applied         every call gets the results of its own entries
    unknown         nothing tells, for now. The frame stays here until it is read, or shown not to be in the log, or the
                    node ends

Invariant: a call is in the queue or in exactly one frame of `sent`, until its future is resolved; `_entries` and
`_bytes` are the sums over both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from shardengine.engine.errors import EngineError, OutcomeUnknownError
from shardengine.engine.node.frames import Frame, FrameIds, encode_frame
from shardengine.engine.node.policy import NodePolicy
from shardengine.engine.run.waiting import resolve
from shardengine.shards.types import ApplyResult

FRAMES_TOGETHER = 8
"""So many frames are appended in one call, when that much is queued."""

Outcome = tuple[Sequence[ApplyResult], int]
"""The results of a frame, and where those of one call begin."""


class Proposal:
    """One call: its entries, how long a frame they make, and the future of its outcome."""

    __slots__ = ("bytes", "datas", "future")

    def __init__(self, datas: list[bytes], size: int, future: asyncio.Future[Outcome]) -> None:
        self.datas = datas
        self.bytes = size
        self.future = future


class Sent:
    """A frame that was made of some calls, and given to the log. position: where in it, once that is known; else 0."""

    __slots__ = ("data", "id", "position", "proposals")

    def __init__(self, id: bytes, proposals: list[Proposal]) -> None:
        self.position = 0
        self.id = id
        self.proposals = proposals
        self.data = encode_frame(Frame(id, [data for proposal in proposals for data in proposal.datas]))


class Proposals:
    """All calls of one node that have no outcome yet. `refusal`: why nothing is taken any more. `passed_over`: up to
    that position frames are applied that will not be read, since a snapshot held them; 0: there are none. Its
    attributes are these, the policy, the calls, and who waits.
    """

    def __init__(self, policy: NodePolicy, frame_bytes_max: int) -> None:
        """`frame_bytes_max`: the longest frame that log and engine take."""
        self._policy = policy
        self._frame_bytes_max = min(policy.frame_bytes_max, frame_bytes_max)
        self._ids = FrameIds()
        self._queue: deque[Proposal] = deque()
        self._room: deque[asyncio.Future[None]] = deque()
        self._sent: dict[bytes, Sent] = {}
        self._entries = self._bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self.refusal: EngineError | None = None
        self.passed_over = 0
        self._quiet: list[asyncio.Future[None]] = []

    @property
    def entries(self) -> int:
        """Proposed, and without an outcome."""
        return self._entries

    @property
    def waiting(self) -> int:
        """Calls that wait for room."""
        return len(self._room)

    # ---- the caller's side ---------------------------------------------------------------------------------------

    async def put(self, datas: list[bytes], size: int) -> Outcome:
        """Queue one call's entries, which make a frame of `size` bytes, once there is room, and wait for their outcome.
        Cancelled while it waits for room it is withdrawn; after that only its outcome is lost."""
        if self.refusal is not None:
            raise self.refusal.again()
        if self._room or not self._has_room(len(datas)):
            await self._for_room(len(datas))
            if self.refusal is not None:
                raise self.refusal.again()
        proposal = Proposal(datas, size, asyncio.get_running_loop().create_future())
        self._queue.append(proposal)
        self._entries += len(datas)
        self._bytes += proposal.bytes
        if self._wake is not None:
            resolve(self._wake)
        return await proposal.future

    def _has_room(self, entries: int) -> bool:
        policy = self._policy
        return self._entries == 0 or (
            self._entries + entries <= policy.proposals_max and self._bytes < policy.proposals_bytes_max
        )

    async def _for_room(self, entries: int) -> None:
        """Wait, first in first out."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.append(turn)
        try:
            while True:
                await turn
                if self._room[0] is turn and self._has_room(entries):
                    return
                turn = self._room[0] = asyncio.get_running_loop().create_future()
        finally:
            if turn in self._room:
                self._room.remove(turn)
                self._wake_next()

    def _wake_next(self) -> None:
        if self._room:
            resolve(self._room[0])

    # ---- the log's side ------------------------------------------------------------------------------------------

    async def some(self) -> None:
        """Wait until something is queued."""
        while not self._queue:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        self._wake = None

    def take(self) -> list[Sent]:
        """What is queued, as the next frames: few at a time, each within the policy's bounds."""
        frames: list[Sent] = []
        while self._queue and len(frames) < FRAMES_TOGETHER:
            sent = Sent(next(self._ids), self._next_frame())
            for _ in sent.proposals:
                self._queue.popleft()
            self._sent[sent.id] = sent
            frames.append(sent)
        return frames

    def _next_frame(self) -> list[Proposal]:
        """The first of the queue, and those behind it that may go along."""
        taken: list[Proposal] = []
        entries = size = 0
        for proposal in self._queue:
            entries += len(proposal.datas)
            size += proposal.bytes
            if taken and (entries > self._policy.frame_entries_max or size > self._frame_bytes_max):
                break
            taken.append(proposal)
        return taken

    def no_op(self) -> bytes:
        """A frame without entries."""
        return encode_frame(Frame(next(self._ids), []))

    # ---- outcomes ------------------------------------------------------------------------------------------------

    def applied(self, id: bytes, results: Sequence[ApplyResult]) -> None:
        """The frame `id` is applied; nothing happens when it is another node's."""
        sent = self._sent.pop(id, None)
        if sent is None:
            return
        start = 0
        for proposal in sent.proposals:
            future = proposal.future
            if not future.done():
                future.set_result((results, start))
            start += len(proposal.datas)
        self._ended(sent.proposals)

    def refused(self, frames: Iterable[Sent], error: EngineError) -> None:
        """Nothing of these frames is in the log, nor will be. Those whose outcome is known are passed over."""
        for sent in frames:
            if self._sent.pop(sent.id, None) is not None:
                self._fail(sent.proposals, error)

    def placed(self, frames: Sequence[Sent], positions: Sequence[int]) -> None:
        """These frames are in the log."""
        for sent, position in zip(frames, positions, strict=True):
            sent.position = position
            if position <= self.passed_over:
                self.refused([sent], _unread(sent, self.passed_over))

    def pass_over(self, position: int) -> None:
        """What lies up to `position` is applied, and will not be read: nobody learns what came of it."""
        self.passed_over = position
        for sent in list(self._sent.values()):
            if 0 < sent.position <= position:
                self.refused([sent], _unread(sent, position))

    def unknown(self, frames: Iterable[Sent], why: EngineError) -> None:
        """Whether these frames are in the log will never be known. Those whose outcome is known are passed over."""
        for sent in frames:
            self.refused([sent], _unknown(sent, why))

    def close(self, refusal: EngineError) -> None:
        """Nothing is taken any more, nothing is told any more: what is queued was not accepted, what was sent stays
        unknown."""
        self.refuse_new(refusal)
        queued, self._queue = list(self._queue), deque()
        self._fail(queued, refusal)
        self.unknown(list(self._sent.values()), refusal)

    def refuse_new(self, refusal: EngineError) -> None:
        """From now on nothing is taken; what was taken goes on."""
        self.refusal = refusal
        for turn in self._room:
            resolve(turn, refusal)

    async def quiet(self) -> None:
        """Wait until everything that was taken has its outcome."""
        if self._entries:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._quiet.append(future)
            await future

    def _fail(self, proposals: list[Proposal], error: EngineError) -> None:
        for proposal in proposals:
            resolve(proposal.future, error)
        self._ended(proposals)

    def _ended(self, proposals: list[Proposal]) -> None:
        for proposal in proposals:
            self._entries -= len(proposal.datas)
            self._bytes -= proposal.bytes
        self._wake_next()
        if self._entries == 0:
            quiet, self._quiet = self._quiet, []
            for future in quiet:
                resolve(future)


def _unknown(sent: Sent, why: EngineError) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"frame {sent.id.hex()} was given to the log, and what became of it is not known: {why.message}",
        hint="look for what the proposal would have done, on a node that runs, or is started again",
        id=sent.id,
    )


def _unread(sent: Sent, position: int) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"frame {sent.id.hex()} is in the log, at position {sent.position}, and applied; with what results was not "
        f"seen: the node went on from a snapshot at position {position}",
        hint="look for what the proposal would have done",
        id=sent.id,
        position=sent.position,
    )
