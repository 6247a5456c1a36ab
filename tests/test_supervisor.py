"""Several processes on one port: all serve, their metrics count all, and none is left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import torch

import boxloss
from boxloss import CIoU
from boxloss.contract import wire
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server import __version__
from boxloss_server.processes.child import own_settings
from boxloss_server.processes.messages import Job
from boxloss_server.processes.port import reserve
from boxloss_server.processes.supervisor import Child, Pauses, threads_each
from boxloss_server.processes.totals import scrape
from boxloss_server.settings import Settings
from tests.servers import ServerProcess

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
CIOU_OF_A_AND_B = 0.9361860890731847
LARGE = np.tile(np.array([0, 0, 4, 4], "<f4"), (2**18, 1))
MANY_PAIRS = f"--max-request-pairs={16 * len(LARGE)}"
"""So many that computing a request takes a while."""


# The port and the machine that they share


def listen(port: int, *options: int) -> socket.socket:
    """A socket that listens."""
    listener = socket.socket()
    for option in (socket.SO_REUSEADDR, *options):
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def test_a_reserved_port_is_for_those_who_share() -> None:
    with reserve("127.0.0.1", 0) as port:
        with pytest.raises(OSError, match="in use"), reserve("127.0.0.1", port):
            pass
        with pytest.raises(OSError, match="in use"):
            listen(port)
        with listen(port, socket.SO_REUSEPORT), listen(port, socket.SO_REUSEPORT):
            with pytest.raises(OSError, match="in use"), reserve("127.0.0.1", port):
                pass
            with pytest.raises(OSError, match="in use"), reserve("0.0.0.0", port):
                pass
    with reserve("127.0.0.1", port) as again:
        assert again == port


def test_connections_of_an_earlier_server_do_not_keep_its_port() -> None:
    with listen(0) as earlier:
        port = earlier.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            earlier.accept()[0].close()
            assert client.recv(1) == b""
    states = {c.status for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port}
    assert states == {psutil.CONN_TIME_WAIT}
    with reserve("127.0.0.1", port) as again:
        assert again == port


def test_threads_are_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert threads_each(Settings(processes=3, threads=0)) == 2
    assert threads_each(Settings(processes=9, threads=0)) == 1
    assert threads_each(Settings(processes=3, threads=5)) == 5


def test_processes_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(name: str) -> list[str]:
        return [own_settings(Job(number=number, settings=Settings(device=name))).device for number in range(3)]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices("auto") == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices("cuda:1") == ["cuda:1"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices("auto") == ["auto"] * 3


def test_a_process_that_dies_again_soon_is_replaced_after_a_growing_pause() -> None:
    pauses = Pauses()
    assert [pauses.after(lived=3) for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [pauses.after(lived) for lived in (3600, 3, 3)] == [0, 1, 2]


async def test_a_process_that_dies_before_it_is_told_what_to_do_has_ended() -> None:
    process = await asyncio.create_subprocess_exec("false")
    await process.wait()
    ours, theirs = socket.socketpair()
    theirs.close()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    writer.write(b"a job")
    child = Child(process, reader, writer)
    assert not await child.hangs(60)
    with pytest.raises(ChildProcessError, match="ended with status 1 before it could serve"):
        await child.report(60)


def test_a_job_keeps_its_settings_in_any_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(number=1, settings=Settings(port=4711, kernel_cache="/somewhere", batch_window_ms=2.5))
    text = job.model_dump_json()
    monkeypatch.setenv("BOXLOSS_PORT", "1")
    monkeypatch.setenv("BOXLOSS_BATCH_WINDOW_MS", "many")
    assert Job.model_validate_json(text) == job


# Real servers


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--processes=2") as two:
        yield two


def events(server: ServerProcess, event: str) -> list[dict[str, Any]]:
    return [line for line in list(server.log) if line.get("event") == event]


def ready(server: ServerProcess) -> dict[int, dict[str, Any]]:
    """By the processes' numbers, what they logged when they were ready, the last time."""
    return {line["process"]: line for line in events(server, "ready")}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def evaluations(port: int) -> float:
    """How many calls of Evaluate have been answered, as a metrics endpoint counts them."""
    return sum(
        sample.value
        for family in scrape(port)
        for sample in family.samples
        if sample.name == "grpc_server_handled_total" and sample.labels["grpc_method"] == "Evaluate"
    )


def endpoint(server: ServerProcess) -> int:
    """The port of the metrics of all processes."""
    port = urllib.parse.urlparse(server.metrics_url).port
    assert port
    return port


def series(server: ServerProcess) -> dict[str, float]:
    """All metrics, as in the text that Prometheus reads."""
    with urllib.request.urlopen(server.metrics_url) as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def counts(server: ServerProcess) -> dict[str, float]:
    """Those metrics of calls that never go down."""
    endings = "_total", "_count", "_sum", "_bucket"
    others = "process_", "boxloss_process_restarts"
    return {
        name: value
        for name, value in series(server).items()
        if name.partition("{")[0].endswith(endings) and not name.startswith(others)
    }


def request(boxes: np.ndarray[Any, Any], losses: int = 1) -> loss_service_pb2.EvaluateRequest:
    array = array_pb2.Array(data=boxes.tobytes())
    return loss_service_pb2.EvaluateRequest(
        predictions=array, targets=array, losses=[wire.loss_to_message(CIoU())] * losses
    )


def connect_to_both(server: ServerProcess, stack: ExitStack) -> list[grpc.Channel]:
    """Connections that have made a call each: the last one to one process, the others to the other."""
    ports = [line["metrics_port"] for line in ready(server).values()]
    before = [evaluations(port) for port in ports]
    channels: list[grpc.Channel] = []
    while any(evaluations(port) == start for port, start in zip(ports, before, strict=True)):
        assert len(channels) < 200, "one process gets no connections"
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channels.append(stack.enter_context(grpc.insecure_channel(server.address, options)))
        LossServiceStub(channels[-1]).Evaluate(request(LARGE[:1]))
    return channels


def test_connections_spread_and_the_metrics_count_all(server: ServerProcess) -> None:
    with ExitStack() as stack:
        before = evaluations(endpoint(server))
        channels = connect_to_both(server, stack)
        for channel in channels:
            LossServiceStub(channel).Evaluate(request(LARGE[:1]))
    calls = evaluations(endpoint(server))
    assert calls == before + 2 * len(channels)
    assert calls == sum(evaluations(line["metrics_port"]) for line in ready(server).values())
    metrics = series(server)
    labels = 'grpc_method="Evaluate",grpc_service="boxloss.v1.LossService",grpc_type="unary"'
    assert metrics[f"grpc_server_handling_seconds_count{{{labels}}}"] == calls
    assert metrics[f'grpc_server_handling_seconds_bucket{{{labels},le="+Inf"}}'] == calls
    assert metrics[f'boxloss_build_info{{device="cpu",version="{__version__}"}}'] == 1


@pytest.mark.skipif(not shutil.which("promtool"), reason="Debian's prometheus has it")
def test_prometheus_can_read_the_metrics(server: ServerProcess) -> None:
    with urllib.request.urlopen(server.metrics_url) as response:
        checked = subprocess.run(["promtool", "check", "metrics"], input=response.read(), capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_the_supervisor_loads_neither_torch_nor_grpc(server: ServerProcess) -> None:
    (line, *_) = ready(server).values()
    child = psutil.Process(line["pid"])
    for process, loads in ((child, True), (child.parent(), False)):
        assert process
        loaded = " ".join(each.path for each in process.memory_maps())
        assert ("libtorch" in loaded) == loads
        assert ("cygrpc" in loaded) == loads


def test_a_killed_process_is_replaced_and_its_counts_stay(server: ServerProcess) -> None:
    with ExitStack() as stack:
        connect_to_both(server, stack)
    before = counts(server)
    killed = ready(server)[0]["pid"]
    os.kill(killed, signal.SIGKILL)
    until(lambda: ready(server)[0]["pid"] != killed)
    (ended,) = events(server, "a process ended and is replaced")
    assert (ended["process"], ended["status"], ended["pause_s"]) == (0, -signal.SIGKILL, 0)
    assert counts(server) == before
    assert series(server)["boxloss_waiting_requests"] == 0
    assert restarts(server) == {"exited": 1, "hung": 0, "start": 0}
    with ExitStack() as stack:
        connect_to_both(server, stack)


def restarts(server: ServerProcess) -> dict[str, float]:
    """How many processes have been replaced, by reason."""
    return {sample.labels["reason"]: sample.value for sample in server.samples("boxloss_process_restarts_total")}


def test_every_process_tells_of_itself(server: ServerProcess) -> None:
    pids = {str(number): line["pid"] for number, line in ready(server).items()} | {"supervisor": server.pid}
    started = {sample.labels["process"]: sample.value for sample in server.samples("process_start_time_seconds")}
    assert started == {name: pytest.approx(psutil.Process(pid).create_time(), abs=1) for name, pid in pids.items()}
    memory = sum(psutil.Process(pid).memory_info().rss for pid in pids.values())
    assert server.total("process_resident_memory_bytes") == pytest.approx(memory, rel=0.1)
    assert len(server.samples("process_cpu_seconds_total")) == 3


def children(supervisor: int) -> set[int]:
    return {child.pid for child in psutil.Process(supervisor).children()}


def test_a_process_that_hangs_while_it_starts_is_replaced_at_first_and_later() -> None:
    module = "tests.impatient_supervisor"

    def supervisors() -> list[psutil.Process]:
        return [each for each in psutil.Process().children(recursive=True) if module in each.cmdline()]

    def started_by(supervisor: int, but: Set[int] = frozenset()) -> set[int]:
        """Its processes that run a program of their own by now: until then, their supervisor stands still too."""
        return {pid for pid in children(supervisor) - but if module not in psutil.Process(pid).cmdline()}

    def stop_one(pids: set[int]) -> int:
        stopped = min(pids)
        os.kill(stopped, signal.SIGSTOP)
        return stopped

    with ThreadPoolExecutor(1) as threads:
        started = threads.submit(ServerProcess, "--processes=2", "--hang-timeout-s=2", module=module)
        until(lambda: any(len(started_by(each.pid)) == 2 for each in supervisors()))
        (supervisor,) = (each.pid for each in supervisors() if children(each.pid))
        stopped = stop_one(children(supervisor))
        with started.result() as server:
            assert not runs(stopped)
            assert events(server, "a process hangs while it starts and is killed")
            until(lambda: server.total("boxloss_processes_serving") == 2)
            assert server.total("boxloss_processes_wanted") == 2
            before = restarts(server)
            assert before["start"] >= 1

            pids = children(server.pid)
            os.kill(min(pids), signal.SIGKILL)
            until(lambda: len(started_by(server.pid, but=pids)) == 1)
            stopped = stop_one(started_by(server.pid, but=pids))
            assert server.total("boxloss_processes_serving") == 1
            assert server.total("boxloss_processes_wanted") == 2
            until(lambda: restarts(server)["start"] > before["start"])
            assert restarts(server)["exited"] == before["exited"] + 1
            until(lambda: server.total("boxloss_processes_serving") == 2)
            assert not runs(stopped)


def test_killing_processes_loses_no_call_whose_deadline_allows_a_retry(server: ServerProcess) -> None:
    done = threading.Event()

    def caller(client: boxloss.Client) -> int:
        calls = 0
        while not done.wait(0.01):
            assert client.evaluate(A, B, CIoU(), timeout=60).loss == pytest.approx([CIOU_OF_A_AND_B])
            calls += 1
        return calls

    def one_that_works() -> dict[str, Any]:
        before = {number: evaluations(line["metrics_port"]) for number, line in ready(server).items()}
        while True:
            for number, line in ready(server).items():
                if evaluations(line["metrics_port"]) > before[number]:
                    return line

    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        clients = [stack.enter_context(boxloss.Client(server.address)) for _ in range(2)]
        stack.callback(done.set)
        callers = [threads.submit(caller, client) for client in clients]
        killed = one_that_works()
        seen = counts(server)

        def is_replaced() -> bool:
            now = counts(server)
            assert all(now[name] >= value for name, value in seen.items())
            seen.update(now)
            return ready(server)[killed["process"]] != killed

        os.kill(killed["pid"], signal.SIGKILL)
        until(is_replaced)
        one_that_works()
        done.set()
        assert all(each.result() for each in callers)


def calls_that_wait(server: ServerProcess, channels: list[grpc.Channel]) -> list[Any]:
    """Large requests, one on each channel, that have all been admitted and not yet been answered."""

    def send(channel: grpc.Channel) -> Any:
        return LossServiceStub(channel).Evaluate.future(request(LARGE, losses=16))

    calls = [send(channel) for channel in channels]

    def all_wait() -> bool:
        for i, channel in enumerate(channels):
            if calls[i].done():  # Before the others were admitted.
                assert calls[i].result().results
                calls[i] = send(channel)
        return series(server)["boxloss_waiting_requests"] == len(channels)

    until(all_wait)
    return calls


def test_sigterm_answers_what_was_accepted_and_leaves_no_process() -> None:
    with ServerProcess("--processes=2", MANY_PAIRS) as server, ExitStack() as stack:
        first, *_, last = connect_to_both(server, stack)
        calls = calls_that_wait(server, [first, last])
        server.terminate()
        for call in calls:
            assert len(call.result().results) == 16
        assert server.wait() == 0
        assert [line.get("process") for line in events(server, "stopped")][2:] == [None]  # The supervisor, at last.
        assert not any(runs(line["pid"]) for line in ready(server).values())


def test_sigterm_while_they_start_is_in_order() -> None:
    command = [sys.executable, "-m", "boxloss_server", "--processes=2", "--port=0", "--metrics-port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr
        assert "serving metrics" in starting.stderr.readline()
        until(lambda: len(psutil.Process(starting.pid).children()) == 2)
        started = psutil.Process(starting.pid).children()
        starting.terminate()
        assert starting.wait(timeout=60) == 0
        assert not any(runs(process.pid) for process in started)
        assert "Traceback" not in starting.stderr.read()


def test_without_any_process_the_metrics_say_that_none_serves() -> None:
    with ServerProcess("--processes=2") as server:
        for line in ready(server).values():
            os.kill(line["pid"], signal.SIGKILL)
        until(lambda: len(events(server, "a process ended and is replaced")) == 2)
        assert server.total("boxloss_processes_serving") == 0
        assert server.total("boxloss_processes_wanted") == 2
        assert not server.samples("boxloss_waiting_pairs_limit")


def test_killing_the_supervisor_leaves_no_process() -> None:
    with (
        ServerProcess("--processes=2", MANY_PAIRS) as server,
        grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", -1)]) as channel,
    ):
        (call,) = calls_that_wait(server, [channel])
        server.kill()
        assert len(call.result().results) == 16
    for line in ready(server).values():
        until(lambda pid=line["pid"]: not runs(pid))  # type: ignore[misc]
    assert sorted(line["process"] for line in events(server, "stopped")) == [0, 1]


def start(*flags: str) -> subprocess.CompletedProcess[str]:
    """Runs a server that is to end by itself."""
    command = [sys.executable, "-m", "boxloss_server", "--metrics-port=0", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_nobody_else_joins_a_shared_port(server: ServerProcess) -> None:
    with pytest.raises(OSError, match="in use"):
        listen(server.port)
    refused = start(f"--port={server.port}", "--processes=2")
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{server.port}: in use" in refused.stderr


def test_a_port_that_is_taken_is_refused() -> None:
    with listen(0) as taken:
        port = taken.getsockname()[1]
        refused = start(f"--port={port}", "--processes=2")
        assert refused.returncode == 1
        assert refused.stderr == (
            f"boxloss-server: cannot listen on 127.0.0.1:{port}: in use, or not an address here; "
            "choose another --port or --host\n"
        )
        refused = start("--port=0", f"--metrics-port={port}", "--processes=2")
        assert refused.returncode == 1
        assert f"boxloss-server: cannot serve metrics on 127.0.0.1:{port}" in refused.stderr


def test_processes_that_cannot_serve_say_why_once() -> None:
    refused = start("--port=0", "--processes=2", "--device=cuda:99")
    assert refused.returncode == 1
    assert refused.stderr.count("device 'cuda:99' is not here") == 1
    assert refused.stderr.splitlines()[-1].startswith("boxloss-server: device 'cuda:99'")
    assert "Traceback" not in refused.stderr


def test_one_process_serves_alone() -> None:
    with ServerProcess("--processes=1") as server:
        (listener,) = (
            c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr[1:] == (server.port,)
        )
        assert listener.pid == server.pid
        assert psutil.Process(server.pid).children() == []
        with pytest.raises(OSError, match="in use"):
            listen(server.port, socket.SO_REUSEPORT)
    assert [line["event"] for line in server.log] == ["serving metrics", "serving", "shutting down", "stopped"]
    assert not any("process" in line for line in server.log)
