"""Two server processes against one, on the same cores."""

from __future__ import annotations

from benchmarks.arena import Arena
from benchmarks.contenders import Boxloss, has_flag
from benchmarks.measure import Cell, compare, with_h2load
from benchmarks.options import Options
from benchmarks.targets import Target

_PAIRS, _CONNECTIONS, _STREAMS = 64, 8, 8
_WHAT = "two processes, calls/s over one's: 64 pairs, 8 connections of 8 in flight"


class _OneProcess(Boxloss):
    name = "one process"


class _TwoProcesses(Boxloss):
    name = "two processes"


def processes(options: Options) -> Target:
    """Measures both, where the server knows of processes."""
    if not has_flag("--processes"):
        return Target(7, _WHAT, None, "skipped: this boxloss-server does not know --processes")
    one, two = _OneProcess(*options.flags), _TwoProcesses("--processes=2", *options.flags)
    with Arena(options) as arena:
        arena.start(one)
        arena.start(two)
        cell = compare(
            arena,
            [one.name, two.name],
            Cell("h2load", _PAIRS, _CONNECTIONS * _STREAMS),
            lambda contender: with_h2load(
                arena, contender, _PAIRS, options.seconds, connections=_CONNECTIONS, streams=_STREAMS
            ),
            options.repeats,
        )
    rates = f"{cell.median(two.name, 'rate'):,.0f} and {cell.median(one.name, 'rate'):,.0f} calls/s"
    return Target(7, _WHAT, cell.rate_ratio(two.name, one.name), rates)
