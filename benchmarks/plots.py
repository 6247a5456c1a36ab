"""Results as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.in_process import Kernel
from benchmarks.measure import Cell
from benchmarks.memory import Memory

COLORS = {"boxloss": "#0072B2", "echo": "#222222", "mosec": "#D55E00", "litserve": "#009E73", "ray": "#CC79A7"}
MARKERS = {"boxloss": "o", "echo": "", "mosec": "s", "litserve": "^", "ray": "D"}
LABELS = {
    "boxloss": "boxloss",
    "echo": "grpc.aio echo (limit)",
    "mosec": "Mosec",
    "litserve": "LitServe",
    "ray": "Ray Serve",
}
_IN_PROCESS = {"eager": ("#999999", "eager torch in-process"), "kernel": ("#56B4E9", "compiled torch in-process")}
_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 130,
    "font.size": 9,
    "grid.alpha": 0.3,
}


def set_up() -> None:
    """Draws to files, in one style."""
    matplotlib.use("agg")
    pyplot.rcParams.update(_STYLE)


def draw_cells(title: str, cells: Sequence[Cell], kernels: Sequence[Kernel], path: Path) -> None:
    """Calls per second by size, a panel for each concurrency; bars reach from the least to the most."""
    columns = sorted({cell.in_flight for cell in cells})
    sizes = sorted({cell.pairs for cell in cells})
    figure, grid = pyplot.subplots(1, len(columns), figsize=(1.5 + 3.6 * len(columns), 4.6), sharey=True, squeeze=False)
    for axes, in_flight in zip(grid[0], columns, strict=True):
        _draw_in_process(axes, kernels, sizes)
        shown = [cell for cell in cells if cell.in_flight == in_flight]
        for name, color in COLORS.items():
            points = [(cell.pairs, cell.rate(name)) for cell in shown if name in cell.samples]
            if points:
                rates = [rate for _, rate in points]
                axes.errorbar(
                    [pairs for pairs, _ in points],
                    [rate.median for rate in rates],
                    [
                        [rate.median - rate.low for rate in rates],
                        [rate.high - rate.median for rate in rates],
                    ],
                    color=color,
                    marker=MARKERS[name],
                    markersize=4,
                    linewidth=1.6,
                    capsize=2,
                    label=LABELS[name],
                )
        axes.set(title=f"{in_flight} in flight", xscale="log", yscale="log", xlabel="pairs in a call")
        axes.set_xticks(sizes)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda pairs, _: f"{pairs:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params("x", labelrotation=30)
    grid[0][0].set_ylabel("calls per second")
    grid[0][0].yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,g}"))
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    _save(path)


def draw_memory(seen: Memory, path: Path) -> None:
    """Memory over time."""
    _, axes = pyplot.subplots(figsize=(7, 3.2))
    seconds, sizes = zip(*seen.samples, strict=True)
    axes.plot(seconds, sizes, color=COLORS["boxloss"], linewidth=1)
    axes.axhline(seen.start, color=COLORS["echo"], linewidth=1, linestyle="--", label="before the first request")
    axes.set(xlabel="seconds", ylabel="resident memory, MiB", ylim=(0, seen.peak * 1.1))
    axes.set_title(f"{seen.clients} clients, {seen.pairs:,} pairs each")
    axes.legend(frameon=False)
    _save(path)


def _draw_in_process(axes: Axes, kernels: Sequence[Kernel], sizes: Sequence[int]) -> None:
    """What computing alone allows, on one core or all: more are not always faster."""
    for way, (color, label) in _IN_PROCESS.items():
        seconds = {
            pairs: min(each.spread(way).median for each in kernels if each.pairs == pairs)
            for pairs in sizes
            if any(each.pairs == pairs for each in kernels)
        }
        if seconds:
            rates = [1 / taken for taken in seconds.values()]
            axes.plot(list(seconds), rates, color=color, linestyle="--", linewidth=1.2, label=label)


def _save(path: Path) -> None:
    pyplot.savefig(path)
    pyplot.close()
