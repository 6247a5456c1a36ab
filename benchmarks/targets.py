"""The comparisons that the project is held to: each a ratio, taken side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.arena import Arena
from benchmarks.contenders import Boxloss, Echo, Mosec
from benchmarks.measure import Cell, compare, with_callers, with_h2load
from benchmarks.options import Options
from benchmarks.spread import Spread
from benchmarks.workload import STREAM_MESSAGES

SIZES = (16, 64, 16_384, 262_144)
"""Of the requests below."""
KERNEL_PAIRS = 262_144

_SERVICE, _LIMIT, _PEER = Boxloss.name, Echo.name, Mosec.name


@dataclass(frozen=True)
class Target:
    """One ratio, in words.

    Attributes:
        number: for reference.
        what: is compared.
        ratio: over the rounds; None where it could not be taken.
        details: what else is to be known, or why there is no ratio.
    """

    number: int
    what: str
    ratio: Spread | None
    details: str


def targets(arena: Arena, options: Options, tell: Callable[[str], None]) -> Iterator[Target]:
    """Measures the targets that compare servers."""
    seconds, repeats = options.seconds, options.repeats

    def h2load(pairs: int, streams: int, streaming: bool = False) -> Cell:
        tell(f"target: {pairs:,} pairs, {streams} in flight{', streaming' if streaming else ''}")
        return compare(
            arena,
            [_SERVICE, _LIMIT],
            Cell("h2load", pairs, streams),
            lambda contender: with_h2load(arena, contender, pairs, seconds, streams=streams, streaming=streaming),
            repeats,
        )

    cell = h2load(64, 64)
    yield Target(
        1,
        "calls/s over the echo's: 64 pairs, 64 in flight",
        cell.rate_ratio(_SERVICE, _LIMIT),
        f"{_rates(cell, _SERVICE, _LIMIT)}; mean batch {cell.batch(_SERVICE):.1f} requests",
    )
    cell = h2load(64, 1)
    yield Target(
        2,
        "latency over the echo's: 64 pairs, 1 in flight",
        cell.latency_ratio(_SERVICE, _LIMIT),
        f"medians {cell.median(_SERVICE, 'p50') * 1e3:.3g} and {cell.median(_LIMIT, 'p50') * 1e3:.3g} ms",
    )
    cell = h2load(262_144, 1, streaming=True)
    rates = [cell.median(name, "rate") * STREAM_MESSAGES * cell.pairs / 1e6 for name in (_SERVICE, _LIMIT)]
    yield Target(
        3,
        "EvaluateStream, pairs/s over the echo's: 262,144 pairs a message",
        cell.rate_ratio(_SERVICE, _LIMIT),
        f"{rates[0]:.3g} and {rates[1]:.3g} million pairs/s",
    )
    for number, pairs in ((4, 16), (5, 16_384)):
        what = f"Python callers, evaluations/s over Mosec's with aiohttp: {pairs:,} pairs, 64 tasks"
        if _PEER not in arena.contenders:
            reason = arena.skipped.get(_PEER, "not among the contenders")
            yield Target(number, what, None, f"skipped: mosec: {reason}")
            continue
        tell(f"target: Python callers, {pairs:,} pairs, 64 tasks")
        cell = compare(
            arena,
            [_SERVICE, _PEER],
            Cell("callers", pairs, 64),
            lambda contender, pairs=pairs: with_callers(contender, pairs, seconds, 64),  # type: ignore[misc]
            repeats,
        )
        if _PEER in cell.failures:
            yield Target(number, what, None, f"failed: {cell.failures[_PEER]}")
        else:
            yield Target(number, what, cell.rate_ratio(_SERVICE, _PEER), _rates(cell, _SERVICE, _PEER))


def _rates(cell: Cell, name: str, other: str) -> str:
    return f"{cell.median(name, 'rate'):,.0f} and {cell.median(other, 'rate'):,.0f} calls/s"
