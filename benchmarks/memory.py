"""The server's memory while many clients send large requests for a long time."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

from benchmarks.arena import Arena
from benchmarks.contenders import Boxloss
from benchmarks.errors import BenchmarkError
from benchmarks.measure import with_h2load
from benchmarks.options import Options
from benchmarks.process import Process

_CLIENTS, _PAIRS = 200, 16_384
_GROWTH = 1.05
"""Memory is called flat where its last tenth is at most so many times its second: the first fills what is reused."""


@dataclass(frozen=True)
class Memory:
    """What was seen. Sizes are MiB, times seconds.

    Attributes:
        clients: each with a connection of its own and one request under way.
        pairs: of a request.
        rate: calls per second.
        start: memory before the first request.
        samples: time and memory.
    """

    clients: int
    pairs: int
    rate: float
    start: float
    samples: list[tuple[float, float]]

    @property
    def tenths(self) -> list[float]:
        """The median of each tenth of the samples."""
        sizes = [size for _, size in self.samples]
        edges = [len(sizes) * tenth // 10 for tenth in range(11)]
        return [statistics.median(sizes[start:end]) for start, end in pairwise(edges)]

    @property
    def peak(self) -> float:
        """The most that was seen."""
        return max(size for _, size in self.samples)

    @property
    def growth(self) -> float:
        """The last tenth over the second."""
        return self.tenths[9] / self.tenths[1]

    @property
    def flat(self) -> bool:
        """Whether it does not grow."""
        return self.growth <= _GROWTH


def memory(options: Options) -> Memory:
    """Watches a fresh server."""
    contender = Boxloss(*options.flags)
    with Arena(options) as arena:
        arena.start(contender)
        assert contender.process
        start = contender.process.rss() / 2**20
        seconds = options.memory_seconds
        measure = with_h2load(arena, contender, _PAIRS, seconds, connections=_CLIENTS)
        with _Watch(contender.process, interval=max(seconds / 1000, 0.05)) as watch:
            sample = measure()
    if len(watch.samples) < 10:
        raise BenchmarkError("memory was watched too shortly; give more --memory-seconds")
    return Memory(_CLIENTS, _PAIRS, sample.rate, start, watch.samples)


class _Watch:
    """Samples the memory of a process in a thread, within a `with` statement."""

    def __init__(self, process: Process, interval: float) -> None:
        self.samples: list[tuple[float, float]] = []
        self._process = process
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._over.wait(self._interval):
            self.samples.append((time.monotonic() - started, self._process.rss() / 2**20))
