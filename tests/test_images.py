"""What images are made of, and which are taken, is pinned: base images by digest, packages by version and hash."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.manifests import container, pods, rendered

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "deploy/requirements"
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DIGEST = re.compile(r"(?P<name>[\w./-]+:[\w.-]+)@sha256:[0-9a-f]{64}")

INSTALLED = ("build.txt", "cpu.txt", "cuda.txt", "torch-cpu.txt")
ONLY_TO_BUILD = {"hatchling", "packaging", "pathspec", "pip", "pluggy", "tomlkit", "trove-classifiers"}

# Images


def test_images_of_others_are_pinned_by_digest() -> None:
    """What is built here has no digest before: boxloss-server, which each operator pushes to a registry of his own."""
    bases = re.findall(r"^ARG \w+_IMAGE=(.*)$", DOCKERFILE, re.MULTILINE)
    composed = [service["image"] for service in COMPOSE["services"].values() if "build" not in service]
    deployed = [container(pod)["image"] for name in ("base", "gpu") for pod in pods(rendered(name))]
    others = [image for image in deployed if not image.startswith("boxloss-server:")]
    assert len(bases) == 1
    assert len(composed) == len(others) == 2
    for image in bases + composed + others:
        assert DIGEST.fullmatch(image), image


def test_the_dockerfile_takes_no_other_image() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(stages) == len(re.findall(r"^FROM ", DOCKERFILE, re.MULTILINE))
    assert {base for base, _ in stages} <= {"${PYTHON_IMAGE}", *(name for _, name in stages)}
    assert set(re.findall(r"--from=(\S+)", DOCKERFILE)) <= {name for _, name in stages}


def test_the_docs_name_the_images_that_are_taken() -> None:
    taken = (ROOT / "deploy/kubernetes/base/edge.yaml").read_text() + (ROOT / "docker-compose.yml").read_text()
    tags = {match["name"] for match in DIGEST.finditer(taken)}
    assert len(tags) == 3
    named = set(re.findall(r"(?:envoyproxy|prom|grafana)/\w+:[\w.-]*\w", (ROOT / "docs/scaling.md").read_text()))
    assert named
    assert named <= tags


# Packages


def pins(file: Path) -> dict[str, str]:
    """The packages of a file with their versions; that of torch without CUDA has a suffix which says so."""
    found = re.findall(r"^([\w.-]+)==([\w.]+)(?:\+cpu)?(?: \\)?$", file.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def needed(name: str, *extras: str) -> set[str]:
    """The packages that one needs with extras, and those that they need, in an image."""
    found: set[str] = set()
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found |= {canonicalize_name(requirement.name), *needed(requirement.name, *requirement.extras)}
    return found


CONSTRAINTS = pins(ROOT / "constraints.txt")
PINS = {name: pins(REQUIREMENTS / name) for name in INSTALLED}
CUDA = PINS["cuda.txt"].keys() - CONSTRAINTS.keys()


@pytest.mark.parametrize("name", INSTALLED)
def test_every_package_has_a_version_and_hashes(name: str) -> None:
    text = (REQUIREMENTS / name).read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if not line.startswith("#")]
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.+]+(\s+--hash=sha256:[0-9a-f]{64})+", entry), entry
    assert len(entries) == len(PINS[name]) > 0


def test_images_have_the_versions_that_are_tested() -> None:
    """`make requirements` writes them anew after a change of constraints.txt."""
    for name in INSTALLED:
        tested = PINS[name].keys() & CONSTRAINTS.keys()
        assert {each: PINS[name][each] for each in tested} == {each: CONSTRAINTS[each] for each in tested}


def test_what_is_not_tested_here_builds_or_is_cuda() -> None:
    assert PINS["build.txt"].keys() == ONLY_TO_BUILD
    assert PINS["cpu.txt"].keys() | PINS["torch-cpu.txt"].keys() == PINS["cuda.txt"].keys() - CUDA
    assert all(name.startswith(("cuda-", "nvidia-")) or name == "triton" for name in CUDA)
    assert {line for line in (REQUIREMENTS / "cuda-only.txt").read_text().split("\n") if line[:1].isalpha()} <= CUDA


def test_images_have_what_is_needed_and_nothing_else() -> None:
    wanted = needed("boxloss", "cli") | needed("boxloss-server", "tracing")
    assert PINS["cuda.txt"].keys() - CUDA == wanted - CUDA - {"boxloss", "boxloss-server"}


def test_the_image_installs_from_these_files_and_from_nowhere_else() -> None:
    commands = re.findall(r"pip (?:--python \S+ )?(?:install|wheel|download) [^&\n]*", DOCKERFILE)
    assert len(commands) == len(re.findall(r"\bpip\b[^&\n]*(?:install|wheel|download) ", DOCKERFILE)) == 6
    files = []
    for command in commands:
        if "--require-hashes" in command:
            (file,) = re.findall(r"--requirement requirements/(\S+)", command)
            files.append(file)
        else:
            assert "--no-deps" in command
            assert (
                "--no-index wheels/*" in command
                or "--no-build-isolation --wheel-dir wheels ./client ./server" in command
            )
    assert sorted(files) == sorted(INSTALLED)
