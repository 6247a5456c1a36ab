"""Results as pictures: error over iterations, and by where the anchor was, as in the paper."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from examples.simulation.cases import CENTER, RADIUS, scatter
from examples.simulation.contenders import ALL, FIELD, PAPER
from examples.simulation.results import Result
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from PIL import Image

from boxloss.contract.arrays import Array
from boxloss.losses.notation import label

_COLORS = ["#222222", "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#8C6D31", "#7F7F7F", "#5E3C99"]
_LEAST = 1e-3
"""Errors are drawn down to this: the last steps of a box are as long."""
_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "font.size": 9,
    "grid.alpha": 0.3,
}


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draws curves.png, surfaces.png and positions.png of the results that moved center and sides."""
    chosen = {each.setting.loss: each for each in results if each.setting.coordinates == "cxcywh"}
    pictures = {"curves": curves, "surfaces": surfaces, "positions": positions}
    return [_save(picture, chosen, folder / f"{name}.png") for name, picture in pictures.items() if chosen]


def draw_published(results: Sequence[Result], folder: Path) -> Path:
    """Draws published.png of what the paper's program gives."""
    return _save(published, {each.setting.loss: each for each in results}, folder / "published.png")


def curves(results: Mapping[str, Result]) -> Figure:
    """Mean error over iterations, a panel for each family of losses."""
    families = {name: [label(loss) for loss in losses if label(loss) in results] for name, losses in FIELD.items()}
    families = {name: losses for name, losses in families.items() if losses} or {"": list(results)}
    figure, grid = pyplot.subplots(1, len(families), figsize=(3.8 * len(families), 5), sharey=True, squeeze=False)
    for axes, (family, losses) in zip(grid[0], families.items(), strict=True):
        for loss, color in zip(losses, cycle(_COLORS), strict=False):
            axes.plot(results[loss].curve, label=_short(loss), color=color, linewidth=1.4)
        axes.set(title=family, xlabel="iteration", yscale="log", ylim=(_LEAST, 10))
        axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    grid[0][0].set_ylabel("mean error")
    return figure


def surfaces(results: Mapping[str, Result]) -> Figure:
    """Mean final error by where the anchor was, as surfaces, of the paper's losses."""
    shown = [results[label(loss)] for loss in PAPER if label(loss) in results] or [*results.values()][:5]
    figure = pyplot.figure(figsize=(3.1 * len(shown), 3.3))
    for place, result in enumerate(shown, 1):
        _surface(figure.add_subplot(1, len(shown), place, projection="3d"), result, result.setting.loss)
    return figure


def positions(results: Mapping[str, Result]) -> Figure:
    """Mean final error by where the anchor was, as maps in one scale, of all losses."""
    known = list(map(label, ALL))
    shown = sorted(results.values(), key=lambda each: (*known, each.setting.loss).index(each.setting.loss))
    columns = min(len(shown), 9)
    rows = -(-len(shown) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(1.4 * columns + 0.8, 1.6 * rows), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, result in zip(grid.flat, shown, strict=False):
        colors = _map(axes, result)
    figure.colorbar(colors, ax=grid, label="mean final error", extend="both", pad=0.01)
    return figure


def published(results: Mapping[str, Result]) -> Figure:
    """The paper's losses with exact gradients and with those of the paper's program."""
    figure = pyplot.figure(figsize=(13, 3.6))
    axes = figure.add_subplot(1, 3, 1)
    for name, color in zip(("iou", "giou", "diou", "ciou"), _COLORS, strict=False):
        made = max((loss for loss in results if loss.split()[0] == name), key=len)
        axes.plot(results[made].curve, color=color, label=name)
        axes.plot(results[name].curve, color=color, linestyle=":")
    axes.set(
        title="solid: the program; dotted: exact gradients", xlabel="iteration", ylabel="mean error", ylim=(0, None)
    )
    axes.legend(fontsize=7.5, loc="center right")
    _surface(figure.add_subplot(1, 3, 2, projection="3d"), results["giou overlaps sides"], "giou, the program")
    _surface(figure.add_subplot(1, 3, 3, projection="3d"), results["giou"], "giou, exact")
    return figure


def _surface(axes: Any, result: Result, title: str) -> None:
    x, y = _points(result).T
    axes.plot_trisurf(Triangulation(x, y), result.positions, cmap="viridis", linewidth=0)
    axes.set(xlabel="x", ylabel="y")
    axes.set_zlim(bottom=0)
    axes.set_title(_short(title))
    axes.tick_params(labelsize=7)
    axes.view_init(elev=32, azim=-60)


def _map(axes: Axes, result: Result) -> matplotlib.cm.ScalarMappable:
    x, y = _points(result).T
    axes.set_title(_short(result.setting.loss), fontsize=7.5)
    axes.set(aspect="equal", xlim=(CENTER - RADIUS, CENTER + RADIUS), ylim=(CENTER - RADIUS, CENTER + RADIUS))
    return axes.tripcolor(
        Triangulation(x, y), result.positions, norm=LogNorm(_LEAST, 5), cmap="viridis", rasterized=True
    )


def _short(loss: str) -> str:
    return loss.replace(":base=ciou", " (ciou)")


def _points(result: Result) -> Array:
    return scatter(result.setting.points, result.setting.seed)


def _save(picture: Callable[[Mapping[str, Result]], Figure], results: Mapping[str, Result], path: Path) -> Path:
    """Draws a picture into a PNG with a palette, which is a third as large."""
    matplotlib.use("agg")
    buffer = io.BytesIO()
    with pyplot.rc_context(_STYLE):
        figure = picture(results)
        figure.savefig(buffer, format="png")
        pyplot.close(figure)
    Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
