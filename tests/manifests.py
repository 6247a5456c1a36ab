"""The Kubernetes manifests, as `kubectl apply --kustomize` would send them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parent.parent / "deploy/kubernetes"
COMPONENTS = ("tls", "tokens", "tracing")

Document = dict[str, Any]


def kustomized(folder: Path) -> list[Document]:
    """What the kustomization of a folder makes."""
    kubectl = Path(sys.executable).parent / "kubectl"
    outcome = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    return list(yaml.safe_load_all(outcome.stdout))


@cache
def rendered(name: str, *components: str) -> list[Document]:
    """What base, or gpu, makes with components."""
    with tempfile.TemporaryDirectory() as folder:
        manifests = os.path.relpath(KUBERNETES, Path(folder).resolve())
        kustomization = {
            "resources": [f"{manifests}/{name}"],
            "components": [f"{manifests}/components/{each}" for each in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return kustomized(Path(folder))


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [each for each in documents if each["kind"] == kind]


def the(documents: list[Document], kind: str, name: str) -> Document:
    """The one document of a kind whose name starts so: kustomize adds a hash to some."""
    (found,) = [
        each for each in of_kind(documents, kind) if re.fullmatch(rf"{name}(-\w{{10}})?", each["metadata"]["name"])
    ]
    return found


def pods(documents: list[Document]) -> Iterator[Document]:
    for deployment in of_kind(documents, "Deployment"):
        yield deployment["spec"]["template"]


def pod_of(documents: list[Document], name: str) -> Document:
    """What a deployment's pods are made of."""
    return dict(the(documents, "Deployment", name)["spec"]["template"])


def container(pod: Document) -> Document:
    (only,) = pod["spec"]["containers"]
    return dict(only)


def variables_of(documents: list[Document]) -> Document:
    """The variables of the servers, but for those of their image."""
    return dict(the(documents, "ConfigMap", "boxloss-servers")["data"])


def matches(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a selector means what has these labels; one without conditions means all."""
    assert selector.keys() <= {"matchLabels"}
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


IN_HOUSE = {"kubernetes.io/metadata.name": "boxloss"}
"""The labels of the namespace that all is in."""


def allows(
    policy: Document,
    direction: str,
    port: str | int,
    namespace: dict[str, str],
    labels: dict[str, str],
    protocol: str = "TCP",
) -> bool:
    """Whether a policy lets pods be called ("ingress") by, or call ("egress"), a pod with labels in a namespace."""

    def means(peer: Document) -> bool:
        assert peer.keys() <= {"namespaceSelector", "podSelector"}
        selector = peer.get("namespaceSelector")
        of_namespace = namespace == IN_HOUSE if selector is None else matches(selector, namespace)
        return of_namespace and matches(peer.get("podSelector", {}), labels)

    return any(
        any((each["port"], each.get("protocol", "TCP")) == (port, protocol) for each in rule["ports"])
        and any(means(peer) for peer in rule["from" if direction == "ingress" else "to"])
        for rule in policy["spec"].get(direction, [])
    )
