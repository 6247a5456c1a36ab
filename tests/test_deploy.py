"""The container, the compose file, Prometheus and the dashboard fit the server, and the real Prometheus agrees."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml

import boxloss
from boxloss.v1.loss_service_pb2 import EvaluateRequest
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server import __version__
from boxloss_server.settings import Settings
from tests.servers import ServerProcess, free_port

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/boxloss.json").read_text())

PORT = Settings.model_fields["port"].default
METRICS_PORT = Settings.model_fields["metrics_port"].default
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target.get('legendFormat', '')}".strip())
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]
CAPACITY = 16384
"""Pairs that the server takes at once here: so few that two callers get into each other's way."""


def instruction(name: str) -> list[str]:
    """The arguments of all the Dockerfile's instructions of one kind."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [argument for line in lines if line.startswith(f"{name} ") for argument in line.split()[1:]]


def test_image_serves_on_the_settings_ports() -> None:
    assert instruction("EXPOSE") == [str(PORT), str(METRICS_PORT)]
    assert str(PORT) in (DEPLOY / "healthcheck.py").read_text()


def test_image_sets_settings_that_exist() -> None:
    variables = dict(variable.split("=", 1) for variable in instruction("ENV"))
    settings = {name.removeprefix("BOXLOSS_").lower() for name in variables if name.startswith("BOXLOSS_")}
    assert {"host", "metrics_host"} <= settings <= Settings.model_fields.keys()


def test_image_has_the_version_of_the_server() -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in DOCKERFILE


@pytest.mark.parametrize("service", ["server", "server-gpu"])
def test_compose_publishes_the_ports_to_this_computer_only(service: str) -> None:
    ports = [port.split(":") for port in COMPOSE["services"][service]["ports"]]
    assert [int(inside) for _, _, inside in ports] == [PORT, METRICS_PORT]
    assert {address for address, _, _ in ports} == {"127.0.0.1"}


@pytest.mark.parametrize("service", ["server", "server-gpu"])
def test_compose_builds_targets_and_leaves_time_to_answer(service: str) -> None:
    settings = COMPOSE["services"][service]
    assert re.search(rf"^FROM .* AS {settings['build']['target']}$", DOCKERFILE, re.MULTILINE)
    assert int(settings["stop_grace_period"].removesuffix("s")) > Settings.model_fields["shutdown_grace_s"].default


def test_prometheus_scrapes_the_services_of_compose() -> None:
    (scraped,) = PROMETHEUS["scrape_configs"][0]["dns_sd_configs"]
    assert set(scraped["names"]) == {name for name in COMPOSE["services"] if name.startswith("server")}
    assert scraped["port"] == METRICS_PORT


def test_grafana_finds_its_files_and_prometheus() -> None:
    mounts = [mount.split(":") for mount in COMPOSE["services"]["grafana"]["volumes"]]
    inside = {target: ROOT / source for source, target, _ in mounts}
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/boxloss.yml").read_text())["providers"][0]
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    home = Path(COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert inside["/etc/grafana/provisioning"] == DEPLOY / "grafana/provisioning"
    assert (inside[provider["options"]["path"]] / home.name).is_file()
    assert str(home.parent) == provider["options"]["path"]
    assert source["url"] == f"http://prometheus:{COMPOSE['services']['prometheus']['ports'][0].split(':')[-1]}"
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]


def test_dashboard_panels_do_not_overlap_and_use_the_chosen_source() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if panel["type"] != "row"} == {"${datasource}"}


@pytest.mark.parametrize("profile", [[], ["--profile", "gpu"]])
def test_compose_accepts_the_file(profile: list[str]) -> None:
    file = ["--file", str(ROOT / "docker-compose.yml"), *profile, "config", "--quiet"]
    run(compose() + file)


def test_promtool_accepts_the_configuration() -> None:
    run([tool("promtool"), "check", "config", str(DEPLOY / "prometheus/prometheus.yml")])


@pytest.mark.parametrize("query", QUERIES)
def test_dashboard_query_has_data(query: str, prometheus: str) -> None:
    query = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in query

    def has_data() -> bool:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
            series = json.load(answer)["data"]["result"]
        return any(math.isfinite(float(one["value"][1])) for one in series)

    wait_until(has_data, f"{query} has data")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prometheus that scrapes a server under load."""
    folder = tmp_path_factory.mktemp("prometheus")
    program = tool("prometheus")
    limits = f"--max-request-pairs={CAPACITY}", f"--max-waiting-pairs={CAPACITY}"
    with ServerProcess(*limits) as server, load(server.address):
        config = json.loads(json.dumps(PROMETHEUS))
        config["global"]["scrape_interval"] = "1s"
        scraped = config["scrape_configs"][0]
        del scraped["dns_sd_configs"]
        scraped["static_configs"] = [{"targets": [urllib.parse.urlsplit(server.metrics_url).netloc]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        own = f"127.0.0.1:{free_port()}"
        command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "log").open("w") as log, process([*command, f"--web.listen-address={own}"], stderr=log):
            wait_until(lambda: is_ready(f"http://{own}/-/ready"), "Prometheus is ready")
            yield f"http://{own}"


@contextmanager
def load(address: str) -> Iterator[None]:
    """Two callers that ask for more than the server takes at once, and now and then for nothing at all."""
    done = threading.Event()
    corners = np.random.default_rng(0).random((CAPACITY * 3 // 4, 2))
    boxes = np.hstack([corners, corners + 1])

    def call() -> None:
        with boxloss.Client(address) as client, grpc.insecure_channel(address) as channel:
            while not done.wait(0.01):
                client.evaluate(boxes, boxes[::-1], boxloss.CIoU())
                client.pairwise_iou(boxes[:8], boxes[:8])
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


@contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, **options) as started:
        try:
            yield started
        finally:
            started.terminate()
            started.communicate()


def run(command: list[str]) -> None:
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def compose() -> list[str]:
    """The plugin of docker where there is one, else the older program."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        return [docker, "compose"]
    return [tool("docker-compose")]


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url):
            return True
    except urllib.error.URLError:
        return False


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)
