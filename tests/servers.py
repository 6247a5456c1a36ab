"""Real servers in processes of their own, for tests that end, kill or flood them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import MappingProxyType, TracebackType
from typing import Any, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.forks import Fork

NOTHING: Mapping[str, str] = MappingProxyType({})
_RANDOM = random.SystemRandom()  # Two runs side by side never ask in the same order.


def free_port() -> int:
    """A port that nothing listens on at this moment, and that the system gives to nobody who asks for any."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", _RANDOM.randrange(20000, 32768))) as taken,
        ):
            port: int = taken.getsockname()[1]
            return port


class ServerProcess:
    """A `boxloss-server`, serving once constructed.

    Args:
        flags: of its command line; the ports are free ones unless given.
        module: the program.
        environment: further variables.
    """

    def __init__(self, *flags: str, module: str = "boxloss_server", environment: Mapping[str, str] = NOTHING) -> None:
        self.log: deque[dict[str, Any]] = deque(maxlen=1000)
        self._process = Fork(
            [module, "--port=0", "--metrics-port=0", "--log-format=json", *flags],
            {**os.environ, "BOXLOSS_DEVICE": "cpu", **environment},
        )
        self._lines = self._process.stderr
        while "port" not in (line := self._next_line()):
            if "url" in line:
                self.metrics_url: str = line["url"]
        self.port: int = line["port"]
        self.address = f"{line['host']}:{self.port}"
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def samples(self, metric: str, **labels: str) -> list[Sample]:
        """A metric's samples that have these labels, as the server tells them now."""
        with urllib.request.urlopen(self.metrics_url) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name == metric]
        return [sample for sample in samples if labels.items() <= sample.labels.items()]

    def total(self, metric: str, **labels: str) -> float:
        """The sum of a metric's values under these labels, as the server tells it now."""
        return sum(sample.value for sample in self.samples(metric, **labels))

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._process.terminate()

    def wait(self) -> int:
        """Waits for its end; returns its exit status."""
        status = self._process.wait(timeout=60)
        self._reader.join()
        self._lines.close()
        return status

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        self._process.send_signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """Ends it in order, if it still runs; returns its exit status."""
        if self._process.returncode is None:
            self.terminate()
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _next_line(self) -> dict[str, Any]:
        text = self._lines.readline()
        if not text:
            raise RuntimeError(f"the server ended with status {self._process.wait()}: {list(self.log)}")
        try:
            line: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError:
            line = {"text": text}
        self.log.append(line)
        return line

    def _read_on(self) -> None:
        try:
            while True:
                self._next_line()
        except RuntimeError:
            pass


def start(stack: ExitStack, *flags: list[str]) -> list[ServerProcess]:
    """Starts a server for each list of flags, all at once; they end with the stack."""
    with ThreadPoolExecutor() as threads:
        servers = list(threads.map(lambda each: ServerProcess(*each), flags))
    for server in servers:
        stack.enter_context(server)
    return servers


@contextlib.contextmanager
def frozen(server: ServerProcess) -> Iterator[None]:
    """Stops a server for a while: what is sent stays on its way."""
    process = psutil.Process(server.pid)
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "it stands still")
    try:
        yield
    finally:
        process.resume()


def answered(server: ServerProcess, method: str = "Evaluate") -> float:
    """Calls of a method that a server has answered."""
    return server.total("grpc_server_handled_total", grpc_method=method, grpc_code="OK")


def endings(server: ServerProcess, method: str) -> dict[str, int]:
    """How many calls of a method have ended with which code."""
    return {
        sample.labels["grpc_code"]: int(sample.value)
        for sample in server.samples("grpc_server_handled_total", grpc_method=method)
        if sample.value
    }


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Waits for a condition, and fails where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)
