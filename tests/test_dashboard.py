"""The dashboard is well-formed, shows what the server tells, and every query of it has data on the real Prometheus."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml

import boxloss
from boxloss.audit.image import Image, Labels, Predictions
from boxloss.v1.loss_service_pb2 import EvaluateRequest
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server.service.metrics import Metrics
from tests.prometheus import Prometheus
from tests.servers import ServerProcess, wait_until

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
    selectors = re.findall(r"\b(?:boxloss_|grpc_|up)\w*\{[^}]*\}", query)
    assert selectors or "ALERTS" in query
    assert all('instance=~"$instance"' in selector for selector in selectors)


def test_all_metrics_of_the_server_are_shown() -> None:
    queries = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    families = {family.name for family in Metrics().registry.collect()}
    assert {name for name in families if name not in queries} <= {"grpc_server_started"}


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
    """A Prometheus that watches a server under load."""
    limits = f"--max-request-pairs={CAPACITY}", f"--max-waiting-pairs={CAPACITY}"
    with (
        ServerProcess(*limits) as server,
        load(server.address),
        Prometheus(tmp_path_factory.mktemp("dashboard") / "prometheus", [server.metrics_url]) as started,
    ):
        yield started


@contextmanager
def load(address: str) -> Iterator[None]:
    """Two callers that ask for more than the server takes at once, with bad boxes, and now and then for nothing."""
    done = threading.Event()
    corners = np.random.default_rng(0).random((CAPACITY * 3 // 4, 2))
    boxes = np.hstack([corners, corners + 1])
    inverted = boxes[:8, [2, 3, 0, 1]]
    labeled = Image(0, Labels(boxes[:8], ["cat"] * 8), Predictions(boxes[1:9], ["cat"] * 8, np.ones(8)))

    def call() -> None:
        with boxloss.Client(address) as client, grpc.insecure_channel(address) as channel:
            while not done.wait(0.01):
                client.evaluate(boxes, boxes[::-1], boxloss.CIoU())
                client.evaluate(inverted, boxes[:8], boxloss.CIoU(), invalid="mask")
                client.pairwise_iou(boxes[:8], boxes[:8])
                client.audit([labeled]).summary()
                with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
                    LossServiceStub(channel).Evaluate(EvaluateRequest())

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        done.set()
        for caller in callers:
            caller.join()
