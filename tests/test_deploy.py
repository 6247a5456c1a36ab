"""The container, the compose file, Prometheus and Grafana fit the server and each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from boxloss_server import __version__
from boxloss_server.settings import Settings
from tests.programs import run, tool

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())

PORT = Settings.model_fields["port"].default
METRICS_PORT = Settings.model_fields["metrics_port"].default


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


def test_prometheus_finds_its_files_and_the_rules() -> None:
    mounts = dict(mount.split(":")[1::-1] for mount in COMPOSE["services"]["prometheus"]["volumes"])
    assert ROOT / mounts["/etc/prometheus"] == DEPLOY / "prometheus"
    found = [path for pattern in PROMETHEUS["rule_files"] for path in (DEPLOY / "prometheus").glob(pattern)]
    assert found == [DEPLOY / "prometheus/rules/boxloss.yml"]


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


@pytest.mark.parametrize("profile", [[], ["--profile", "gpu"]])
def test_compose_accepts_the_file(profile: list[str]) -> None:
    file = ["--file", str(ROOT / "docker-compose.yml"), *profile, "config", "--quiet"]
    run(compose() + file)


def compose() -> list[str]:
    """The plugin of docker where there is one, else the older program."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        return [docker, "compose"]
    return [tool("docker-compose")]
