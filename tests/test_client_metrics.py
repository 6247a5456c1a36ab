"""The metrics of real clients say what callers asked, and agree with those of the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

import boxloss
from boxloss import CIoU, GIoU
from boxloss.metrics import ClientMetrics
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.servers import ServerProcess, free_port
from tests.test_audit_service import some_images
from tests.test_metrics import PAGE, SUFFIXES, Samples, described, slow_request, until

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
INVERTED = [[4.0, 0.0, 0.0, 4.0]]


class Ledger:
    """A registry and what is in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = ClientMetrics(self.registry)

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels."""
        samples = [sample for family in self.registry.collect() for sample in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def own() -> Iterator[ServerProcess]:
    """A server of the test's own."""
    with ServerProcess("--max-request-pairs=10000") as server:
        yield server


def messages_at(server: ServerProcess) -> float:
    """How many messages have reached a server."""
    samples = Samples(server)
    streams = samples("grpc_server_started_total", grpc_method="EvaluateStream")
    return samples("grpc_server_started_total", grpc_service="boxloss.v1.LossService") - streams


def test_calls_are_counted_by_how_they_end(own: ServerProcess, ledger: Ledger) -> None:
    with boxloss.Client(own.address, metrics=ledger.metrics) as client:
        for _ in range(3):
            client.evaluate(A, B, CIoU())
        client.compare(A, B, [CIoU(), GIoU()])
        client.pairwise_iou(A, B)
        client.losses()
        with pytest.raises(boxloss.InvalidInputError):
            client.evaluate(A, INVERTED, CIoU())
        many = np.tile(np.array(A), (25_000, 1))
        assert len(client.evaluate(many, many, CIoU()).loss) == 25_000
        assert messages_at(own) == ledger("boxloss_client_messages_total") == 2 + 3 + 1 + 1 + 1 + 3
        assert len(list(client.evaluate_stream([(A, B), (many, many)], GIoU()))) == 2
        next(client.evaluate_stream([(A, B)] * 2, GIoU()))
    assert ledger("boxloss_client_calls_total", method="Evaluate", code="OK") == 5
    assert ledger("boxloss_client_calls_total", method="Evaluate", code="INVALID_ARGUMENT") == 1
    assert ledger("boxloss_client_calls_total", method="PairwiseIou", code="OK") == 1
    assert ledger("boxloss_client_calls_total", method="ListLosses", code="OK") == 2
    assert ledger("boxloss_client_calls_total", method="EvaluateStream", code="OK") == 2
    assert ledger("boxloss_client_calls_total") == 11
    assert ledger("boxloss_client_seconds_count", method="Evaluate") == 6
    assert ledger("boxloss_client_messages_total") == 11 + 4 + 2
    assert ledger("boxloss_client_retries_total") == 0
    # A call lasts longer than the server needs for it.
    handling = Samples(own)("grpc_server_handling_seconds_sum", grpc_method="Evaluate")
    assert ledger("boxloss_client_seconds_sum", method="Evaluate") > handling


async def test_calls_of_an_asyncio_client_are_counted(own: ServerProcess, ledger: Ledger) -> None:
    async def batches(number: int) -> Any:
        for _ in range(number):
            yield A, B

    async with boxloss.AsyncClient(own.address, metrics=ledger.metrics) as client:
        await client.evaluate(A, B, CIoU())
        await client.compare(A, B, [CIoU()])
        await client.pairwise_iou(A, B)
        await client.losses()
        assert len([result async for result in client.evaluate_stream(batches(3), GIoU())]) == 3
        with pytest.raises(boxloss.InvalidInputError):
            await client.evaluate(A, INVERTED, CIoU())
    assert ledger("boxloss_client_calls_total", code="OK") == 2 + 1 + 2 + 1
    assert ledger("boxloss_client_calls_total", method="Evaluate", code="INVALID_ARGUMENT") == 1
    assert ledger("boxloss_client_messages_total") == 3 + 1 + 2 + 3


async def test_the_images_of_an_audit_are_counted_as_messages(own: ServerProcess, ledger: Ledger) -> None:
    with boxloss.Client(own.address, metrics=ledger.metrics) as client:
        assert len(list(client.audit(some_images(5)))) == 5
    async with boxloss.AsyncClient(own.address, metrics=ledger.metrics) as connected:
        assert len([each async for each in connected.audit(some_images(7))]) == 7
    assert ledger("boxloss_client_calls_total", method="Audit", code="OK") == ledger("boxloss_client_calls_total") == 2
    assert ledger("boxloss_client_messages_total") == 5 + 7


async def test_calls_that_share_a_message_are_counted(own: ServerProcess, ledger: Ledger) -> None:
    async with boxloss.AsyncClient(own.address, metrics=ledger.metrics) as client:
        await client.info()
        await asyncio.gather(*(client.evaluate(A, B, CIoU()) for _ in range(64)))
    messages = Samples(own)("grpc_server_handled_total", grpc_method="Evaluate", grpc_code="OK")
    assert ledger("boxloss_client_calls_total", method="Evaluate", code="OK") == 64
    assert ledger("boxloss_client_coalesced_calls_sum") == 64
    assert ledger("boxloss_client_coalesced_calls_count") == messages == ledger("boxloss_client_messages_total") - 1
    assert messages < 64


def test_calls_of_threads_that_share_a_message_are_counted(own: ServerProcess, ledger: Ledger) -> None:
    with boxloss.Client(own.address, metrics=ledger.metrics) as client, ThreadPoolExecutor(16) as threads:
        client.info()
        list(threads.map(lambda _: client.evaluate(A, B, CIoU()), range(200)))
    assert ledger("boxloss_client_calls_total", method="Evaluate", code="OK") == 200
    assert ledger("boxloss_client_coalesced_calls_sum") == 200
    assert ledger("boxloss_client_coalesced_calls_count") == ledger("boxloss_client_messages_total") - 1


def test_retries_are_those_that_the_server_turned_away(ledger: Ledger) -> None:
    limit = 2**19
    flags = f"--max-request-pairs={limit}", f"--max-waiting-pairs={limit}"
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with (
        ServerProcess(*flags) as server,
        grpc.insecure_channel(server.address, options) as channel,
        boxloss.Client(server.address, timeout=60, metrics=ledger.metrics) as client,
    ):
        client.info()
        slow = LossServiceStub(channel).Evaluate.future(slow_request())
        until(server, lambda samples: samples("boxloss_waiting_requests") == 1)
        client.evaluate(A, B, CIoU())
        assert slow.result().results
        turned_away = Samples(server)("boxloss_rejected_total", reason="queue_full")
    assert ledger("boxloss_client_retries_total", method="Evaluate", reason="queue_full") == turned_away >= 1
    assert ledger("boxloss_client_retries_total") == turned_away
    assert ledger("boxloss_client_messages_total") == 2
    assert ledger("boxloss_client_calls_total", method="Evaluate", code="OK") == 1


@pytest.mark.parametrize("kind", ["call", "stream"])
def test_retries_while_no_server_answers_are_counted(kind: str, ledger: Ledger) -> None:
    port = free_port()
    server = ServerProcess(f"--port={port}")
    with boxloss.Client(server.address, timeout=60, metrics=ledger.metrics) as client:
        client.info()
        server.kill()

        def ask() -> int:
            if kind == "stream":
                return len(list(client.evaluate_stream([(A, B)] * 3, CIoU())))
            return len(client.evaluate(A, B, CIoU()).loss)

        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(ask)
            deadline = time.monotonic() + 60
            while not ledger("boxloss_client_retries_total"):
                assert time.monotonic() < deadline, "it is not tried again"
                time.sleep(0.01)
            with ServerProcess(f"--port={port}"):
                assert asked.result() == (3 if kind == "stream" else 1)
    method = "EvaluateStream" if kind == "stream" else "Evaluate"
    assert ledger("boxloss_client_retries_total", method=method, reason="unavailable") >= 1
    assert ledger("boxloss_client_calls_total", method=method, code="OK") == 1
    assert ledger("boxloss_client_messages_total") == 1 + (3 if kind == "stream" else 1)


async def test_calls_that_end_early_say_why(ledger: Ledger) -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        boxloss.Client(address, timeout=0.3, metrics=ledger.metrics) as client,
        pytest.raises(boxloss.ServerUnavailableError),
    ):
        client.losses()
    assert ledger("boxloss_client_calls_total", method="ListLosses", code="UNAVAILABLE") == 1
    async with boxloss.AsyncClient(address, timeout=60, metrics=ledger.metrics) as patient:
        call = asyncio.create_task(patient.losses())
        async with asyncio.timeout(60):
            while ledger("boxloss_client_messages_total") != 2:  # noqa: ASYNC110 - a task runs in turns of the loop.
                await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert ledger("boxloss_client_calls_total", method="ListLosses", code="CANCELLED") == 1


def test_the_page_has_every_metric_of_a_client(own: ServerProcess, ledger: Ledger) -> None:
    with boxloss.Client(own.address, metrics=ledger.metrics) as client:
        client.evaluate(A, B, CIoU())
    with (
        boxloss.Client(f"127.0.0.1:{free_port()}", timeout=0.3, metrics=ledger.metrics) as client,
        pytest.raises(boxloss.ServerUnavailableError),
    ):
        client.losses()
    kept = {
        family.name + SUFFIXES.get(family.type, ""): (
            family.type,
            {name for sample in family.samples for name in sample.labels} - {"le"},
        )
        for family in ledger.registry.collect()
    }
    assert described(PAGE.partition("## A client")[2]) == kept


def test_who_does_not_ask_needs_and_loads_neither_extra() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = sys.modules["opentelemetry"] = None
import boxloss
with boxloss.Client(sys.argv[1]) as client:
    print(client.evaluate([[0, 0, 4, 4]], [[0, 0, 4, 4]], boxloss.CIoU()).loss)
try:
    boxloss.Client(tracing=True)
except boxloss.BoxlossError as error:
    print(error)
try:
    import boxloss.metrics
except ImportError as error:
    print(error)
"""
    with ServerProcess() as server:
        command = [sys.executable, "-c", code, server.address]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "[0.]" in ended.stdout
    assert "pip install 'boxloss[tracing]'" in ended.stdout
    assert "pip install 'boxloss[metrics]'" in ended.stdout
