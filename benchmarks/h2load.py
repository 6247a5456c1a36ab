"""h2load, the load generator of nghttp2, and what it prints."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.errors import BenchmarkError

Protocol = Literal["grpc", "http"]

_GRPC = ("--header=content-type: application/grpc", "--header=te: trailers")
_HTTP = ("--h1", "--header=content-type: application/octet-stream")

_FINISHED = re.compile(r"^finished in ([\d.]+)(us|ms|s|m|h)?, ", re.MULTILINE)
_REQUESTS = re.compile(r"^requests: (\d+) total, .*?(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", re.M)
_STATUS = re.compile(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", re.MULTILINE)
_TRAFFIC = re.compile(r"^traffic: .*?\((\d+)\) data", re.MULTILINE)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


@dataclass(frozen=True)
class Report:
    """What h2load saw. Times are seconds."""

    requests: int
    seconds: float
    data_bytes: int
    """Of all answers' bodies."""


@dataclass(frozen=True)
class Load:
    """What to send, and how.

    Attributes:
        url: where to.
        protocol: gRPC over HTTP/2, or plain HTTP/1.1.
        body: file with the body of each request.
        connections: how many.
        streams: requests under way on each; 1 for HTTP/1.1.
    """

    url: str
    protocol: Protocol
    body: Path
    connections: int
    streams: int


def check_installed() -> None:
    """Raises BenchmarkError where h2load is missing."""
    if not shutil.which("h2load"):
        raise BenchmarkError("h2load is not here; install it: it is in Debian's package nghttp2-client")


def command(load: Load, requests: int, rate: float = 0) -> list[str]:
    """The command line that sends so many requests."""
    return [
        "h2load",
        *([f"--rps={max(rate / load.connections, 1):.3f}"] if rate else []),
        f"--requests={requests}",
        f"--clients={load.connections}",
        f"--max-concurrent-streams={load.streams}",
        f"--data={load.body}",
        *(_GRPC if load.protocol == "grpc" else _HTTP),
        load.url,
    ]


def send(load: Load, requests: int, rate: float = 0) -> tuple[Report, list[float]]:
    """Sends so many requests; returns what h2load saw, and each request's latency in seconds.

    Args:
        load: what to send.
        requests: how many.
        rate: of requests per second, some of which may fail; 0 as fast as they are answered.

    Raises:
        BenchmarkError: a request failed.
    """
    with tempfile.NamedTemporaryFile(prefix="h2load-") as log:
        ended = subprocess.run(
            [*command(load, requests, rate), f"--log-file={log.name}"], capture_output=True, text=True, check=False
        )
        latencies = [int(line.split(b"\t")[2]) * 1e-6 for line in log]
    return parse(ended.stdout + ended.stderr, some_may_fail=bool(rate)), latencies


def parse(output: str, some_may_fail: bool = False) -> Report:
    """Reads what h2load prints.

    Raises:
        BenchmarkError: a request failed that must not, or there is no report.
    """
    finished, requests, status, traffic = (
        pattern.search(output) for pattern in (_FINISHED, _REQUESTS, _STATUS, _TRAFFIC)
    )
    if not (finished and requests and status and traffic):
        raise BenchmarkError(f"h2load did not finish: {output.strip()[-500:] or 'it says nothing'}")
    total, succeeded = int(requests[1]), int(requests[2])
    if not some_may_fail and (succeeded != total or int(status[1]) != total):
        raise BenchmarkError(f"requests failed: {requests[0]}; {status[0]}")
    return Report(total, float(finished[1]) * _UNITS[finished[2]], int(traffic[1]))
