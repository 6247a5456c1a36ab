"""Measurements of one contender, and of several in turns."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from benchmarks import h2load
from benchmarks.arena import Arena
from benchmarks.contenders import PEERS, Boxloss, Contender
from benchmarks.echo import STREAM, UNARY
from benchmarks.errors import BenchmarkError
from benchmarks.metrics import Counts
from benchmarks.process import ROOT
from benchmarks.spread import Spread, percentile, ratio, spread
from benchmarks.workload import STREAM_MESSAGES, Workload, frame, stream_answer

Generator = Literal["h2load", "callers"]

_CELL_TIME = 60.0
"""Seconds that a cell may have taken when a round begins."""
_EXECUTION_BYTES = 24
"""By so much may the service's answers differ in size: they tell times."""


@dataclass(frozen=True)
class Sample:
    """One measurement. Times are seconds."""

    rate: float
    """Calls per second."""
    p50: float
    p99: float
    batch: float | None = None
    """Mean number of requests in a batch, where it is known."""


@dataclass
class Cell:
    """All contenders under the same load.

    Attributes:
        samples: of each contender, one a round.
        failures: why a contender has none.
    """

    generator: Generator
    pairs: int
    in_flight: int
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def rate(self, name: str) -> Spread:
        """Calls per second of a contender."""
        return spread([sample.rate for sample in self.samples[name]])

    def rate_ratio(self, name: str, other: str) -> Spread:
        """Its calls per second over another's."""
        return ratio(*([sample.rate for sample in self.samples[each]] for each in (name, other)))

    def latency_ratio(self, name: str, other: str) -> Spread:
        """Its median latency over another's."""
        return ratio(*([sample.p50 for sample in self.samples[each]] for each in (name, other)))

    def median(self, name: str, what: Literal["rate", "p50", "p99"]) -> float:
        """The median over the rounds."""
        return spread([getattr(sample, what) for sample in self.samples[name]]).median

    def batch(self, name: str) -> float | None:
        """The mean batch over the rounds."""
        batches = [sample.batch for sample in self.samples[name] if sample.batch is not None]
        return sum(batches) / len(batches) if batches else None


Measure = Callable[[], Sample]


def compare(
    arena: Arena,
    names: Sequence[str],
    cell: Cell,
    prepare: Callable[[Contender], Measure],
    repeats: int,
) -> Cell:
    """Fills a cell: has every contender verified and prepared, then measured in turns.

    Each round begins with another contender, so that none always follows the same one. No round begins after a cell
    has taken a minute. A peer that fails is left out with its reason; the failure of anything else ends the run.
    """
    started = time.monotonic()
    measures: dict[str, Measure] = {}
    for name in names:
        with _forgiving(cell, name), arena.only(name) as contender:
            contender.verify(Workload(cell.pairs))
            measures[name] = prepare(contender)
            cell.samples[name] = []
    for turn in range(repeats):
        if turn and time.monotonic() - started > _CELL_TIME:
            break
        order = list(measures)
        shift = turn % max(len(order), 1)
        for name in order[shift:] + order[:shift]:
            if name not in cell.failures:
                with _forgiving(cell, name), arena.only(name):
                    cell.samples[name].append(measures[name]())
    return cell


def with_h2load(
    arena: Arena,
    contender: Contender,
    pairs: int,
    seconds: float,
    *,
    connections: int = 1,
    streams: int = 1,
    streaming: bool = False,
) -> Measure:
    """A measurement of a contender by h2load. Calls it until it is known how many requests take so many seconds.

    Args:
        arena: where it runs.
        contender: under test.
        pairs: of a request.
        seconds: that a measurement should take.
        connections: to a gRPC server.
        streams: requests under way on each; a plain HTTP server gets a connection for each instead.
        streaming: whether each request is a stream of `STREAM_MESSAGES` messages.
    """
    workload = Workload(pairs)
    messages = STREAM_MESSAGES if streaming else 1
    answer = contender.ask(workload, timeout=60)
    if contender.name in PEERS:
        body = arena.file(f"raw-{pairs}", lambda: workload.raw)
        answer_bytes, slack = len(answer), 0
        connections, streams = connections * streams, 1
    else:
        request = workload.stream_request if streaming else workload.request
        body = arena.file(f"grpc-{pairs}-{streaming}", lambda: frame(request) * messages)
        answer_bytes = messages * len(frame(stream_answer(answer) if streaming else answer))
        slack = messages * _EXECUTION_BYTES if isinstance(contender, Boxloss) else 0
    load = h2load.Load(
        contender.url.replace(UNARY, STREAM) if streaming else contender.url,
        "http" if contender.name in PEERS else "grpc",
        body,
        connections,
        streams,
    )

    def send(requests: int) -> tuple[h2load.Report, Sample]:
        before = contender.counts() if isinstance(contender, Boxloss) else None
        report, latencies = h2load.send(load, requests)
        if abs(report.data_bytes - requests * answer_bytes) > requests * slack:
            raise BenchmarkError(
                f"{contender.name} answers {report.data_bytes:,} bytes, not {requests * answer_bytes:,}; see its log"
            )
        batch = None
        if isinstance(contender, Boxloss) and before:
            batch = check_counts(contender, before, requests)
        sample = Sample(requests / report.seconds, percentile(latencies, 50), percentile(latencies, 99), batch)
        return report, sample

    requests = _calibrate(lambda number: send(number)[0].seconds, 2 * connections * streams, seconds)
    return lambda: send(requests)[1]


def with_callers(contender: Contender, pairs: int, seconds: float, tasks: int) -> Measure:
    """A measurement of a contender by Python callers in a process of their own."""

    def call() -> Sample:
        arguments = [contender.name, contender.url, str(pairs), str(tasks), str(seconds)]
        before = contender.counts() if isinstance(contender, Boxloss) else None
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.caller", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise BenchmarkError(f"calls of {contender.name} failed: {ended.stderr.strip().rpartition(chr(10))[2]}")
        seen = json.loads(ended.stdout)
        batch = None
        if isinstance(contender, Boxloss) and before:
            counts = contender.counts().since(before)
            batch = counts.batched / counts.batches
        return Sample(seen["calls"] / seen["seconds"], seen["p50"], seen["p99"], batch)

    return call


def check_counts(contender: Boxloss, before: Counts, calls: int) -> float:
    """The mean batch of the calls, all of which must have been answered OK: h2load cannot see a gRPC status."""
    deadline = time.monotonic() + 5
    while True:
        counts = contender.counts().since(before)
        if sum(counts.codes.values()) >= calls or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if counts.codes != {"OK": calls}:
        raise BenchmarkError(f"{contender.name} counts {counts.codes} instead of {calls} calls that are OK")
    return counts.batched / counts.batches


def _calibrate(seconds_of: Callable[[int], float], least: int, seconds: float) -> int:
    """How many requests take so many seconds; finding out warms up."""
    requests = least
    while (took := seconds_of(requests)) < seconds / 4:
        requests = round(requests * min(max(seconds / 2 / took, 2), 10))
    return max(least, round(requests * seconds / took))


@contextmanager
def _forgiving(cell: Cell, name: str) -> Iterator[None]:
    """Lets a peer fail."""
    try:
        yield
    except BenchmarkError as error:
        if name not in PEERS:
            raise
        cell.failures[name] = str(error)
        cell.samples.pop(name, None)
