"""The dashboard is well-formed, shows what the server tells, and every query of it has data on the real Prometheus."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml

import boxloss
from boxloss import Tls
from boxloss.audit.image import Image, Labels, Predictions
from boxloss.v1 import audit_service_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2 import EvaluateRequest
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.certificates import Authority
from tests.prometheus import Prometheus
from tests.security.callers import TOKENS, bearer, write_tokens
from tests.servers import ServerProcess, wait_until
from tests.test_metrics import PAGE, described

GRAFANA = Path(__file__).parent.parent / "deploy/grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards/boxloss.json").read_text())
SOURCE = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TITLES = [panel["title"] for panel in PANELS]
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']}: {target['legendFormat']}")
    for panel in PANELS
    for target in panel["targets"]
]
CAPACITY = 16384
"""Pairs that the server takes at once here: so few that two callers get into each other's way."""


@pytest.mark.parametrize("key", ["id", "title"])
def test_ids_and_titles_are_unique(key: str) -> None:
    times = Counter(panel[key] for panel in DASHBOARD["panels"])
    assert [value for value, count in times.items() if count > 1] == []


def test_panels_do_not_overlap_and_stay_on_the_page() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)


def test_rows_stand_above_their_panels() -> None:
    tops = [panel["gridPos"]["y"] for panel in DASHBOARD["panels"]]
    assert tops == sorted(tops)
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == [
        "Overview",
        "Latency by stage",
        "Batching",
        "Errors",
        "Saturation",
        "Device",
        "Label quality",
        "Processes and files",
    ]
    assert all(row["panels"] == [] for row in DASHBOARD["panels"] if row["type"] == "row")


def test_the_source_can_be_chosen_and_is_the_provisioned_one() -> None:
    assert VARIABLES["datasource"]["current"] == {"text": SOURCE["name"], "value": SOURCE["uid"]}
    assert VARIABLES["datasource"]["query"] == SOURCE["type"]
    for user in [*PANELS, VARIABLES["instance"]]:
        assert user["datasource"] == {"type": SOURCE["type"], "uid": "${datasource}"}


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["targets"]
    assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))
    unit = panel["options"].get("yAxis", {}) if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
    assert unit.get("unit") or panel["type"] == "table"


@pytest.mark.parametrize("query", QUERIES)
def test_query_is_of_the_chosen_servers(query: str) -> None:
    selectors = re.findall(r"\b(?:boxloss_|grpc_|process_|up)\w*\{[^}]*\}", query)
    assert selectors or "ALERTS" in query
    assert all('instance=~"$instance"' in selector for selector in selectors)


def test_all_metrics_of_the_server_are_shown() -> None:
    queries = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    names = {re.sub("_(total|info)$", "", name) for name in described(PAGE.partition("## A client")[0])}
    assert {name for name in names if name not in queries} == {"grpc_server_started", "process_virtual_memory_bytes"}


def test_calls_are_those_of_every_service_of_the_contract_and_of_no_other() -> None:
    selectors = [each for query in QUERIES for each in re.findall(r'grpc_service(=~"[^"]+")', str(query.values[0]))]
    assert len(selectors) == sum(str(query.values[0]).count("grpc_server_") for query in QUERIES)
    services = {
        service.full_name
        for contract in (loss_service_pb2, audit_service_pb2)
        for service in contract.DESCRIPTOR.services_by_name.values()
    }
    for selector in selectors:
        pattern = selector[3:-1]
        assert all(re.fullmatch(pattern, service) for service in services)
        assert not re.fullmatch(pattern, "grpc.health.v1.Health")


@pytest.mark.parametrize("query", QUERIES)
def test_query_has_data(query: str, prometheus: Prometheus) -> None:
    query = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in query
    wait_until(lambda: bool(prometheus.numbers(query)), f"{query} has data", 60)


def test_the_variable_finds_the_servers(prometheus: Prometheus) -> None:
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", VARIABLES["instance"]["query"]["query"]).groups()  # type: ignore[union-attr]
    wait_until(lambda: prometheus.numbers(f"count by ({label}) ({metric})") == [1], "there is one server")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that watches a server of two processes, with TLS and tokens, under load."""
    folder = tmp_path_factory.mktemp("dashboard")
    authority = Authority(folder / "authority")
    write_tokens(folder / "tokens", TOKENS)
    guards = f"--tokens-file={folder / 'tokens'}", *authority.issue("server").flags
    limits = f"--max-request-pairs={CAPACITY}", f"--max-waiting-pairs={CAPACITY}"
    with (
        ServerProcess("--processes=2", *limits, *guards) as server,
        load(server.address, Tls(authority.certificate), TOKENS["alice"]),
        Prometheus(folder / "prometheus", [server.metrics_url]) as started,
    ):
        yield started


@contextmanager
def load(address: str, tls: Tls, token: str) -> Iterator[None]:
    """Two callers that ask for more than the server takes at once, with bad boxes, and now and then for nothing."""
    over = threading.Event()
    corners = np.random.default_rng(0).random((CAPACITY * 3 // 4, 2))
    boxes = np.hstack([corners, corners + 1])
    inverted = boxes[:8, [2, 3, 0, 1]]
    labeled = Image(0, Labels(boxes[:8], ["cat"] * 8), Predictions(boxes[1:9], ["cat"] * 8, np.ones(8)))

    def ask(client: boxloss.Client, stub: LossServiceStub) -> None:
        client.evaluate(boxes, boxes[::-1], boxloss.CIoU())
        client.evaluate(inverted, boxes[:8], boxloss.CIoU(), invalid="mask")
        client.pairwise_iou(boxes[:8], boxes[:8])
        client.audit([labeled]).summary()
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            stub.Evaluate(EvaluateRequest(), metadata=bearer(token))

    def ask_on() -> None:
        with (
            boxloss.Client(address, tls=tls, token=token) as client,
            grpc.secure_channel(address, tls.credentials()) as channel,
            ThreadPoolExecutor(2) as callers,
        ):
            while not over.wait(0.2):
                for asked in [callers.submit(ask, client, LossServiceStub(channel)) for _ in range(2)]:
                    asked.result()

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
