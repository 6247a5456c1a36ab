"""The port that the processes share."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserve(host: str, port: int) -> Iterator[int]:
    """Holds a port that only sockets of this user with SO_REUSEPORT can listen on; gives its number.

    Args:
        host: a name or an address; IPv6 in brackets.
        port: 0 takes a free one.

    Raises:
        OSError: another program, or another supervisor, has it, or the host has no address here.
    """
    holder = None
    try:
        infos = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        infos = []
    for family, _, _, _, address in infos:  # Listening on one of a name's addresses is enough, as it is for gRPC.
        try:
            holder = _hold(family, address)
        except OSError:
            continue
        break
    if holder is None:
        raise OSError(
            f"cannot listen on {host}:{port}: in use, or not an address here; choose another --port or --host"
        )
    with holder:
        yield holder.getsockname()[1]


def _hold(family: int, address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> socket.socket:
    """A socket that is bound and never listens: no connection goes to it."""
    with socket.socket(family) as check:  # Does what a single server would do, which fails where another listens.
        check.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        check.bind(address)
        check.listen()
        address = check.getsockname()
    holder = socket.socket(family)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections of an earlier server may still be closing, which must not matter; but once the port is held,
        # another server's check is to fail.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(address)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        holder.close()
        raise
    return holder
