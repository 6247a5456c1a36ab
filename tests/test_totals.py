"""The metrics of several processes, added up."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest, start_http_server

from boxloss_server.processes.totals import Totals
from boxloss_server.service.metrics import Metrics


class Process:
    """Metrics of a process, served from here."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("calls", "Calls.", ["code"], registry=self.registry)
        self.seconds = Histogram("seconds", "Seconds.", buckets=[1, 2], registry=self.registry)
        self.waiting = Gauge("waiting", "Waiting.", registry=self.registry)
        Info("build", "Build.", registry=self.registry).info({"version": "1"})
        self._http, self._thread = start_http_server(0, "127.0.0.1", self.registry)
        self.port = self._http.server_port

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started = [Process() for _ in range(3)]
    yield started
    with ThreadPoolExecutor() as threads:
        list(threads.map(Process.stop, started))


def total(totals: Totals, name: str, **labels: str) -> float | None:
    """The value of a metric in the totals."""
    registry = CollectorRegistry()
    registry.register(totals)
    return registry.get_sample_value(name, labels)


def test_counters_histograms_and_gauges_add_up(processes: list[Process]) -> None:
    first, second, _ = processes
    first.calls.labels("OK").inc(3)
    second.calls.labels("OK").inc(4)
    second.calls.labels("BUSY").inc()
    for process, seconds in ((first, 0.5), (first, 1.5), (second, 1.5), (second, 5.0)):
        process.seconds.observe(seconds)
    first.waiting.set(2)
    second.waiting.set(5)
    totals = Totals(2, CollectorRegistry())
    totals.watch(0, first.port)
    totals.watch(1, second.port)
    assert total(totals, "calls_total", code="OK") == 7
    assert total(totals, "calls_total", code="BUSY") == 1
    assert [total(totals, "seconds_bucket", le=le) for le in ("1.0", "2.0", "+Inf")] == [1, 3, 4]
    assert total(totals, "seconds_count") == 4
    assert total(totals, "seconds_sum") == 8.5
    assert total(totals, "waiting") == 7
    assert total(totals, "build_info", version="1") == 1
    created = first.registry.get_sample_value("calls_created", {"code": "OK"})
    assert created is not None
    assert total(totals, "calls_created", code="OK") == pytest.approx(created, abs=1e-6)


def test_gauges_whose_sum_means_nothing_are_the_largest(processes: list[Process]) -> None:
    memory = {"cpu used": (100, 200), "cpu total": (1000, 1000), "cuda:0 used": (30, 31), "cuda:0 total": (80, 80)}
    totals = Totals(2, CollectorRegistry())
    for number, process in enumerate(processes[:2]):
        oldest = Gauge("boxloss_oldest_request_seconds", "Oldest.", registry=process.registry)
        oldest.set((1.5, 0.25)[number])
        gauge = Gauge("boxloss_device_memory_bytes", "Memory.", ["device", "kind"], registry=process.registry)
        for labels, values in memory.items():
            gauge.labels(*labels.split()).set(values[number])
        totals.watch(number, process.port)
    assert total(totals, "boxloss_oldest_request_seconds") == 1.5
    sums = {
        labels: total(totals, "boxloss_device_memory_bytes", device=labels.split()[0], kind=labels.split()[1])
        for labels in memory
    }
    assert sums == {"cpu used": 300, "cpu total": 1000, "cuda:0 used": 31, "cuda:0 total": 80}


def test_of_times_the_earliest_counts_and_of_what_all_share_one(processes: list[Process]) -> None:
    shared = {
        "boxloss_processes_wanted": (2, 2, 2),
        "boxloss_certificate_expiry_timestamp_seconds": (2e9, 1.9e9, 1.9e9),
        "boxloss_files_read_timestamp_seconds": (1.8e9, 1.7e9, 1.7e9),
    }
    totals = Totals(2, CollectorRegistry())
    for number, process in enumerate(processes[:2]):
        for name, values in shared.items():
            Gauge(name, "Shared.", registry=process.registry).set(values[number])
        totals.watch(number, process.port)
    assert {name: total(totals, name) for name in shared} == {name: values[2] for name, values in shared.items()}


def test_what_is_of_one_process_by_its_nature_says_of_which(processes: list[Process]) -> None:
    supervisor = CollectorRegistry()
    for registry, started in ((supervisor, 10), (processes[0].registry, 20), (processes[1].registry, 30)):
        Gauge("process_start_time_seconds", "Start.", registry=registry).set(started)
        Counter("process_cpu_seconds", "CPU.", registry=registry).inc(started)
    Gauge("boxloss_processes_serving", "Serving.", registry=supervisor).set(0)
    totals = Totals(2, supervisor)
    assert total(totals, "boxloss_processes_serving") == 0
    for number, process in enumerate(processes[:2]):
        Gauge("boxloss_processes_serving", "Serving.", registry=process.registry).set(1)
        totals.watch(number, process.port)
    for name in ("process_start_time_seconds", "process_cpu_seconds_total"):
        values = [total(totals, name, process=process) for process in ("supervisor", "0", "1")]
        assert values == [10, 20, 30]
    assert total(totals, "boxloss_processes_serving") == 2


def test_what_a_process_counted_outlasts_it(processes: list[Process]) -> None:
    first, second, third = processes
    totals = Totals(2, CollectorRegistry())
    totals.watch(0, first.port)
    totals.watch(1, second.port)
    for process in processes:
        process.calls.labels("OK").inc(10)
        process.seconds.observe(0.1)
        process.waiting.set(1)
    sums = [total(totals, "seconds_sum")]
    assert total(totals, "calls_total", code="OK") == 20
    totals.retire(1)
    assert total(totals, "calls_total", code="OK") == 20
    assert total(totals, "waiting") == 1
    sums.append(total(totals, "seconds_sum"))
    totals.watch(1, third.port)
    assert total(totals, "calls_total", code="OK") == 30
    assert total(totals, "seconds_bucket", le="1.0") == 3
    assert total(totals, "waiting") == 2
    totals.retire(1)
    totals.retire(0)
    assert total(totals, "calls_total", code="OK") == 30
    assert total(totals, "waiting") is None
    assert total(totals, "build_info", version="1") is None
    assert sums[0] == sums[1]


def test_a_process_that_does_not_answer_counts_as_last_seen(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boxloss_server.processes.totals._STATUS_TIMEOUT", 0.5)
    first, second, _ = processes
    totals = Totals(2, CollectorRegistry())
    totals.watch(0, first.port)
    totals.watch(1, second.port)
    first.calls.labels("OK").inc(10)
    second.calls.labels("OK").inc(10)
    for process in (first, second):
        Gauge("boxloss_processes_serving", "Serving.", registry=process.registry).set(1)
    assert total(totals, "calls_total", code="OK") == 20
    assert total(totals, "boxloss_processes_serving") == 2
    with socket.create_server(("127.0.0.1", 0)) as silent:
        totals.watch(1, silent.getsockname()[1])
        first.calls.labels("OK").inc()
        assert total(totals, "calls_total", code="OK") == 21
        assert total(totals, "boxloss_processes_serving") == 1
    assert total(totals, "calls_total", code="OK") == 21  # Nothing listens any more.


def test_the_totals_of_one_process_are_its_metrics() -> None:
    metrics = Metrics()
    rpc = metrics.rpc("unary", "boxloss.v1.LossService", "Evaluate")
    rpc.started()
    rpc.handled("OK", 0.1)
    metrics.closed("full", 3, 100, 0.01)
    metrics.serves_on("cpu")
    http, thread = start_http_server(0, "127.0.0.1", metrics.registry)
    totals = Totals(1, CollectorRegistry())
    totals.watch(0, http.server_port)
    registry = CollectorRegistry()
    registry.register(totals)

    def told(by: CollectorRegistry) -> list[str]:
        lines = generate_latest(by).decode().splitlines()
        return [
            line for line in lines if not line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith("process_")
        ]

    assert told(registry) == told(metrics.registry)
    http.shutdown()
    thread.join()
    http.server_close()
