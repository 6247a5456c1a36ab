"""The metrics endpoint answers, whatever else connects to it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge, Metric
from prometheus_client.registry import Collector

from boxloss_server.processes import endpoint
from boxloss_server.processes.endpoint import CONNECTIONS
from tests.servers import ServerProcess, wait_until

HALF = b"GET /metrics HTTP/1.1\r\nHost:"
REST = b" localhost\r\n\r\n"


class Gate(Collector):
    """Metrics that are not told before the gate is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.waiting = threading.Semaphore(0)

    def collect(self) -> Iterator[Metric]:
        self.waiting.release()
        assert self.open.wait(30)
        yield from ()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("one", "One.", registry=registry).set(1)
    return registry


@pytest.fixture
def port(registry: CollectorRegistry) -> int:
    return endpoint.listen(registry, "127.0.0.1", 0)


@pytest.fixture
def connect(port: int) -> Iterator[Callable[[bytes], socket.socket]]:
    with contextlib.ExitStack() as open_ones:

        def connect(data: bytes) -> socket.socket:
            client = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            client.sendall(data)
            return client

        yield connect


def answer(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(4096):
            parts.append(part)
    return b"".join(parts)


def is_served(answered: bytes) -> bool:
    return answered.startswith(b"HTTP/1.0 200 OK") and b"\none 1.0\n" in answered


def scrape(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text: bytes = response.read()
        return text


@pytest.mark.parametrize("more", [-1, 0, 1], ids=["one less than fit", "as many as fit", "one more"])
def test_half_sent_requests_wait_and_one_too_many_ends_the_oldest(
    connect: Callable[[bytes], socket.socket], more: int
) -> None:
    clients = [connect(HALF) for _ in range(CONNECTIONS + more)]
    if more > 0:
        assert answer(clients.pop(0)) == b""
    for client in clients:
        client.sendall(REST)
    assert all(is_served(answer(client)) for client in clients)


def test_a_scrape_is_answered_beside_any_number_of_half_sent_requests(
    port: int, connect: Callable[[bytes], socket.socket]
) -> None:
    threads = threading.active_count()
    for _ in range(10 * CONNECTIONS):
        connect(HALF)
    assert b"\none 1.0\n" in scrape(port)
    assert threading.active_count() <= threads + CONNECTIONS


def test_whoever_has_sent_a_request_is_ended_last(
    registry: CollectorRegistry, connect: Callable[[bytes], socket.socket]
) -> None:
    gate = Gate()
    registry.register(gate)
    scraping = connect(HALF + REST)
    assert gate.waiting.acquire(timeout=30)
    halves = [connect(HALF) for _ in range(3 * CONNECTIONS)]
    assert answer(halves[2 * CONNECTIONS]) == b""
    gate.open.set()
    assert is_served(answer(scraping))


def test_a_connection_that_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch, connect: Callable[[bytes], socket.socket]
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    slow, scraped = connect(HALF), connect(HALF + REST)
    assert is_served(answer(scraped))  # By then, the slow one has been taken, too.
    now += endpoint.TIMEOUT
    slow.settimeout(1.2)  # The server looks every half second.
    with pytest.raises(TimeoutError):
        slow.recv(1)
    now += 0.001
    slow.settimeout(30)
    assert answer(slow) == b""


def test_where_all_are_answered_the_oldest_is_ended_and_a_newcomer_that_finds_no_room_in_time_is_turned_away(
    monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry, connect: Callable[[bytes], socket.socket]
) -> None:
    monkeypatch.setattr(endpoint, "_ROOM_TIMEOUT", 0.1)
    gate = Gate()
    registry.register(gate)
    clients = [connect(HALF) for _ in range(CONNECTIONS)]
    for client in reversed(clients):  # The oldest is the last whose request is complete.
        client.sendall(REST)
        assert gate.waiting.acquire(timeout=30)
    assert answer(connect(HALF + REST)) == b""  # The thread of the oldest still collects.
    gate.open.set()
    assert answer(clients[0]) == b""
    assert all(is_served(answer(client)) for client in clients[1:])


def test_a_server_and_its_processes_bound_the_threads_of_their_metrics() -> None:
    with ServerProcess("--processes=2") as server:
        port = int(server.metrics_url.rpartition(":")[2].partition("/")[0])
        ports = [port, *(line["metrics_port"] for line in server.log if line.get("event") == "ready")]
        with contextlib.ExitStack() as stack:
            for each in ports:
                for _ in range(120):
                    client = stack.enter_context(socket.create_connection(("127.0.0.1", each), 30))
                    client.sendall(HALF)
            assert all(b"boxloss_waiting_pairs_limit" in scrape(each) for each in ports)
            wait_until(lambda: server.total("boxloss_processes_serving") == 2, "both are scraped")
