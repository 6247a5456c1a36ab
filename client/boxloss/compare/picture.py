"""A comparison as one picture. It needs the extra: pip install 'boxloss[plots]'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxloss.compare.comparison import Comparison
from boxloss.compare.slopes import DONE, FLAT

_BLUE, _ORANGE, _GREEN, _PINK, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C8C8C8"
_POINTS = 3000
"""Most of a loss in a scatter plot."""


def draw(comparison: Comparison, path: Path) -> None:
    """Draws distributions, agreement, slopes and descents to a .png, .svg or .pdf file.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(16, 10.5), dpi=100, layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.2, 1))[:, 0]
    left, right = upper.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.25))[0]
    gradients, values, descents = lower.subplots(1, 3)
    shown = _shown(comparison)
    _distributions(left.subplots(), comparison)
    _correlations(right.subplots(), comparison)
    _gradients(gradients, comparison)
    _values(values, comparison, shown)
    _descents(descents, comparison, shown)
    facts, loss = comparison.facts, comparison.recommendation.loss or "none of these"
    title = f"{facts.pairs} pairs, mean IoU {facts.iou.mean:.2f}, {facts.apart:.0%} apart; recommended: {loss}"
    figure.suptitle(title, fontsize=14)
    figure.savefig(path)


def _shown(comparison: Comparison) -> dict[str, str]:
    """Losses that get a color: the recommended one, the IoU, and the two that agree least."""
    names = list(comparison.losses)
    wanted = [comparison.recommendation.loss or names[0], "iou"]
    if comparison.disagreements:
        least = comparison.disagreements[0]
        wanted += [names[least.first], names[least.second]]
    chosen = [name for name in dict.fromkeys(wanted) if name in comparison.losses]
    return dict(zip(chosen, (_BLUE, _ORANGE, _GREEN, _PINK), strict=False))


def _distributions(axes: Axes, comparison: Comparison) -> None:
    names = list(comparison.losses)
    tops = [max(each.distribution.p95, np.finfo(float).tiny) for each in comparison.losses.values()]
    shares = [each.values / top for each, top in zip(comparison.losses.values(), tops, strict=True)]
    axes.boxplot(
        shares,
        orientation="horizontal",
        widths=0.65,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#D6E6F2", "edgecolor": _BLUE},
        medianprops={"color": _ORANGE, "linewidth": 2},
        whiskerprops={"color": _BLUE},
        capprops={"color": _BLUE},
    )
    _names(axes, names)
    axes.set_title("How the losses are distributed: quartiles, 5 % and 95 %")
    axes.set_xlabel("share of the loss's own 95th percentile")
    axes.set_xlim(min(0.0, *(float(np.quantile(each, 0.05)) for each in shares)) - 0.02, 1.02)


def _correlations(axes: Axes, comparison: Comparison) -> None:
    names, matrix = list(comparison.losses), comparison.agreement.spearman
    image = axes.imshow(
        matrix, vmin=min(0.0, float(np.nanmin(matrix, initial=0.0))), vmax=1, cmap="viridis", aspect="auto"
    )
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            if not np.isnan(value):
                color = "white" if value < 0.6 else "black"
                written = axes.text(
                    column, row, f"{value:.2f}".replace("0.", "."), ha="center", va="center", color=color, fontsize=7
                )
                written.set_in_layout(False)  # It lies within; to measure hundreds takes seconds.
    axes.set_title("How far they agree which pairs are worse: Spearman's rank correlation")
    axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)


def _gradients(axes: Axes, comparison: Comparison) -> None:
    rows = np.arange(len(comparison.losses)) + 1
    measured = [each.slopes for each in comparison.losses.values()]
    for offset, color, label, shares in (
        (-0.2, _ORANGE, f"no gradient: slope below {FLAT:g}", [each.flat for each in measured]),
        (0.2, _PINK, "worse after a small step", [each.against for each in measured]),
    ):
        axes.barh(rows + offset, np.nan_to_num(shares) * 100, 0.4, color=color, label=label)
    _names(axes, list(comparison.losses))
    axes.set_yticks(rows)
    axes.set_xlim(0, max(5.0, *(100 * np.nanmax([0.0, each.flat, each.against]) for each in measured)) * 1.08)
    axes.set_title("Gradients that vanish or mislead")
    axes.set_xlabel(f"% of the pairs with an IoU below {DONE:g}")
    axes.legend(fontsize=9)


def _values(axes: Axes, comparison: Comparison, shown: dict[str, str]) -> None:
    every = np.linspace(0, len(comparison.iou) - 1, min(len(comparison.iou), _POINTS)).round().astype(int)
    for name, color in shown.items():
        each = comparison.losses[name]
        top = max(each.distribution.maximum, np.finfo(float).tiny)
        axes.scatter(comparison.iou[every], each.values[every] / top, 12, color, alpha=0.5, linewidths=0, label=name)
    axes.set_title("Losses against the IoU")
    axes.set_xlabel("IoU")
    axes.set_ylabel("share of the loss's largest value")
    axes.set_xlim(-0.02, 1.02)
    axes.legend(fontsize=9)


def _descents(axes: Axes, comparison: Comparison, shown: dict[str, str]) -> None:
    for name, each in comparison.losses.items():
        color = shown.get(name, _GREY)
        axes.plot(each.descent.path, color=color, linewidth=2 if name in shown else 1, zorder=2 if name in shown else 1)
    for name, color in shown.items():
        axes.plot([], [], color=color, linewidth=2, label=name)
    axes.plot([], [], color=_GREY, label="others")
    axes.set_title("Where descent brings these boxes")
    axes.set_xlabel("step")
    axes.set_ylabel("mean IoU")
    axes.margins(x=0.01)
    axes.legend(fontsize=9)


def _names(axes: Axes, names: Sequence[str]) -> None:
    """One loss a row, the first on top."""
    axes.set_yticks(range(1, len(names) + 1), names, fontsize=9)
    axes.set_ylim(len(names) + 0.6, 0.4)
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
