"""Draws what came out: loss curves, and pictures with the boxes that were found."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from examples.detector.agreement import Curves, apart
from examples.detector.evaluation import CONFIDENT, Detections
from examples.detector.pictures import CLASSES, Picture
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

_BLUE, _ORANGE, _GREEN, _PINK, _BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#222222"
_COLORS = dict(zip(CLASSES, (_BLUE, _ORANGE, _GREEN), strict=True))
_COLUMNS = 6


def draw_curves(curves: Curves, path: Path) -> None:
    """The loss of the trainings, and how far they are apart, step by step."""
    _set_up()
    figure, (loss, difference) = pyplot.subplots(1, 2, figsize=(9.6, 3.5))
    steps = range(1, 1 + len(curves.here))
    loss.plot(steps, curves.here, color=_BLUE, linewidth=3.2, alpha=0.4, label="box loss in this process")
    loss.plot(steps, curves.served, color=_BLACK, linewidth=0.6, label="box loss by the service")
    loss.set(title="loss of two trainings", xlabel="step", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    loss.yaxis.set_minor_formatter(NullFormatter())
    loss.legend(frameon=False)
    for values, color, label in (
        (apart(curves.here, curves.nudged), _PINK, "two trainings in this process, one off by a rounding"),
        (apart(curves.here, curves.served), _ORANGE, "two trainings, one by the service"),
        (curves.agreement.gradients, _BLUE, "gradients of a step, same weights"),
        (curves.agreement.losses, _GREEN, "loss of a step, same weights"),
    ):
        drawn = [value or math.nan for value in values]  # There is no logarithm of 0.
        difference.plot(steps, drawn, ".", color=color, markersize=2, label=label)
    difference.set(title="relative difference", xlabel="step", yscale="log")
    figure.legend(
        *difference.get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False, markerscale=4
    )
    _save(figure, path)


def draw_pictures(seen: Sequence[Picture], found: Sequence[Detections], path: Path) -> None:
    """Pictures with the boxes of their labels in white, and those that were found in the color of the class."""
    _set_up()
    rows = -(-len(seen) // _COLUMNS)
    figure, grid = pyplot.subplots(rows, _COLUMNS, figsize=(9.6, 1.75 * rows + 0.3), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, detections in zip(grid.flat, seen, found, strict=False):
        axes.imshow(
            picture.pixels.permute(1, 2, 0).numpy(), extent=(0, picture.pixels.shape[2], picture.pixels.shape[1], 0)
        )
        for box in picture.boxes.tolist():
            axes.add_patch(_outline(box, "white", linewidth=3.4))
        for box, number, score in zip(
            detections.boxes.tolist(), detections.classes.tolist(), detections.scores.tolist(), strict=True
        ):
            if score >= CONFIDENT:
                axes.add_patch(_outline(box, _COLORS[CLASSES[number]], linewidth=1.4))
                axes.text(
                    box[0], box[1] - 1, f"{score:.2f}", color=_BLACK, fontsize=5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
                )  # fmt: skip
    handles = [
        Line2D([], [], color="#BBBBBB", linewidth=3.4, label="label (white)"),
        *(Line2D([], [], color=color, linewidth=1.4, label=f"found: {name}") for name, color in _COLORS.items()),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    _save(figure, path)


def _outline(box: Sequence[float], color: str, linewidth: float) -> Rectangle:
    left, top, right, bottom = box
    return Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=linewidth)


def _set_up() -> None:
    matplotlib.use("agg")
    pyplot.rcParams.update(
        {
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 8,
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "font.size": 8,
        }
    )


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    # A palette is a fifth as large; this way of choosing it keeps the noise of the pictures as it is.
    palette = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(path, optimize=True)
