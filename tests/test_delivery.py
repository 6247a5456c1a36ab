"""What is written to a client counts as on its way until that client's system has it. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from boxloss_server.service import delivery
from boxloss_server.service.delivery import Delivery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")

LONG = 0.3
"""Seconds after which who still waits is taken to wait for a reason."""


@pytest.fixture(autouse=True)
def _no_time_for_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_READING_TIME", 0.0)


class Connection:
    """Both ends of a connection over TCP."""

    def __init__(self, closing: contextlib.ExitStack) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = closing.enter_context(socket.create_connection(listener.getsockname()))
            self.server = closing.enter_context(listener.accept()[0])
        self.peer = f"ipv4:127.0.0.1:{self.client.getsockname()[1]}"

    def write(self) -> int:
        """Writes more than the client's system takes unread; returns how many bytes."""
        self.server.setblocking(False)
        written = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                written += self.server.send(bytes(2**16))
        return written

    def read(self, count: int) -> None:
        while count:
            count -= len(self.client.recv(count))


@pytest.fixture
def connections() -> Iterator[tuple[Connection, Connection]]:
    with contextlib.ExitStack() as closing:
        yield Connection(closing), Connection(closing)


@pytest.mark.parametrize("of_all", [False, True])
async def test_it_is_done_once_the_client_has_read(connections: tuple[Connection, Connection], of_all: bool) -> None:
    deliveries, (slow, _) = Delivery(), connections
    await deliveries.done(time.monotonic())  # What this look has seen counts no longer.
    written = slow.write()
    waiting = asyncio.create_task(deliveries.done(time.monotonic(), None if of_all else slow.peer))
    assert not (await asyncio.wait([waiting], timeout=LONG))[0]
    await asyncio.to_thread(slow.read, written)
    async with asyncio.timeout(30):
        await waiting


async def test_nobody_waits_for_what_others_have_not_read(connections: tuple[Connection, Connection]) -> None:
    slow, other = connections
    slow.write()
    for peer in (other.peer, "unix:", "unix:/tmp/socket"):
        async with asyncio.timeout(30):
            await Delivery().done(time.monotonic(), peer)


async def test_for_all_means_those_who_have_not_read_by_now(connections: tuple[Connection, Connection]) -> None:
    deliveries, (slow, other) = Delivery(), connections
    written = slow.write()
    waiting = asyncio.create_task(deliveries.done(time.monotonic()))
    assert not (await asyncio.wait([waiting], timeout=LONG))[0]
    other.write()
    await asyncio.to_thread(slow.read, written)
    async with asyncio.timeout(30):
        await waiting
