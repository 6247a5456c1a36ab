"""Metrics of several processes, added up."""

from __future__ import annotations

import http.client
import threading
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_STATUS_TIMEOUT = 2.0
"""Seconds that a process has to tell its metrics; after that its last ones count, and it does not serve."""

_EARLIEST = ("boxloss_certificate_expiry_timestamp_seconds", "boxloss_files_read_timestamp_seconds")
"""Times of which the earliest counts."""

_LASTING = ("counter", "histogram", "summary")
"""Types of metrics that must never go down."""

_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Totals(Collector):
    """Collects the metrics of all processes as those of one server.

    What a process has counted stays in the totals after its end, as it was last collected: what it counted after
    that is lost. Its gauges end with it.

    The conventional metrics of a process, "process_*", stay apart: they have its number in the label "process".

    Args:
        processes: how many there are.
        supervisor: metrics of the supervisor's own.
    """

    def __init__(self, processes: int, supervisor: Collector) -> None:
        self._supervisor = supervisor
        self._sources = [_Source(str(number)) for number in range(processes)]
        self._threads = ThreadPoolExecutor(processes, "boxloss-metrics")
        self._lock = threading.Lock()

    def watch(self, number: int, port: int) -> None:
        """Takes the metrics of a process from this port of 127.0.0.1. May wait while metrics are collected."""
        with self._lock:
            self._sources[number].port = port

    def retire(self, number: int) -> None:
        """Notes that a process has ended. May wait while metrics are collected."""
        with self._lock:
            self._sources[number].end()

    def collect(self) -> list[Metric]:
        with self._lock:
            # Each process with its predecessors first, and then these in their order: a sum of floats depends on the
            # order, and must not become less by its last digit when a process is replaced.
            processes = self._threads.map(_Source.collect, self._sources)
            return add_up([labeled(self._supervisor.collect(), "supervisor"), *processes])


class _Source:
    """The metrics of one process and of those that it replaced."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.port = 0
        self._last: list[Metric] = []
        self._ended: list[Metric] = []

    def collect(self) -> list[Metric]:
        if self.port:
            try:
                self._last = labeled(scrape(self.port), self._name)
            except (OSError, ValueError, http.client.HTTPException):  # It hangs, is busy or has just died.
                self._last = [family for family in self._last if family.name != "boxloss_processes_serving"]
        return add_up([self._ended, self._last])

    def end(self) -> None:
        lasting = [family for family in self._last if family.type in _LASTING]
        self._ended = add_up([self._ended, lasting])
        self._last = []
        self.port = 0


def scrape(port: int) -> list[Metric]:
    """The metrics that a process serves on a port of 127.0.0.1.

    Raises:
        OSError: it does not answer in time.
        ValueError: it answers something else.
        http.client.HTTPException: so it does.
    """
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0"},  # Tells counters and infos from gauges.
    )
    with _WITHOUT_PROXY.open(request, timeout=_STATUS_TIMEOUT) as response:
        text = response.read().decode()
    return list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def labeled(families: Iterable[Metric], process: str) -> list[Metric]:
    """Metrics with the label "process" where they are of one process by their nature."""
    result = []
    for family in families:
        if family.name.startswith("process_"):
            of_process = Metric(family.name, family.documentation, family.type)
            of_process.samples = [
                sample._replace(labels={**sample.labels, "process": process}) for sample in family.samples
            ]
            family = of_process
        result.append(family)
    return result


def add_up(parts: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Joins metrics of several processes: adds counters, histograms and gauges, and keeps what only describes.

    Of gauges whose sum means nothing, the largest counts; of exemplars, the newest.
    """
    families: dict[str, Metric] = {}
    totals: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], Sample]] = {}
    for family in chain.from_iterable(parts):
        if family.name not in families:
            families[family.name] = Metric(family.name, family.documentation, family.type, family.unit)
            totals[family.name] = {}
        samples = totals[family.name]
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            samples[key] = _add(family, samples[key], sample) if key in samples else sample
    for name, family in families.items():
        family.samples = list(totals[name].values())
    return list(families.values())


def _add(family: Metric, a: Sample, b: Sample) -> Sample:
    if family.type == "info":
        return a
    if a.name == f"{family.name}_created" or a.name in _EARLIEST:
        return min(a, b, key=lambda sample: sample.value)
    if _is_common(a):
        return max(a, b, key=lambda sample: sample.value)
    exemplars = [sample.exemplar for sample in (a, b) if sample.exemplar]
    newest = max(exemplars, key=lambda exemplar: exemplar.timestamp or 0, default=None)
    return a._replace(value=a.value + b.value, exemplar=newest)


def _is_common(sample: Sample) -> bool:
    """Whether it tells of something that the processes share, or of the worst of them."""
    match sample.name:
        case "boxloss_oldest_request_seconds" | "boxloss_processes_wanted":
            return True
        case "boxloss_device_memory_bytes":  # Each process uses its own part of the machine's; of a GPU, all tell all.
            return sample.labels["kind"] == "total" or sample.labels["device"] != "cpu"
    return False
