"""Every rule has data and every alert fires for its fault and clears after it, on the real Prometheus.

The fault of every alert is caused here, on a real server, with the shipped rules in fast motion (tests/prometheus.py).
At the rules' own pace promtool plays them all: deploy/prometheus/tests/boxloss_test.yml.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
import yaml

import boxloss
from boxloss.contract import wire
from boxloss.v1 import array_pb2, audit_service_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2 import EvaluateRequest
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.certificates import Authority
from tests.faulty_server import FAILS, FILLS_MEMORY
from tests.programs import run, tool
from tests.prometheus import FOLDER, Prometheus, rules
from tests.servers import ServerProcess, free_port, start, wait_until

pytestmark = pytest.mark.timeout(300)  # Windows and waits are shorter than in production, and still many seconds.

UNIT_TESTS = yaml.safe_load((FOLDER / "tests/boxloss_test.yml").read_text())
ALERTS = {rule["alert"]: rule for rule in rules("alert")}
OVERLOAD = {"BoxlossDeadlines", "BoxlossSlow", "BoxlossSaturated", "BoxlossQueueFull", "BoxlossRequestStuck"}
"""What fires when far more is asked than can be computed."""

SLOW_PAIRS = 2**19
"""Oriented boxes that take a second or more, on any machine."""
SLOW_CALLERS = 20
FILES = {"BoxlossCertificateExpiresSoon", "BoxlossCertificateExpired", "BoxlossFilesUnread"}
DAY = datetime.timedelta(days=1)
HURRIED_PAIRS = 5000
"""More than what is computed without a queue."""
PAUSE = 0.8
"""Seconds between a caller's calls: few enough who are turned away that the slow ones are over 1 % of all."""


def test_promtool_accepts_configuration_and_rules() -> None:
    run([tool("promtool"), "check", "config", str(FOLDER / "prometheus.yml")])
    run([tool("promtool"), "check", "rules", *map(str, (FOLDER / "rules").iterdir())])


def test_promtool_sees_alerts_fire_and_clear() -> None:
    run([tool("promtool"), "test", "rules", str(FOLDER / "tests/boxloss_test.yml")])


def test_every_alert_has_a_unit_test_of_firing_and_clearing() -> None:
    seen = set()
    for test in UNIT_TESTS["tests"]:
        alert = test["name"].partition(" ")[0].rstrip(",")
        checks = [check for check in test["promql_expr_test"] if "ALERTS" in check["expr"]]
        fires = [f'"{alert}"' in str(check.get("exp_samples")) for check in checks]
        if "keeps quiet" in test["name"]:
            assert len(fires) > 2
            assert not any(fires)
        else:
            assert fires[:3] == [False, True, False], test["name"]
            seen.add(alert)
    assert seen == ALERTS.keys()


def test_alerts_heed_every_service_of_the_contract_and_no_other() -> None:
    selectors = re.findall(r'grpc_service(\S+?"[^"]*")', (FOLDER / "rules/boxloss.yml").read_text())
    services = [*loss_service_pb2.DESCRIPTOR.services_by_name.values()]
    services += audit_service_pb2.DESCRIPTOR.services_by_name.values()
    (selector,) = set(selectors)
    pattern = selector.removeprefix('=~"').removesuffix('"')
    assert all(re.fullmatch(pattern, service.full_name) for service in services)
    assert not re.fullmatch(pattern, "grpc.health.v1.Health")


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{str(alert['alert']).lower()}"


def test_every_record_has_data(tmp_path: Path) -> None:
    boxes = np.random.default_rng(0).random((100, 2))
    boxes = np.hstack([boxes, boxes + 1])
    with (
        ServerProcess() as server,
        Prometheus(tmp_path / "prometheus", [server.metrics_url]) as prometheus,
        boxloss.Client(server.address) as client,
    ):
        missing = {f"{rule['record']}{selector(rule.get('labels', {}))}" for rule in rules("record")}
        assert len(missing) == len(rules("record"))

        def all_have_data() -> bool:
            client.evaluate(boxes, boxes[::-1], boxloss.CIoU())
            missing.difference_update([record for record in missing if prometheus.numbers(record)])
            return not missing

        wait_until(all_have_data, f"data of {missing}", 60)


def test_faults_fire_their_alerts_and_their_end_clears_them(tmp_path: Path) -> None:
    """All side by side, since they mostly wait; each with servers and a Prometheus of its own."""
    faults = (
        killed_servers,
        processes_that_die,
        certificates_that_expire_and_files_that_break,
        kernels_and_batches_that_fail_and_full_memory,
        a_caller_above_its_quota,
    )
    with ThreadPoolExecutor(len(faults)) as threads:
        for fault in faults:
            (tmp_path / fault.__name__).mkdir()
        for caused in [threads.submit(asyncio.run, fault(tmp_path / fault.__name__)) for fault in faults]:
            caused.result()


async def test_overload_fires_and_its_end_clears(tmp_path: Path) -> None:
    # Room for the slow ones, and for two of those who are in a hurry.
    room = f"--max-waiting-pairs={SLOW_CALLERS * SLOW_PAIRS + HURRIED_PAIRS + 1}"
    with (
        ServerProcess("--max-batch-pairs=1", room) as server,
        Prometheus(tmp_path / "prometheus", [server.metrics_url]) as prometheus,
    ):
        async with overload(server.address):
            await until_firing(prometheus, OVERLOAD)
        await until_clear(prometheus, OVERLOAD)


async def killed_servers(tmp_path: Path) -> None:
    flags = [[f"--metrics-port={free_port()}"] for _ in range(2)]
    with contextlib.ExitStack() as started:
        servers = start(started, *flags)
        addresses = [each.metrics_url for each in servers]
        prometheus = started.enter_context(Prometheus(tmp_path / "prometheus", addresses))
        wait_until(lambda: prometheus.numbers("sum(up)") == [2], "both are up")
        servers[0].kill()
        await until_firing(prometheus, {"BoxlossReplicaDown"})
        assert "BoxlossNoReplicaUp" not in prometheus.names_firing()
        prometheus.scrape(addresses[1:])  # As where discovery is by name, and the name is gone.
        wait_until(lambda: prometheus.numbers("count(count_over_time(up[6s]))") == [1], "one has long vanished")
        assert "BoxlossReplicaDown" in prometheus.names_firing()
        prometheus.scrape(addresses)
        servers[1].kill()
        await until_firing(prometheus, {"BoxlossNoReplicaUp", "BoxlossReplicaDown"})
        start(started, *flags)
        await until_clear(prometheus, {"BoxlossNoReplicaUp", "BoxlossReplicaDown"})


async def processes_that_die(tmp_path: Path) -> None:
    alerts = {"BoxlossNoReplicaUp", "BoxlossReplicaDown", "BoxlossProcessesMissing", "BoxlossCrashLoop"}
    with (
        ServerProcess("--processes=2") as server,
        Prometheus(tmp_path / "prometheus", [server.metrics_url]) as prometheus,
    ):
        await until_clear(prometheus, alerts)
        async with asyncio.TaskGroup() as group:
            killing = group.create_task(kill_processes(server.pid))
            await until_firing(prometheus, alerts)
            killing.cancel()
        await until_clear(prometheus, alerts)


async def kill_processes(supervisor: int) -> None:
    """Kills its processes as soon as they are there."""
    while True:
        for process in psutil.Process(supervisor).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await asyncio.sleep(0.1)


async def certificates_that_expire_and_files_that_break(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    now = datetime.datetime.now()
    soon = authority.issue("soon", not_before=now - DAY, not_after=now + 3 * DAY)
    shown = authority.issue("shown")
    with (
        ServerProcess(*shown.flags) as server,
        Prometheus(tmp_path / "prometheus", [server.metrics_url]) as prometheus,
    ):
        await until_clear(prometheus, FILES)
        shown.replace(soon)
        await until_firing(prometheus, {"BoxlossCertificateExpiresSoon"})
        assert prometheus.names_firing() == {"BoxlossCertificateExpiresSoon"}
        shown.replace(authority.issue_expired("expired"))
        await until_firing(prometheus, {"BoxlossCertificateExpired"})
        shown.certificate.write_text("no certificate")
        await until_firing(prometheus, {"BoxlossFilesUnread"})
        shown.replace(authority.issue("renewed"))
        await until_clear(prometheus, FILES)


async def kernels_and_batches_that_fail_and_full_memory(tmp_path: Path) -> None:
    """The compiler fails at once.

    The device is a stand-in, tests/faulty_server.py: it fails, or tells that its memory is nearly full, when a box asks
    for it. The server, its metrics, Prometheus and the rules are what everybody runs.
    """
    alerts = {"BoxlossKernelFailures", "BoxlossBatchFailures", "BoxlossDeviceMemory", "BoxlossErrors"}
    flags = "--compile=background", f"--kernel-cache={tmp_path / 'kernels'}"
    with (
        ServerProcess(*flags, module="tests.faulty_server", environment={"CXX": "false"}) as server,
        Prometheus(tmp_path / "prometheus", [server.metrics_url]) as prometheus,
        boxloss.Client(server.address) as client,
    ):
        failures = '{__name__=~"boxloss_(batch_failures|kernels)_total", outcome=~"failed|request|split"}'
        wait_until(lambda: prometheus.numbers(failures) == [0, 0, 0], "Prometheus has seen no failure")
        for _ in range(16):
            client.evaluate([[0, 0, 4, 4]], [[1, 2, 5, 8]], boxloss.CIoU())
        for _ in range(5):
            with pytest.raises(boxloss.BoxlossError, match="failed to compute"):
                client.evaluate([[FAILS, 0, 4, 4]], [[1, 2, 5, 8]], boxloss.CIoU())
        client.evaluate([[FILLS_MEMORY, 0, 4, 4]], [[1, 2, 5, 8]], boxloss.CIoU())
        await until_firing(prometheus, alerts)
        client.evaluate([[0, 0, 4, 4]], [[1, 2, 5, 8]], boxloss.CIoU())
        await until_clear(prometheus, alerts)


async def a_caller_above_its_quota(tmp_path: Path) -> None:
    with (
        ServerProcess("--client-pairs-per-second=1") as server,
        Prometheus(tmp_path / "prometheus", [server.metrics_url]) as prometheus,
    ):
        async with callers(server.address, (slow_request(1), None)):
            await until_firing(prometheus, {"BoxlossQuotaExceeded"})
        await until_clear(prometheus, {"BoxlossQuotaExceeded"})


def overload(address: str) -> AbstractAsyncContextManager[None]:
    """Callers with slow requests that fill the queue and more, and some who wait for too short a time."""
    patient, hurried = (slow_request(SLOW_PAIRS), None), (slow_request(HURRIED_PAIRS), 0.3)
    return callers(address, *SLOW_CALLERS * [patient], *8 * [hurried])


@asynccontextmanager
async def callers(address: str, *calls: tuple[EvaluateRequest, float | None]) -> AsyncIterator[None]:
    """Each sends its request again and again, with its timeout in seconds, whatever the answer."""

    async def call(stub: Any, request: EvaluateRequest, timeout: float | None) -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.Evaluate(request, timeout=timeout)
            await asyncio.sleep(PAUSE)

    async with grpc.aio.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        stub = LossServiceStub(channel)
        calling = [asyncio.create_task(call(stub, *each)) for each in calls]
        try:
            yield
        finally:
            for caller in calling:
                caller.cancel()
            await asyncio.gather(*calling, return_exceptions=True)


def slow_request(pairs: int) -> EvaluateRequest:
    boxes = array_pb2.Array(data=np.tile(np.array([0, 0, 4, 2, 30], "<f4"), (pairs, 1)).tobytes())
    return EvaluateRequest(
        predictions=boxes,
        targets=boxes,
        box_format=array_pb2.BOX_FORMAT_CXCYWHA_DEGREES,
        losses=[wire.loss_to_message(boxloss.IoU())],
        prediction_gradients=True,
    )


def selector(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


async def until_firing(prometheus: Prometheus, alerts: set[str]) -> None:
    """Waits until each of the alerts has fired, and looks at what it tells."""
    seen: set[str] = set()

    def all_seen() -> bool:
        for alert in prometheus.firing():
            seen.add(alert["labels"]["alertname"])
            told = alert["annotations"]["summary"] + alert["annotations"]["description"]
            assert not re.search("{{|<no value>|error expanding", told), told
        return seen >= alerts

    await asyncio.to_thread(wait_until, all_seen, f"{alerts} fire", 90)


async def until_clear(prometheus: Prometheus, alerts: set[str]) -> None:
    await asyncio.to_thread(wait_until, lambda: prometheus.is_clear(alerts), f"{alerts} are clear", 90)
