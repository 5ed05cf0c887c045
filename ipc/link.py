"""A link: one end of a `SOCK_SEQPACKET` socket pair, carrying whole messages of any length in order, both ways.

A message travels as one or more packets. The first byte of a packet says whether more of the same message follows:

    +------+------------------+        0: more packets of this message follow
    | last | up to 32 KiB - 1 |        1: this is the last one
    +------+------------------+

The death of the peer is an end-of-file, after everything it sent has been read.

A message that cannot be sent is not left out: either the system takes it later, or the link ends, for both sides.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from contextlib import suppress

from shardengine.ipc.errors import LinkClosedError
from shardengine.ipc.spin import Spin

PACKET_BYTES = 32 * 1024
_MORE, _LAST = b"\0", b"\1"
_LATER = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))
"""What the system says when it has no room for a packet now."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, neither inheritable, both blocking."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Link:
    """One end. A *blocking* end (the worker's) waits in `send` and `receive`; a non-blocking end (the coordinator's)
    never waits: what the socket does not take is queued, and `flush` sends it when the socket is writable.

    A process that sleeps takes tens of microseconds to wake. So a blocking end polls for up to `spin_us` before it
    sleeps, giving its core to whoever is ready to run, as long as messages come that fast: see `_wait`.

    Not thread-safe. After LinkClosedError the link is of no more use; `close` it.
    """

    def __init__(self, end: socket.socket, *, blocking: bool, spin_us: int = 0) -> None:
        end.setblocking(blocking)
        self._socket = end
        self._blocking = blocking
        self._queue: deque[bytes] = deque()
        self._parts: list[bytes] = []
        self._buffer = bytearray(PACKET_BYTES)
        self._view = memoryview(self._buffer)
        self._spin = Spin(spin_us)
        self._eager = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """True while messages are queued that the socket did not take yet."""
        return bool(self._queue)

    def send(self, message: bytes) -> None:
        """Send `message`, or queue what a non-blocking socket does not take. LinkClosedError: the peer is gone, or will
        find that we are."""
        if len(message) < PACKET_BYTES:
            packet = _LAST + message
            if not self._queue and self._send(packet):
                return
            self._queue.append(packet)
        else:
            room = PACKET_BYTES - 1
            pieces = [message[at : at + room] for at in range(0, len(message), room)]
            self._queue.extend(_MORE + piece for piece in pieces[:-1])
            self._queue.append(_LAST + pieces[-1])
        self.flush()

    def flush(self) -> bool:
        """Send what is queued. Returns True when nothing is left. LinkClosedError: the peer is gone."""
        while self._queue:
            if not self._send(self._queue[0]):
                return False
            self._queue.popleft()
        return True

    def _send(self, packet: bytes) -> bool:
        try:
            self._socket.send(packet)
        except OSError as error:
            if error.errno in _LATER and not self._blocking:
                return False
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            raise LinkClosedError(f"the peer of a link is gone: {error}") from error
        return True

    def receive(self) -> bytes | None:
        """The next whole message, or None when a non-blocking link has none yet.

        Raises LinkClosedError once the peer is gone and everything it sent has been read.
        """
        while True:
            try:
                size = self._wait() if self._spin.limit_ns else self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return None
            except OSError as error:
                raise LinkClosedError(f"the peer of a link is gone: {error}") from error
            if size == 0:
                raise LinkClosedError("the peer of a link is gone: end of file")
            payload = bytes(self._view[1:size])
            if self._buffer[0] == 0:
                self._parts.append(payload)
            elif self._parts:
                self._parts.append(payload)
                message = b"".join(self._parts)
                self._parts.clear()
                return message
            else:
                return payload

    def _wait(self) -> int:
        """Receive into the buffer, polling first if the wait before this one would have been polled through."""
        began = time.perf_counter_ns()
        if self._eager and self._spin.begin():
            while True:
                try:
                    return self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    if not self._spin.again():
                        break
        size = self._socket.recv_into(self._buffer)
        self._eager = time.perf_counter_ns() - began < self._spin.limit_ns
        return size

    def close(self) -> None:
        self._view.release()
        self._socket.close()
