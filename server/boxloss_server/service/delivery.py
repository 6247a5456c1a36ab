"""Whether clients have received what was written to them.

Once a server stops, gRPC closes a connection as its last call ends. If the client then says anything, such as that its
window is open again, the kernel resets the connection and drops what it had still to send: an answer is lost. So the
last call of a connection must not end before its client has received all else.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
import time
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")
_LOOK_INTERVAL = 0.02
_READING_TIME = 0.2
"""Seconds in which a client reads what its kernel has received. Then it has nothing more to say."""


class Delivery:
    """What is on its way from this process to its clients. Only Linux tells; elsewhere they get a moment."""

    def __init__(self) -> None:
        self._looked = -float("inf")
        self._unreceived: frozenset[int] = frozenset()

    async def done(self, written: float, peer: str | None = None) -> None:
        """Returns when a client has received what was written to it.

        Args:
            written: when that was, by the monotonic clock.
            peer: the client, such as "ipv4:127.0.0.1:40123"; None for all.
        """
        received = written
        waiting = self._look(written) if peer is None else _ports(peer)
        while waiting := waiting & self._look(written):
            await asyncio.sleep(_LOOK_INTERVAL)
            received = time.monotonic()
        await asyncio.sleep(received + _READING_TIME - time.monotonic())

    def _look(self, after: float) -> frozenset[int]:
        """The ports of clients that have yet to receive something. Of many who ask at the same time, one looks."""
        now = time.monotonic()
        if self._looked <= after or now - self._looked >= _LOOK_INTERVAL:
            self._looked = now
            self._unreceived = _unreceived()
        return self._unreceived


def _ports(peer: str) -> frozenset[int]:
    kind, _, address = peer.partition(":")
    return frozenset({int(address.rpartition(":")[2])} if kind in ("ipv4", "ipv6") else ())


def _unreceived() -> frozenset[int]:
    ports = set()
    for descriptor in _DESCRIPTORS.iterdir() if _DESCRIPTORS.exists() else ():
        with contextlib.suppress(OSError):  # It is no connection, or is closed by now.
            connection = socket.socket(fileno=int(descriptor.name))
            try:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    (unreceived,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
                    if unreceived:
                        ports.add(connection.getpeername()[1])
            finally:
                connection.detach()  # It is gRPC's.
    return frozenset(ports)
