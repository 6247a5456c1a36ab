"""Calls answered while three times as many are offered as the server can take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import h2load
from benchmarks.arena import Arena
from benchmarks.contenders import Boxloss
from benchmarks.measure import with_h2load
from benchmarks.options import Options
from benchmarks.spread import ratio, spread
from benchmarks.tables import number
from benchmarks.targets import Target
from benchmarks.workload import Workload, frame

_PAIRS = 64, 16_384
_TIMES = 3
_CONNECTIONS, _STREAMS = 8, 8
"""What gives the peak; a flood has as many connections."""
_FLOOD_STREAMS = 128
"""Requests under way on each connection of a flood at most: together, four times as many large ones as may wait."""

_LASTING = 5
"""A flood lasts so many times as long as another measurement: queues have to fill first."""


class Flood(NamedTuple):
    """What became of a flood. Times are seconds.

    Attributes:
        rate: calls answered with OK per second.
        refused: the share of the others.
        longest: until an answer, OK or not.
    """

    rate: float
    refused: float
    longest: float


def overload(options: Options, tell: Callable[[str], None]) -> Iterator[Target]:
    """Measures the goodput of a fresh server under small and under large requests."""
    contender = Boxloss(*options.flags)
    with Arena(options) as arena:
        arena.start(contender)
        for index, pairs in enumerate(_PAIRS, start=9):
            tell(f"overload, {pairs:,} pairs")
            contender.verify(Workload(pairs))
            body = arena.file(f"flood-{pairs}", lambda pairs=pairs: frame(Workload(pairs).request))  # type: ignore[misc]
            measure_peak = with_h2load(
                arena, contender, pairs, options.seconds, connections=_CONNECTIONS, streams=_STREAMS
            )
            load = h2load.Load(contender.url, "grpc", body, _CONNECTIONS, _FLOOD_STREAMS)
            peaks, floods = [], []
            for _ in range(options.repeats):
                peaks.append(measure_peak().rate)
                floods.append(flood(contender, load, _TIMES * peaks[-1], _LASTING * options.seconds))
            rates = [flood.rate for flood in floods]
            yield Target(
                index,
                f"calls answered at {_TIMES} times the load, over the most without: {pairs:,} pairs",
                ratio(rates, peaks),
                f"{number(spread(rates).median)} and {number(spread(peaks).median)} calls/s; "
                f"{spread([flood.refused for flood in floods]).median:.0%} refused; "
                f"the longest took {number(max(flood.longest for flood in floods) * 1e3)} ms",
            )


def flood(contender: Boxloss, load: h2load.Load, rate: float, seconds: float) -> Flood:
    """Offers so many calls per second, as far as the load generator can."""
    calls = round(rate * seconds)
    before = contender.counts()
    report, latencies = h2load.send(load, calls, rate=rate)
    answered = contender.counts().since(before).codes.get("OK", 0)
    return Flood(answered / report.seconds, 1 - answered / calls, max(latencies))
