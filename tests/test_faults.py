"""Faults of what computes, caused on real servers: calls in are answers out, and what is broken is replaced."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.samples import Sample

import boxloss
from boxloss import CIoU, GIoU, IoU, OutOfMemoryError
from boxloss.contract import wire
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server.engine import Engine, Evaluation, Grid, Kernels, Matrix, Pairs, Scores
from boxloss_server.engine.formats import geometry_of
from boxloss_server.engine.function import structure_of
from boxloss_server.processes.totals import scrape
from boxloss_server.service.watchdog import STATUS
from tests.boxes import random_boxes
from tests.faulty_server import FAILS, HANGS, LACKS_MEMORY, LOSES_DEVICE, MEMORY, NEEDS_MUCH_MEMORY, WARM_UP
from tests.servers import ServerProcess, free_port

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
CIOU_OF_A_AND_B = 0.9361860890731847
LARGE = 5000
"""Pairs of a request that the worker thread computes."""
SOON = "--hang-timeout-s=2"
PACE = 0.05
"""Seconds between two calls of a caller: what waits for a fault leaves the machine to others."""


def faulty(*flags: str) -> ServerProcess:
    return ServerProcess(*flags, module="tests.faulty_server")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with faulty() as process:
        yield process


def request(first: float = 0.0, pairs: int = 1) -> loss_service_pb2.EvaluateRequest:
    """A request that asks for a fault by its last pair."""
    predictions = np.tile(np.array(A, "<f4"), (pairs, 1))
    predictions[-1, 0] = first
    targets = np.tile(np.array(B, "<f4"), (pairs, 1))
    return loss_service_pb2.EvaluateRequest(
        predictions=array_pb2.Array(data=predictions.tobytes()),
        targets=array_pb2.Array(data=targets.tobytes()),
        losses=[wire.loss_to_message(CIoU())],
    )


def codes_of(server: ServerProcess, requests: list[loss_service_pb2.EvaluateRequest]) -> list[str]:
    """Sends requests at once and without the SDK; the codes of the answers, of which right ones are OK."""
    with grpc.insecure_channel(server.address) as channel:
        calls = [LossServiceStub(channel).Evaluate.future(each) for each in requests]
        codes = [call.code().name for call in calls]
        for call, code in zip(calls, codes, strict=True):
            if code == "OK":
                losses = np.frombuffer(call.result().results[0].loss.data, "<f4")
                assert losses[:-1] == pytest.approx(CIOU_OF_A_AND_B)
    return codes


def samples(server: ServerProcess, name: str) -> list[Sample]:
    """The samples of a metric."""
    port = urllib.parse.urlparse(server.metrics_url).port
    assert port
    return [sample for family in scrape(port) for sample in family.samples if sample.name == name]


def failures(server: ServerProcess) -> Counter[str]:
    """How many batches were split, and how many requests failed alone."""
    return Counter({s.labels["outcome"]: int(s.value) for s in samples(server, "boxloss_batch_failures_total")})


def events(server: ServerProcess, event: str) -> list[dict[str, Any]]:
    return [line for line in list(server.log) if line.get("event") == event]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@contextmanager
def callers(address: str, number: int = 8) -> Iterator[Callable[[], int]]:
    """Threads that call all the while; each call must be answered rightly. Yields how many were."""
    done = threading.Event()
    answers = [0] * number

    def call(client: boxloss.Client, place: int) -> int:
        calls = 0
        while not done.wait(PACE):
            calls += 1
            assert client.evaluate(A, B, CIoU(), timeout=60).loss == pytest.approx([CIOU_OF_A_AND_B])
            answers[place] += 1
        return calls

    with boxloss.Client(address) as client, ThreadPoolExecutor(number) as threads:
        calling = [threads.submit(call, client, place) for place in range(number)]
        try:
            yield lambda: sum(answers)
        finally:
            done.set()
        assert sum(each.result() for each in calling) == sum(answers)


def until_more(answers: Callable[[], int], more: int = 20) -> None:
    """Waits until so many more calls are answered."""
    before = answers()
    until(lambda: answers() >= before + more)


# Requests that fail


@pytest.mark.parametrize("pairs", [1, LARGE], ids=["on the loop", "in the worker"])
@pytest.mark.parametrize(("fault", "code"), [(FAILS, "INTERNAL"), (LACKS_MEMORY, "RESOURCE_EXHAUSTED")])
def test_a_request_that_fails_harms_no_neighbor(server: ServerProcess, fault: float, code: str, pairs: int) -> None:
    before = failures(server)
    faults = [fault if i in (5, 40) else 0.0 for i in range(64)]
    for crowd in range(1, 21):
        codes = codes_of(server, [request(first, pairs) for first in faults])
        assert codes == [code if first else "OK" for first in faults]
        failed = failures(server) - before
        assert failed["request"] == 2 * crowd
        if failed["split"]:  # It had neighbors.
            return
    pytest.fail("no request that failed had neighbors")


def test_every_request_that_fails_gets_its_own_error(server: ServerProcess) -> None:
    faults = [FAILS, LACKS_MEMORY] * 16
    assert codes_of(server, [request(first) for first in faults]) == ["INTERNAL", "RESOURCE_EXHAUSTED"] * 16


def test_without_memory_the_sdk_says_to_send_less_and_does_not_insist(server: ServerProcess) -> None:
    before = failures(server)
    with boxloss.Client(server.address) as client:
        with pytest.raises(OutOfMemoryError, match="send less at once") as error:
            client.evaluate([[LACKS_MEMORY, 0, 4, 4]], B, CIoU(), timeout=60)
        assert isinstance(error.value, MemoryError)
        assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])
    assert (failures(server) - before)["request"] <= 2  # The SDK's calls that ride together go again alone.


def test_a_large_request_that_lacks_memory_is_computed_in_smaller_tiles(server: ServerProcess) -> None:
    rng = np.random.default_rng(60)
    predictions, targets = (random_boxes(rng, 8 * MEMORY).astype(np.float32) for _ in range(2))
    with boxloss.Client(server.address) as client:
        expected = client.evaluate(predictions[:-1], targets[:-1], GIoU(), gradients=True)
        before = len(events(server, "out of memory; trying smaller tiles"))
        predictions[-1, 0] = NEEDS_MUCH_MEMORY
        computed = client.evaluate(predictions, targets, GIoU(), gradients=True)
    assert computed.executions[0].batch_pairs == 8 * MEMORY
    until(lambda: len(events(server, "out of memory; trying smaller tiles")) == before + 1)
    np.testing.assert_array_equal(computed.loss[:-1], expected.loss)
    assert computed.gradient is not None
    assert expected.gradient is not None
    np.testing.assert_array_equal(computed.gradient[:-1], expected.gradient)


def test_a_matrix_that_lacks_memory_is_computed_in_smaller_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(61)
    grid = Grid(random_boxes(rng, 300), random_boxes(rng, 200))
    engine = Engine(torch.device("cpu"), Kernels(torch.device("cpu")))
    work = Matrix(IoU(), "xyxy", "float64")
    whole = engine.matrix(work, grid)
    heights = []

    def bounded(rows: torch.Tensor, columns: torch.Tensor, *others: Any) -> Any:
        heights.append(rows.shape[1])
        if rows.shape[1] * columns.shape[2] > MEMORY:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return geometry_of(rows, columns, *others)

    monkeypatch.setattr("boxloss_server.engine.engine.geometry_of", bounded)
    np.testing.assert_array_equal(engine.matrix(work, grid), whole)
    assert heights == [81] + 30 * [10]
    monkeypatch.setattr("tests.test_faults.MEMORY", 1)
    with pytest.raises(OutOfMemoryError, match="send less at once"):
        engine.run(work, [grid])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_short_of_memory_computes_in_smaller_tiles() -> None:
    device = torch.device("cuda:0")
    engine = Engine(device, Kernels(device))
    rng = np.random.default_rng(62)
    pairs = Pairs(random_boxes(rng, 2**19), random_boxes(rng, 2**19))
    work = Evaluation((CIoU(),), "xyxy", "float64", True, True)
    (whole,) = engine.evaluate(work, [pairs])
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 2**26) / total, device)
    try:
        (tiled,) = engine.evaluate(work, [pairs])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert isinstance(whole, Scores)
    assert isinstance(tiled, Scores)
    np.testing.assert_allclose(tiled.scores[0].loss, whole.scores[0].loss, rtol=1e-12)


# Kernels that fail


class BrokenKernel:
    def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("API call failed")


def out_of_memory(*inputs: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_kernel_that_fails_is_dropped_and_its_batch_computed_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    kernels = Kernels(torch.device("cpu"), compiled=lambda outcome, seconds: heard.append(outcome))
    engine = Engine(torch.device("cpu"), kernels)
    rng = np.random.default_rng(63)
    work = Evaluation((CIoU(),), "xyxy", "float32", True, False)
    pairs = Pairs(random_boxes(rng, 100).astype(np.float32), random_boxes(rng, 100).astype(np.float32))
    (eager,) = engine.evaluate(work, [pairs])
    structure = structure_of(work)
    kernels._kernels[structure] = BrokenKernel()
    # What the eager function fails at, too, is not the kernel's fault.
    with monkeypatch.context() as short:
        short.setattr("boxloss_server.engine.kernels.compute", out_of_memory)
        with pytest.raises(OutOfMemoryError):
            engine.run(work, [pairs])
    assert structure in kernels._kernels
    assert not heard
    (computed,) = engine.evaluate(work, [pairs])
    assert structure not in kernels._kernels
    assert heard == ["dropped"]
    assert isinstance(eager, Scores)
    assert isinstance(computed, Scores)
    np.testing.assert_array_equal(computed.scores[0].loss, eager.scores[0].loss)


# Devices that fail


def test_a_server_whose_device_fails_answers_all_and_ends_to_be_replaced() -> None:
    port = free_port()
    with ExitStack() as replacement, faulty(f"--port={port}") as server, callers(server.address) as answers:
        until_more(answers)
        with grpc.insecure_channel(server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            assert codes_of(server, [request(LOSES_DEVICE)]) == ["UNAVAILABLE"]
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert list(watch) == []
        assert server.wait() == 1
        (failed,) = events(server, "the device failed")
        assert "illegal memory access" in failed["exception"]
        replacement.enter_context(ServerProcess(f"--port={port}"))
        until_more(answers)


# What hangs


@pytest.mark.parametrize("pairs", [1, LARGE], ids=["event loop", "worker"])
def test_a_server_that_hangs_says_where_and_ends_to_be_replaced(pairs: int) -> None:
    port = free_port()
    with ExitStack() as replacement, faulty(f"--port={port}", SOON) as server, callers(server.address) as answers:
        until_more(answers)
        with grpc.insecure_channel(server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            assert codes_of(server, [request(HANGS, pairs)]) == ["UNAVAILABLE"]
            if pairs == LARGE:  # The event loop still turns.
                assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.wait() == STATUS
        (hung,) = events(server, "the server hangs and ends")
        assert hung["thread"] == ("MainThread" if pairs == 1 else "boxloss-engine_0")
        assert "tests/faulty_server.py" in hung["stack"]
        replacement.enter_context(ServerProcess(f"--port={port}"))
        until_more(answers)


def test_neither_a_long_warm_up_nor_idleness_is_hanging() -> None:
    timeout = WARM_UP / 2
    with faulty("--compile=ahead", f"--hang-timeout-s={timeout}") as server, boxloss.Client(server.address) as client:
        for _ in range(2):
            time.sleep(2 * timeout)  # Not for a condition: nothing happens meanwhile.
            assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])
        assert server.stop() == 0


def suspend(*processes: int) -> None:
    """Stops processes for longer than what hangs may with `SOON`, as a machine that sleeps would.

    The last to stop goes on first: it has been waiting for the others.
    """
    for process in processes:
        os.kill(process, signal.SIGSTOP)
        time.sleep(0.5)  # Not for a condition: that time passes is the fault.
    time.sleep(4)
    for process in reversed(processes):
        os.kill(process, signal.SIGCONT)


def test_a_server_that_was_suspended_goes_on() -> None:
    with ServerProcess(SOON) as server:
        with callers(server.address) as answers:
            until_more(answers)
            suspend(server.pid)
            resumed = time.monotonic()
            until(lambda: time.monotonic() > resumed + 2)
            until_more(answers)
        assert server.stop() == 0


def test_processes_that_were_suspended_go_on() -> None:
    with ServerProcess("--processes=2", SOON) as server, callers(server.address) as answers:
        until_more(answers)
        suspend(*(child.pid for child in psutil.Process(server.pid).children()), server.pid)
        resumed = time.monotonic()
        until(lambda: time.monotonic() > resumed + 2)
        until_more(answers)
        assert len(events(server, "ready")) == 2


def test_a_process_that_hangs_is_killed_and_replaced() -> None:
    with ServerProcess("--processes=2", SOON) as server:
        pids = {line["process"]: line["pid"] for line in events(server, "ready")}
        with callers(server.address) as answers, callers(server.address) as others:
            until_more(answers)
            until_more(others)
            os.kill(pids[0], signal.SIGSTOP)
            until(lambda: events(server, "a process hangs and is killed"))
            until(lambda: len(events(server, "ready")) == 3)
            until_more(answers)
            until_more(others)
        (ended,) = events(server, "a process ended and is replaced")
        assert (ended["process"], ended["status"], ended["reason"]) == (0, -signal.SIGKILL, "hung")
        assert events(server, "ready")[-1]["pid"] not in pids.values()


# The clock


def test_no_code_asks_the_wall_clock() -> None:
    asks = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\b|\bfrom time import")
    sources = [path for folder in ("client", "server") for path in Path(folder).rglob("*.py")]
    assert len(sources) > 50
    # Traces leave the process, and certificates and metrics come from others: their times are the world's.
    worldly = {"tracing.py", "certificates.py", "files.py"}
    assert {path.name for path in sources if asks.search(path.read_text())} == worldly


JUMPING_CLOCK = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long *ahead;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("SECONDS_AHEAD"), O_RDONLY);
    ahead = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    close(file);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = syscall(SYS_clock_gettime, clock, now);
    if (ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *ahead;
    return status;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    int status = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec, now->tv_usec = exact.tv_nsec / 1000;
    return status;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""
"""A library whose wall clock is as far ahead as a file says."""


@pytest.mark.skipif(not shutil.which("gcc"), reason="makes a clock of its own with gcc")
def test_a_wall_clock_that_jumps_disturbs_no_call(tmp_path: Path) -> None:
    library, ahead = tmp_path / "clock.so", tmp_path / "seconds"
    (tmp_path / "clock.c").write_text(JUMPING_CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "clock.c"], check=True)
    ahead.write_bytes(struct.pack("l", 0))
    environment = {"LD_PRELOAD": str(library), "SECONDS_AHEAD": str(ahead)}
    with ServerProcess(SOON, environment=environment) as server:
        with callers(server.address) as answers:
            until_more(answers)
            for days in (1, -1, 365):
                with ahead.open("r+b") as file:
                    file.write(struct.pack("l", days * 86400))
                until_more(answers, 100)
        handled = samples(server, "grpc_server_handled_total")
        assert {sample.labels["grpc_code"] for sample in handled if sample.value} == {"OK"}
        assert server.stop() == 0
    first, last = (datetime.fromisoformat(server.log[place]["timestamp"]) for place in (0, -1))
    assert (last - first).days == 365


# Descriptors


def test_a_server_without_descriptors_serves_on_and_takes_new_connections_when_some_are_free() -> None:
    with ServerProcess() as server, ExitStack() as stack, callers(server.address) as answers:
        until_more(answers)
        used = psutil.Process(server.pid).num_fds()
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        until(lambda: any("File descriptor limit reached" in line.get("text", "") for line in server.log))
        options = [("grpc.use_local_subchannel_pool", 1)]  # Else they would share one connection.
        channels = [stack.enter_context(grpc.insecure_channel(server.address, options)) for _ in range(8)]
        calls = [LossServiceStub(channel).Evaluate.future(request(), timeout=60) for channel in channels]
        until_more(answers)
        assert not any(call.done() for call in calls)
        for connection in held:
            connection.close()
        assert [call.code() for call in calls] == [grpc.StatusCode.OK] * 8


def test_a_server_takes_as_many_descriptors_as_it_may() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = ServerProcess("--processes=2")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with server:
        for pid in (server.pid, *(line["pid"] for line in events(server, "ready"))):
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
