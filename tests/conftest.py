"""Fixtures that many tests share."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import grpc
import pytest

import boxloss
from boxloss.calls import aio_coalescer
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server.batching import batcher, quotas
from boxloss_server.logs import configure_logs
from tests.clock import FakeClock
from tests.servers import ServerProcess

signal.signal(signal.SIGINT, signal.default_int_handler)  # A script's background jobs, and their children, ignore it.
os.environ["BOXLOSS_COMPILE"] = "off"  # What needs kernels asks for them: compiling takes half a minute of a CPU.


@pytest.fixture(scope="session", autouse=True)
def _logs() -> None:
    """Servers in this process log as they do in others: structlog's own way is to print to standard output."""
    configure_logs("warning", "console")


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A server with the default settings, for tests that leave it as it was."""
    with ServerProcess() as process:
        yield process


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[boxloss.Client]:
    with boxloss.Client(server.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def stub(server: ServerProcess) -> Iterator[LossServiceStub]:
    """The raw contract, without the SDK."""
    with grpc.insecure_channel(server.address) as channel:
        yield LossServiceStub(channel)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The time of the test's event loop, of batching, and of calls of tasks that wait for each other."""
    clock = FakeClock(asyncio.get_running_loop())
    for module in (aio_coalescer, batcher, quotas):
        monkeypatch.setattr(module, "time", clock)
    return clock
