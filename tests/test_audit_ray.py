"""An audit on Ray finds what an audit in this process finds."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

import numpy as np
import psutil
import pytest

from boxloss.audit import ray as on_ray
from boxloss.audit.dataset import audit
from boxloss.audit.image import Image, Labels, Predictions
from boxloss.audit.ray import audit_on_ray
from boxloss.audit.rules import ImageAudit, Rules
from boxloss.audit.summary import Summary
from boxloss.errors import BoxlossError, InvalidInputError, ServerError, ServerUnavailableError
from tests.servers import free_port

pytestmark = [
    pytest.mark.timeout(300),  # A cluster is many processes, which on a busy machine take their time.
    pytest.mark.skipif(not find_spec("ray"), reason="needs Ray: pip install 'boxloss[ray]'"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

RULES = Rules(matching="greedy", min_iou=0.4, min_score=0.2)


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
"""That clusters ask for; otherwise Ray keeps one in the home directory."""


@pytest.fixture(autouse=True)
def setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images take several windows, each of several blocks; and who asks for statistics gets none."""
    monkeypatch.setattr(on_ray, "_BLOCK", 4)
    monkeypatch.setattr(on_ray, "_WINDOW", 40)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster that somebody else has started: its address."""
    port = free_port()
    flags = [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false"]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *flags],
        env=os.environ | TOKEN | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    members = [psutil.Process(head.pid)]
    with head:
        assert head.stdout
        try:
            said: list[str] = []
            while "runtime started" not in (line := head.stdout.readline()):
                assert line, "".join(said)
                said.append(line)
            members += members[0].children(recursive=True)
            yield f"127.0.0.1:{port}"
        finally:
            members += members[0].children(recursive=True)
            for each in members:
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def some_images(count: int) -> Iterator[Image]:
    rng = np.random.default_rng(0)
    for number in range(count):
        corners = rng.uniform(0, 300, (24, 2))
        boxes = np.hstack([corners, corners + rng.uniform(0.5, 200, (24, 2))])
        names = rng.choice(["cat", "dog", "fox"], 24).tolist()
        labels = Labels(boxes[:12], names[:12], [f"{number}/{row}" for row in range(12)], rng.random(12) < 0.1)
        found = Predictions(boxes[12:], names[12:], rng.random(12))
        yield Image(number if number % 2 else 2**70 + number, labels, found if number % 5 else None, 400, 500.5)


def as_bytes(audited: Iterable[ImageAudit]) -> list[bytes]:
    return [json.dumps(finding.as_dict()).encode() for each in audited for finding in each.findings]


def as_plain(summary: Summary) -> dict[str, Any]:
    return asdict(summary) | {"iou_histogram": summary.iou_histogram.tolist()}


def test_a_cluster_of_its_own_finds_the_same_and_leaves_nothing_behind() -> None:
    embedded = audit(some_images(110), RULES, worst=20)
    expected = list(embedded)
    read = []
    before = psutil.Process().children(recursive=True)  # Servers of other tests.

    def images() -> Iterator[Image]:
        for image in some_images(110):
            read.append(image.image_id)
            yield image

    on_cluster = audit_on_ray(images(), RULES, worst=20)
    assert read == []
    found = [next(on_cluster)]
    assert len(read) == 40, "a window is read at a time"
    members = [member for member in psutil.Process().children(recursive=True) if member not in before]
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for member in [psutil.Process(), *members]
        for connection in member.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert all(ip_address(address).is_loopback for address in listening)
    assert {member.environ().get("RAY_USAGE_STATS_ENABLED") for member in members if "raylet" in member.name()} == {"0"}
    found += on_cluster
    assert found == expected
    assert len(as_bytes(found)) > 1000
    assert as_bytes(found) == as_bytes(expected)
    assert as_plain(on_cluster.summary()) == as_plain(embedded.summary())
    psutil.wait_procs(members, timeout=20)
    assert not any(member.is_running() for member in members)


def test_a_given_cluster_finds_the_same_though_workers_die_and_goes_on_afterwards(cluster: str) -> None:
    expected = list(audit(some_images(120), RULES))
    on_cluster = audit_on_ray(some_images(120), RULES, address=cluster)
    found = []
    killed = 0
    for each in on_cluster:
        found.append(each)
        if len(found) in (1, 50):
            killed += kill_workers()
    assert killed >= 1
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert as_bytes(found) == as_bytes(expected)
    assert as_bytes(audit_on_ray(some_images(1), RULES, address=cluster)) == as_bytes(expected[:1])


class Unreadable(str):
    """An id that arrives nowhere."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_what_fails_in_a_cluster_is_said(cluster: str) -> None:
    image = replace(next(some_images(1)), image_id=Unreadable())
    with pytest.raises(ServerError, match=r"(?s)the Ray cluster failed: .*no number"):
        list(audit_on_ray([image], RULES, address=cluster))


def kill_workers() -> int:
    """Kills all that compute for Ray below this process; its agents live, since a node dies with them."""
    names = "ray::Map", "ray::IDLE"
    workers = [each for each in psutil.Process().children(recursive=True) if each.name().startswith(names)]
    for worker in workers:
        worker.kill()
    return len(workers)


def test_where_no_cluster_answers_that_is_said_at_once() -> None:
    with pytest.raises(ServerUnavailableError, match="ray start --head"):
        audit_on_ray([], address=f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize("address", ["", "localhost", "auto", "head:port", ":6379"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(InvalidInputError, match=r"address: is .*HOST:PORT"):
        audit_on_ray([], address=address)


def test_where_ray_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BoxlossError, match=r"pip install 'boxloss\[ray\]'"):
        audit_on_ray([])


def test_ray_is_imported_by_nobody_who_did_not_ask() -> None:
    script = "import sys, boxloss.audit.ray, boxloss.audit.dataset; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
