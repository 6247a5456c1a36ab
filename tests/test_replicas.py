"""Several servers, one client: all have their share, and when one ends, drains, joins or is busy, no call is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest

import boxloss
from boxloss import CIoU
from boxloss.cli import main
from boxloss.connection.channel import Address, target_of
from boxloss.contract import wire
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceServicer, LossServiceStub, add_LossServiceServicer_to_server
from boxloss_server.service import Server
from boxloss_server.settings import Settings
from tests.boxes import random_boxes
from tests.load import Load
from tests.names import NameServer
from tests.servers import ServerProcess, answered, free_port, start, wait_until

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]


@pytest.fixture(scope="module")
def replicas() -> Iterator[list[ServerProcess]]:
    """Two servers, for tests that leave them as they were."""
    with ExitStack() as stack:
        yield start(stack, [], [])


def shares(servers: list[ServerProcess], address: Address) -> list[float]:
    """How many of 100 calls of a new client each of the servers answers."""
    before = [answered(server) for server in servers]
    with boxloss.Client(address) as client:
        for _ in range(100):
            client.evaluate(A, B, CIoU())
    return [answered(server) - earlier for server, earlier in zip(servers, before, strict=True)]


# How calls are shared out


def test_servers_of_a_list_answer_in_turn(replicas: list[ServerProcess]) -> None:
    first, second = shares(replicas, [server.address for server in replicas])
    assert first + second == 100
    assert abs(first - second) <= 20, "but for the first calls, made before both are connected"


def test_names_in_a_list_are_looked_up(replicas: list[ServerProcess]) -> None:
    assert min(shares(replicas, [f"localhost:{server.port}" for server in replicas])) >= 40


def test_one_address_is_one_server(replicas: list[ServerProcess]) -> None:
    assert shares(replicas, replicas[1].address) == [0, 100]
    assert shares(replicas, [replicas[1].address]) == [0, 100]


async def test_tasks_are_shared_out_too(replicas: list[ServerProcess]) -> None:
    before = [answered(server) for server in replicas]
    async with boxloss.AsyncClient([server.address for server in replicas]) as client:
        for _ in range(100):
            await client.evaluate(A, B, CIoU())
    assert min(answered(server) - earlier for server, earlier in zip(replicas, before, strict=True)) >= 40


def test_the_command_takes_several_addresses(
    replicas: list[ServerProcess], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (server.address for server in replicas)
    named = f"{first}, {second} is healthy"
    assert run("ping", "--address", first, "--address", second) == 0
    assert named in capsys.readouterr().out
    monkeypatch.setenv("BOXLOSS_ADDRESS", f"{first} {second}")
    assert run("ping") == 0
    assert named in capsys.readouterr().out


# Replicas that end, drain and join, under load


def test_replicas_that_are_killed_come_back_or_drain_cost_no_call() -> None:
    with ExitStack() as stack:
        first, second = start(stack, [], [])
        with Load([first.address, second.address]) as load:
            load.go_on()
            first.kill()
            load.go_on()
            back = stack.enter_context(ServerProcess(f"--port={first.port}"))
            while not answered(back):
                load.go_on()
            second.terminate()
            assert second.wait() == 0
            load.go_on()


async def test_a_replica_that_does_not_serve_is_not_asked(replicas: list[ServerProcess]) -> None:
    """Between SIGTERM and the end of its connections, a server says so by the health service."""
    server = Server(Settings(_cli_parse_args=[], port=0, metrics_port=0, device="cpu"))
    await server.start()
    asked = server.registry.get_sample_value

    def calls() -> float:
        labels = {"grpc_type": "unary", "grpc_service": "boxloss.v1.LossService", "grpc_method": "Evaluate"}
        return asked("grpc_server_started_total", labels) or 0.0

    async with boxloss.AsyncClient([f"127.0.0.1:{server.port}", replicas[0].address]) as client:
        while not calls():
            await client.evaluate(A, B, CIoU())
        await server._health.end()
        before = calls()
        for _ in range(20):
            await client.evaluate(A, B, CIoU())
        assert calls() == before
    await server.stop()


def test_a_replica_that_joins_a_name_is_found_and_one_that_leaves_is_forgotten() -> None:
    port = free_port()
    hosts = "127.0.0.2", "127.0.0.3"
    flags = [[f"--host={host}", f"--port={port}", "--max-connection-age-s=1"] for host in hosts]
    with ExitStack() as stack, NameServer(hosts[0]) as names:
        first, second = start(stack, *flags)
        with Load(f"dns://127.0.0.1:{names.port}/replicas.test:{port}") as load:
            load.go_on()
            assert not answered(second)
            names.hosts.append(hosts[1])
            wait_until(lambda: answered(second) > 0, "the second is found", 20)
            names.hosts.remove(hosts[0])
            first.stop()
            load.go_on()


class Ending(LossServiceServicer):
    """What a server does to calls that reach it just when it stops taking any: gRPC has no other word for it then."""

    def __init__(self) -> None:
        self.calls = 0

    def Evaluate(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls += 1
        context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")

    EvaluateStream = Evaluate  # type: ignore[assignment]
    ListLosses = PairwiseIou = Evaluate


@pytest.fixture
def ending() -> Iterator[tuple[str, Ending]]:
    servicer = Ending()
    with ThreadPoolExecutor() as threads:
        server = grpc.server(threads)
        add_LossServiceServicer_to_server(servicer, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield address, servicer
        server.stop(None).wait()


def test_calls_that_a_stopping_replica_cancels_go_to_another(
    ending: tuple[str, Ending], replicas: list[ServerProcess]
) -> None:
    address, servicer = ending
    with boxloss.Client(replicas[0].address) as alone, boxloss.Client([address, replicas[0].address]) as client:
        client._server = alone.info()
        while servicer.calls < 4:
            assert len(client.evaluate(A, B, CIoU()).loss) == 1
        while servicer.calls < 8:
            assert len(list(client.evaluate_stream([(A, B)] * 3, CIoU()))) == 3


async def test_calls_of_tasks_that_a_stopping_replica_cancels_go_to_another(
    ending: tuple[str, Ending], replicas: list[ServerProcess]
) -> None:
    address, servicer = ending
    async with (
        boxloss.AsyncClient(replicas[0].address) as alone,
        boxloss.AsyncClient([address, replicas[0].address]) as client,
    ):
        client._server = await alone.info()
        while servicer.calls < 4:
            assert len((await client.evaluate(A, B, CIoU())).loss) == 1
        while servicer.calls < 8:
            assert len([result async for result in client.evaluate_stream([(A, B)] * 3, CIoU())]) == 3


# Busy replicas, and replicas of different limits


def test_a_call_that_a_busy_replica_refuses_is_answered_by_another(replicas: list[ServerProcess]) -> None:
    large = array_pb2.Array(data=np.tile(np.array([0, 0, 4, 4], "<f4"), (2**18, 1)).tobytes())
    request = loss_service_pb2.EvaluateRequest(
        predictions=large, targets=large, losses=[wire.loss_to_message(CIoU())] * 16, prediction_gradients=True
    )
    limit = 16 * 2**18
    with (
        ServerProcess(f"--max-request-pairs={limit}", f"--max-waiting-pairs={limit}") as busy,
        grpc.insecure_channel(busy.address, [("grpc.max_receive_message_length", -1)]) as channel,
        boxloss.Client([busy.address, replicas[0].address]) as client,
    ):
        client.info()
        slow: Any = LossServiceStub(channel).Evaluate.future(request)
        wait_until(lambda: busy.total("boxloss_waiting_requests") == 1, "the slow request is admitted")
        for _ in range(10):
            client.evaluate(A, B, CIoU())
        assert not slow.done()
        assert refused(busy) >= 4
        slow.cancel()


def refused(server: ServerProcess) -> float:
    return server.total("grpc_server_handled_total", grpc_method="Evaluate", grpc_code="RESOURCE_EXHAUSTED")


@pytest.mark.parametrize("limit", ["--max-message-bytes=4096", "--max-request-pairs=100"])
def test_replicas_of_different_limits_serve_the_same_client(limit: str, replicas: list[ServerProcess]) -> None:
    rng = np.random.default_rng(60)
    predictions, targets = random_boxes(rng, 1000), random_boxes(rng, 1000)
    wide = replicas[0]
    with ServerProcess(limit) as narrow, boxloss.Client(wide.address) as alone:
        expected = alone.evaluate(predictions, targets, CIoU())
        matrix = alone.pairwise_iou(predictions[:100], targets[:100])
        with boxloss.Client([narrow.address, wide.address]) as client:
            client._server = alone.info()  # Whoever of them was asked for its limits.
            while not answered(narrow):
                np.testing.assert_array_equal(client.evaluate(predictions, targets, CIoU()).loss, expected.loss)
        for _ in range(4):
            with boxloss.Client([narrow.address, wide.address]) as client:
                client._server = alone.info()
                np.testing.assert_array_equal(client.pairwise_iou(predictions[:100], targets[:100]), matrix)
                client._server = alone.info()
                batches = [(predictions[: 50 * n], targets[: 50 * n]) for n in range(1, 20)]
                for n, result in enumerate(client.evaluate_stream(batches, CIoU()), 1):
                    np.testing.assert_array_equal(result.loss, expected.loss[: 50 * n])


# What goes wrong


def test_all_addresses_are_named_when_none_answers() -> None:
    addresses = [f"127.0.0.1:{free_port()}", f"localhost:{free_port()}"]
    with (
        boxloss.Client(addresses, timeout=0.5) as client,
        pytest.raises(boxloss.ServerUnavailableError, match=f"no boxloss server answers at {', '.join(addresses)}"),
    ):
        client.evaluate(A, B, CIoU())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ([], "address: is empty"),
        ("one:1,two:2", "address: 'one:1,two:2' has a comma; give several as a list"),
        ("::1", r"address: '::1' is no host:port, like localhost:50051 or \[::1\]:50051"),
        ("[::1]", "is no host:port, like"),
        ("::1:50051", "is no host:port, like"),
        ("localhost", "address: 'localhost' is no host:port"),
        ("localhost:", "is no host:port"),
        ("localhost:65536", "is no host:port"),
        ("http://localhost:50051", "is no host:port"),
        ("", "address: '' is no host:port"),
        (["localhost"], "address: 'localhost' is no host:port"),
        (["127.0.0.1:1", "127.0.0.1"], r"address\[1\]: '127.0.0.1' is no host:port"),
        (["127.0.0.1:1", "127.0.0.1:port"], r"address\[1\]: '127.0.0.1:port' is no host:port"),
        (["dns:///replicas:1", "127.0.0.1:1"], r"address\[0\]: 'dns:///replicas:1' is no host:port"),
        (["127.0.0.1:1", "unix:/tmp/socket"], r"address\[1\]: 'unix:/tmp/socket' is no host:port"),
    ],
)
def test_addresses_that_are_none_are_named(address: Address, message: str) -> None:
    with pytest.raises(boxloss.InvalidInputError, match=message):
        boxloss.Client(address)


def test_a_name_in_a_list_that_is_not_known_is_named() -> None:
    with pytest.raises(boxloss.ServerUnavailableError, match=r"replica.invalid is not known .* address\[1\]"):
        boxloss.Client(["127.0.0.1:1", "replica.invalid:2"])


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("host:1", "host:1"),
        (["host:1"], "host:1"),
        ("unix:/tmp/socket", "unix:/tmp/socket"),
        ("dns:///host:1", "dns:///host:1"),
        (["127.0.0.1:1", "127.0.0.2:2"], "ipv4:127.0.0.1:1,127.0.0.2:2"),
        (("[::1]:1", "[::2]:2"), "ipv6:[::1]:1,[::2]:2"),
        (["127.0.0.1:1", "[::1]:2"], "ipv6:[::ffff:127.0.0.1]:1,[::1]:2"),
    ],
)
def test_addresses_as_grpc_writes_them(address: Address, target: str) -> None:
    assert target_of(address) == target


def run(*arguments: str) -> Any:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code or 0
