"""The components of the Kubernetes manifests: what they let through, and what real servers and Envoys make of them.

A server and an Envoy run with the variables, files and mounts of base with all components; substituted are addresses,
and the folders of the mounts.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import trustme
import yaml

import boxloss
from boxloss import CIoU, Tls
from boxloss_server.security.permissions import check_permissions, weaknesses
from tests.edge import CONFIGURATION, Envoy
from tests.manifests import (
    COMPONENTS,
    IN_HOUSE,
    Document,
    allows,
    container,
    kustomized,
    pod_of,
    rendered,
    the,
    variables_of,
)
from tests.names import NameServer
from tests.receiver import Receiver
from tests.servers import ServerProcess, free_port, wait_until
from tests.volumes import SecretVolume

ROOT = Path(__file__).parent.parent
HEALTHCHECK = ROOT / "deploy/healthcheck.py"
SCALING = (ROOT / "docs/scaling.md").read_text()

HOST = "127.0.0.1"
NAMES = ("boxloss.boxloss", "boxloss-servers", HOST)
TOKENS = {"training": "training-0123456789abcdef", "labeling": "labeling-0123456789abcdef"}
A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
CIOU_OF_A_AND_B = 0.9361860890731847
PROBES = ("startup", "readiness", "liveness")

ALL = rendered("base", *COMPONENTS)


@pytest.mark.parametrize("name", ["base", "gpu"])
@pytest.mark.parametrize(
    "components", [each for size in (1, 2) for each in combinations(COMPONENTS, size)], ids="+".join
)
def test_any_of_them_can_be_taken(name: str, components: tuple[str, ...]) -> None:
    """All of them together are in test_kubernetes.py."""
    documents = rendered(name, *components)
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    assert {document["kind"] for document in documents} == {document["kind"] for document in rendered(name)}


def test_the_order_does_not_matter() -> None:
    def settings(documents: list[Document]) -> tuple[Any, ...]:
        volumes = pod_of(documents, "boxloss-servers")["spec"]["volumes"]
        return variables_of(documents), sorted(volumes, key=str), the(documents, "NetworkPolicy", "boxloss-servers")

    assert settings(rendered("base", *reversed(COMPONENTS))) == settings(ALL)


def examples() -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```$", SCALING, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", examples(), ids=lambda text: re.findall(r"components/(\w+)", text)[-1])
def test_the_examples_of_the_docs_can_be_applied(example: str, tmp_path: Path) -> None:
    (tmp_path / "boxloss").symlink_to(ROOT)
    (tmp_path / "kustomization.yaml").write_text(example)
    documents = kustomized(tmp_path)
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_docs_have_an_example_of_each() -> None:
    assert {name for text in examples() for name in re.findall(r"components/(\w+)", text)} == set(COMPONENTS)


# Tracing: whom the servers may call

RECEIVER = {"app.kubernetes.io/name": "opentelemetry-collector"}
DNS = {"k8s-app": "kube-dns"}
MONITORING = {"kubernetes.io/metadata.name": "monitoring"}
SYSTEM = {"kubernetes.io/metadata.name": "kube-system"}


@pytest.mark.parametrize("components", [(), ("tls",), ("tokens",), ("tls", "tokens")], ids="+".join)
def test_without_tracing_the_servers_may_call_nobody(components: tuple[str, ...]) -> None:
    policy = the(rendered("base", *components), "NetworkPolicy", "boxloss-servers")["spec"]
    assert "Egress" in policy["policyTypes"]
    assert not policy.get("egress")


@pytest.mark.parametrize("name", ["base", "gpu"])
@pytest.mark.parametrize(
    ("namespace", "pod", "port", "protocol", "allowed"),
    [
        (MONITORING, RECEIVER, 4317, "TCP", True),
        (SYSTEM, DNS, 53, "UDP", True),
        (SYSTEM, DNS, 53, "TCP", True),
        (MONITORING, RECEIVER, 4317, "UDP", False),
        (MONITORING, RECEIVER, 4318, "TCP", False),
        (MONITORING, {"app.kubernetes.io/name": "prometheus"}, 4317, "TCP", False),
        (MONITORING, DNS, 53, "UDP", False),
        (SYSTEM, RECEIVER, 4317, "TCP", False),
        (SYSTEM, DNS, 443, "TCP", False),
        (IN_HOUSE, RECEIVER, 4317, "TCP", False),
        (IN_HOUSE, {"app.kubernetes.io/component": "edge"}, 50051, "TCP", False),
        ({}, {}, 53, "UDP", False),
    ],
)
def test_tracing_reaches_its_receiver_and_names_and_nothing_else(
    name: str, namespace: dict[str, str], pod: dict[str, str], port: int, protocol: str, allowed: bool
) -> None:
    for components in (("tracing",), COMPONENTS):
        policy = the(rendered(name, *components), "NetworkPolicy", "boxloss-servers")
        assert allows(policy, "egress", port, namespace, pod, protocol) is allowed


def test_the_receiver_of_the_variables_is_the_one_that_may_be_called() -> None:
    documents = rendered("base", "tracing")
    endpoint = urlsplit(variables_of(documents)["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert endpoint.hostname
    service, namespace = endpoint.hostname.split(".")
    assert endpoint.port
    policy = the(documents, "NetworkPolicy", "boxloss-servers")
    where, which = {"kubernetes.io/metadata.name": namespace}, {"app.kubernetes.io/name": service}
    assert allows(policy, "egress", endpoint.port, where, which)


def test_components_leave_who_may_call_as_it_is() -> None:
    for name in ("boxloss-servers", "boxloss-edge"):
        before, after = (the(documents, "NetworkPolicy", name)["spec"] for documents in (rendered("base"), ALL))
        assert after["ingress"] == before["ingress"]
    assert after["egress"] == before["egress"], "Envoy's"


# TLS and tokens: what is mounted


def secrets_of(deployment: str) -> dict[str, tuple[str, Document]]:
    """The folders of the secrets that a deployment's container mounts, with the secrets' names and sources."""
    pod = pod_of(ALL, deployment)
    volumes = {volume["name"]: volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume}
    mounts = {mount["name"]: mount for mount in container(pod)["volumeMounts"] if mount["name"] in volumes}
    assert mounts.keys() == volumes.keys()
    assert all(mount["readOnly"] for mount in mounts.values())
    return {mounts[name]["mountPath"]: (source["secretName"], source) for name, source in volumes.items()}


@pytest.mark.parametrize(
    ("deployment", "names"),
    [("boxloss-servers", {"boxloss-tls", "boxloss-tokens"}), ("boxloss-edge", {"boxloss-tls"})],
)
def test_secrets_are_for_their_reader_alone(deployment: str, names: set[str]) -> None:
    """Files of a secret belong to root: it is the group, fsGroup, through which the container's user may read them."""
    secrets = secrets_of(deployment)
    assert {name for name, _ in secrets.values()} == names
    assert {source["defaultMode"] for _, source in secrets.values()} == {0o440}
    context = pod_of(ALL, deployment)["spec"]["securityContext"]
    assert context["fsGroup"] == context["runAsGroup"]


def test_the_files_of_the_settings_are_in_the_secrets() -> None:
    variables = variables_of(ALL)
    tls, tokens = (
        Path(next(path for path, (name, _) in secrets_of("boxloss-servers").items() if name == secret))
        for secret in ("boxloss-tls", "boxloss-tokens")
    )
    assert variables["BOXLOSS_TLS_CERTIFICATE"] == str(tls / "tls.crt")
    assert variables["BOXLOSS_TLS_KEY"] == str(tls / "tls.key")
    assert variables["BOXLOSS_TOKENS_FILE"] == str(tokens / "tokens")


# Envoy with TLS


def without_tls(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: without_tls(value) for name, value in part.items() if name != "transport_socket"}
    return [without_tls(each) for each in part] if isinstance(part, list) else part


def test_envoys_file_for_tls_is_the_other_one_with_tls_to_clients_and_servers_added() -> None:
    plain = yaml.safe_load(CONFIGURATION.read_text())
    config = yaml.safe_load((CONFIGURATION.parent / "tls/envoy.yaml").read_text())
    assert config.pop("node").keys() == {"id", "cluster"}
    assert without_tls(config) == plain == without_tls(plain)
    resources = config["static_resources"]
    listener, cluster = resources["listeners"][0], resources["clusters"][0]
    (chain,) = listener["filter_chains"]
    assert (listener["name"], cluster["name"]) == ("boxloss", "boxloss")
    assert chain["transport_socket"]["typed_config"]["@type"].endswith(".DownstreamTlsContext")
    assert cluster["transport_socket"]["typed_config"]["@type"].endswith(".UpstreamTlsContext")
    assert CONFIGURATION.read_text().count("transport_socket") == 0


# In earnest


class Authority:
    """Issues secrets as one makes them from files, or as cert-manager does."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.certificate = self._ca.cert_pem.bytes()

    def secret(self, *names: str) -> dict[str, bytes]:
        issued = self._ca.issue_cert(*names)
        chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
        return {"tls.crt": chain, "tls.key": issued.private_key_pem.bytes(), "ca.crt": self.certificate}


def tokens_of(*names: str) -> dict[str, bytes]:
    return {"tokens": "".join(f"{name}  {TOKENS[name]}\n" for name in names).encode()}


class Site:
    """A server and Envoy as in their pods, with the secrets that they read.

    Args:
        folder: for their files.
        receiver: of the server's traces.
        stack: ends them.
    """

    def __init__(self, folder: Path, receiver: Receiver, stack: ExitStack) -> None:
        self.authority = Authority()
        secrets = {"boxloss-tls": self.authority.secret(*NAMES), "boxloss-tokens": tokens_of("training")}
        self.variables = dict(variables_of(ALL)) | receiver.variables
        self.volumes: dict[tuple[str, str], SecretVolume] = {}
        for deployment in ("boxloss-servers", "boxloss-edge"):
            for path, (name, source) in secrets_of(deployment).items():
                volume = SecretVolume(folder / deployment / name, source["defaultMode"], secrets[name])
                self.volumes[deployment, name] = volume
                if deployment == "boxloss-servers":
                    self.variables |= {
                        variable: value.replace(path, str(volume.folder)) for variable, value in self.variables.items()
                    }
        trusted = folder / "ca.pem"
        trusted.write_bytes(self.authority.certificate)
        self.tls = Tls(trusted)

        port = free_port()
        flags = f"--host={HOST}", f"--port={port}"
        self.server = stack.enter_context(ServerProcess(*flags, environment=self.variables))
        self._names = stack.enter_context(NameServer(HOST))
        (folder / "envoy").mkdir()
        self.envoy = stack.enter_context(self.edge(folder / "envoy"))

    def edge(self, folder: Path, healthy: bool = True) -> Envoy:
        """An Envoy before the server, with its files in a folder."""
        files = the(ALL, "ConfigMap", "boxloss-envoy")["data"]
        tls = self.volumes["boxloss-edge", "boxloss-tls"].folder
        return Envoy(folder, self.server.port, self._names, files, tls, healthy)

    def update(self, secret: str, data: dict[str, bytes], *deployments: str) -> None:
        """Changes a secret in the pods of deployments, or wherever it is mounted."""
        for (deployment, name), volume in self.volumes.items():
            if name == secret and deployment in (deployments or (deployment,)):
                volume.update(data)

    def probe(self, name: str, port: int | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the program of a probe, as the kubelet would in the server's container."""
        command = container(pod_of(ALL, "boxloss-servers"))[f"{name}Probe"]["exec"]["command"]
        programs = {"python": sys.executable, "/opt/healthcheck.py": str(HEALTHCHECK)}
        return subprocess.run(
            [programs.get(part, part) for part in command],
            env=os.environ | self.variables | {"BOXLOSS_PORT": str(port or self.server.port)},
            capture_output=True,
            text=True,
        )

    def evaluate(self, address: str, token: str | None = TOKENS["training"], **options: Any) -> None:
        with boxloss.Client(address, tls=self.tls, token=token, **options) as client:
            assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])

    def shown(self, address: str) -> str:
        """The certificate that a new connection is shown."""
        host, port = address.split(":")
        return ssl.get_server_certificate((host, int(port)))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def site(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("site"), receiver, stack)


def test_the_server_takes_the_secrets_as_they_are_mounted(site: Site) -> None:
    for (_, name), volume in site.volumes.items():
        for file in volume.folder.glob("[!.]*"):
            check_permissions(name, file)
            assert not weaknesses(file, secret=True), file
    assert not [line for line in site.server.log if line.get("event") == "a file is open to other users"]


def test_calls_pass_envoy_and_reach_the_server_with_tls_and_a_token(site: Site) -> None:
    for address in (site.envoy.address, site.server.address):
        site.evaluate(address)
        with pytest.raises(boxloss.UnauthenticatedError):
            site.evaluate(address, token=None)
        with pytest.raises(boxloss.ServerUnavailableError, match="TLS"), boxloss.Client(address, timeout=1) as plain:
            plain.info()
    assert "eprecated" not in site.envoy.errors.read_text()


@pytest.mark.parametrize("probe", PROBES)
def test_probes_find_a_server_with_tls_and_nobody_where_there_is_none(site: Site, probe: str) -> None:
    outcome = site.probe(probe)
    assert outcome.returncode == 0, outcome.stderr
    assert site.probe(probe, free_port()).returncode == 1


def test_a_pod_is_ready_by_the_service_and_alive_by_the_server() -> None:
    probes = {name: container(pod_of(ALL, "boxloss-servers"))[f"{name}Probe"] for name in PROBES}
    before = {name: container(pod_of(rendered("base"), "boxloss-servers"))[f"{name}Probe"] for name in PROBES}
    for name, probe in probes.items():
        assert "grpc" not in probe, "a probe has one way to ask"
        assert probe["exec"]["command"][2:] == [each for each in [before[name]["grpc"].get("service")] if each]
        seconds, seconds_before = (each["periodSeconds"] * each["failureThreshold"] for each in (probe, before[name]))
        assert seconds >= seconds_before, "a server with TLS gets as long"


def test_calls_are_traced(site: Site, receiver: Receiver) -> None:
    site.evaluate(site.envoy.address)
    receiver.until(lambda spans: any(span.name.endswith("LossService/Evaluate") for span in spans))


def test_changed_tokens_are_taken_without_a_restart(site: Site) -> None:
    def refused(name: str) -> bool:
        try:
            site.evaluate(site.envoy.address, TOKENS[name])
        except boxloss.UnauthenticatedError:
            return True
        return False

    site.update("boxloss-tokens", tokens_of("labeling"))
    wait_until(lambda: refused("training") and not refused("labeling"), "the new token is the only one")
    site.update("boxloss-tokens", tokens_of("training"))
    wait_until(lambda: not refused("training"), "the old one is back")


def test_renewed_certificates_are_taken_without_a_restart(site: Site) -> None:
    renewed = site.authority.secret(*NAMES)
    leaf = renewed["tls.crt"].decode()
    site.update("boxloss-tls", renewed)
    for address in (site.envoy.address, site.server.address):
        wait_until(lambda address=address: site.shown(address) == leaf, f"{address} shows it")  # type: ignore[misc]
    wait_until(lambda: site.envoy.healthy() == 1, "Envoy trusts the server")
    site.evaluate(site.envoy.address)


@pytest.mark.parametrize(("fault", "counter"), [("name", "fail_verify_san"), ("authority", "fail_verify_error")])
def test_envoy_sends_nothing_to_a_server_with_another_name_or_authority(
    site: Site, fault: str, counter: str, tmp_path: Path
) -> None:
    wrong = site.authority.secret(HOST) if fault == "name" else Authority().secret(*NAMES)
    site.update("boxloss-tls", wrong, "boxloss-servers")
    wait_until(lambda: site.shown(site.server.address) == wrong["tls.crt"].decode(), "the server shows it")
    with site.edge(tmp_path, healthy=False) as envoy:
        refused = f"/stats?filter=cluster.boxloss.ssl.{counter}"
        # There is no counter before the first connection.
        wait_until(lambda: int(("0", *envoy.admin(refused).split())[-1]) > 0, "Envoy has refused the server")
        assert envoy.healthy() == 0

        site.update("boxloss-tls", site.authority.secret(*NAMES))
        wait_until(lambda: envoy.healthy() == 1, "Envoy trusts the server")
    site.evaluate(site.envoy.address)
