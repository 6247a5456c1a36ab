"""What is measured: how each contender is started, asked and found to be right."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import grpc

from benchmarks import metrics
from benchmarks.echo import UNARY
from benchmarks.errors import BenchmarkError, UnavailableError
from benchmarks.interrupts import put_off
from benchmarks.process import ROOT, Process, free_port
from benchmarks.verification import verify
from benchmarks.workload import Workload

_READY_SECONDS = 90.0
_ANSWER_SECONDS = 300.0
_COMPILED_SECONDS = 180.0
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
_GRPC_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class Contender(ABC):
    """One server of the comparison. Runs from `start` to `stop`."""

    name: ClassVar[str]
    url: str
    """Where a unary request goes."""

    def __init__(self) -> None:
        self.process: Process | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What to run; chooses the ports."""

    @abstractmethod
    def ask(self, workload: Workload, timeout: float) -> bytes:
        """The bytes of its answer.

        Raises:
            OSError: there is none.
        """

    @abstractmethod
    def verify(self, workload: Workload) -> None:
        """Asks once and raises BenchmarkError where the answer is wrong or missing."""

    def check_available(self) -> None:  # noqa: B027, most are.
        """Raises UnavailableError where it is not installed."""

    def start(self, logs: Path, cores: set[int], environment: Mapping[str, str]) -> None:
        """Starts it and waits until it answers.

        Args:
            logs: folder for what it says.
            cores: what it may run on.
            environment: variables on top of this process's.

        Raises:
            UnavailableError: it is not installed.
            BenchmarkError: it does not start.
        """
        self.check_available()
        command = self.command()
        with put_off():
            self.process = Process(command, logs / f"{self.name}.log", cores, environment)
        workload = Workload(1)
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                self.process.check()
                self.ask(workload, timeout=5.0)
                return
            except BenchmarkError as error:
                raise BenchmarkError(f"{self.name} does not start: {error}") from None
            except OSError as error:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{self.name} does not answer after {_READY_SECONDS:.0f} s: {error}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Ends it, if it was started."""
        if self.process:
            self.process.stop()
            self.process = None


class _GrpcContender(Contender):
    port: int

    def ask(self, workload: Workload, timeout: float) -> bytes:
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", _GRPC_OPTIONS) as channel:
            try:
                method: Any = channel.unary_unary(UNARY)
                answer: bytes = method(workload.request, timeout=timeout)
            except grpc.RpcError as error:
                raise OSError(str(error)) from None
        return answer

    def _listen(self) -> str:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{UNARY}"
        return str(self.port)


class Boxloss(_GrpcContender):
    """This service.

    Args:
        flags: of its command line, besides the ports.
    """

    name = "boxloss"

    def __init__(self, *flags: str) -> None:
        super().__init__()
        self._flags = flags

    def command(self) -> list[str]:
        self._metrics_port = free_port()
        return [
            *(sys.executable, "-P", "-m", "boxloss_server", "--device=cpu", "--log-level=warning"),
            *(f"--port={self._listen()}", f"--metrics-port={self._metrics_port}", *self._flags),
        ]

    def verify(self, workload: Workload) -> None:
        verify(self.name, workload, workload.read_response(_answer_of(self, workload)))

    def start(self, logs: Path, cores: set[int], environment: Mapping[str, str]) -> None:
        super().start(logs, cores, environment)
        if self._compiles():
            self._have_compiled()

    def counts(self) -> metrics.Counts:
        """What it has counted so far."""
        return metrics.scrape(f"http://127.0.0.1:{self._metrics_port}/metrics")

    def _compiles(self) -> bool:
        off = "--compile=off" in self._flags or os.environ.get("BOXLOSS_COMPILE") == "off"
        return not off and has_flag("--compile")

    def _have_compiled(self) -> None:
        """Asks until the loss is compiled: the server does so for what it is often asked, in the background."""
        deadline = time.monotonic() + _COMPILED_SECONDS
        while not self.counts().kernels:
            self.ask(Workload(1), timeout=5.0)
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"{self.name} has not compiled its loss after {_COMPILED_SECONDS:.0f} s; see its log, or measure"
                    " without: --flags=--compile=off"
                )
            time.sleep(0.05)


class Echo(_GrpcContender):
    """The limit: grpc.aio without any work, answering with the service's own bytes.

    Args:
        answers: folder of what to answer, as `benchmarks.echo` wants it.
    """

    name = "echo"

    def __init__(self, answers: Path) -> None:
        super().__init__()
        self._answers = answers

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.echo", self._listen(), str(self._answers)]

    def verify(self, workload: Workload) -> None:
        if _answer_of(self, workload) != (self._answers / str(len(workload.request))).read_bytes():
            raise BenchmarkError("the echo does not answer as the service")


class _Peer(Contender):
    module: ClassVar[str]
    path: ClassVar[str]

    def check_available(self) -> None:
        if not PEERS_PYTHON.exists():
            raise UnavailableError("there is no environment for peers; run make .venv-peers/installed")
        script = f"import benchmarks.peers.{self.module}"
        imported = subprocess.run([PEERS_PYTHON, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
        if imported.returncode:
            raise UnavailableError(imported.stderr.strip().rpartition("\n")[2])

    def command(self) -> list[str]:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}{self.path}"
        return [str(PEERS_PYTHON), "-m", f"benchmarks.peers.{self.module}", str(port)]

    def ask(self, workload: Workload, timeout: float) -> bytes:
        request = urllib.request.Request(self.url, workload.raw, {"Content-Type": "application/octet-stream"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            answer: bytes = response.read()
        return answer

    def verify(self, workload: Workload) -> None:
        verify(self.name, workload, workload.read_raw(_answer_of(self, workload)))


class Mosec(_Peer):
    """Mosec: a server in Rust, workers in Python."""

    name = "mosec"
    module = "mosec_server"
    path = "/inference"


class LitServe(_Peer):
    """LitServe: FastAPI, with workers behind queues."""

    name = "litserve"
    module = "litserve_server"
    path = "/predict"


class RayServe(_Peer):
    """Ray Serve: a proxy and a replica in a cluster of one."""

    name = "ray"
    module = "ray_server"
    path = "/"


@cache
def has_flag(flag: str) -> bool:
    """Whether this boxloss-server knows a flag."""
    command = [sys.executable, "-P", "-m", "boxloss_server", "--help"]
    return flag in subprocess.run(command, capture_output=True, text=True, check=True).stdout


PEERS: dict[str, type[Mosec | LitServe | RayServe]] = {peer.name: peer for peer in (Mosec, LitServe, RayServe)}
NAMES = (Boxloss.name, Echo.name, *PEERS)


def _answer_of(contender: Contender, workload: Workload) -> bytes:
    try:
        return contender.ask(workload, _ANSWER_SECONDS)
    except (OSError, urllib.error.URLError) as error:
        raise BenchmarkError(f"{contender.name} does not answer {workload.pairs:,} pairs: {error}") from None
