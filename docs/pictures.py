"""Draws the pictures of docs/losses.md from the losses themselves: python docs/pictures.py [folder].

Needs matplotlib. The same versions of the packages draw the same bytes.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from boxloss.losses import (
    BCD,
    GWD,
    KLD,
    L1,
    L2,
    NWD,
    AlphaIoU,
    BalancedL1,
    BoundedIoU,
    CIoU,
    DIoU,
    EIoU,
    Focal,
    FocalEIoU,
    Focaler,
    GIoU,
    Huber,
    Inner,
    IoU,
    KFIoU,
    Loss,
    MPDIoU,
    PIoU,
    PIoUv2,
    ProbIoU,
    ShapeIoU,
    SIoU,
    SmoothL1,
    WIoU,
)
from boxloss.losses.defaults import defaults
from boxloss_server import losses
from boxloss_server.losses.polygons import rectangle_corners

Array = NDArray[np.float64]

SIDE = 20.0
"""The target's side in pixels. Everything is drawn in units of it."""

IMAGE_SIZE = (640.0, 480.0)
RUNNING_MEAN = 0.2

FLAT = 0.01
"""A slope below this, in a loss's unit for each side of the target, counts as none."""

BLUE, ORANGE, GREEN, PINK, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#222222"
FLAT_SHADE, WRONG_SHADE = "#E4E4E4", "#F7D0B5"

SLIDING: dict[str, Loss] = {
    "L1": L1(),
    "L2": L2(),
    "Smooth L1, beta 10": SmoothL1(beta=10),
    "Huber, delta 10": Huber(delta=10),
    "Balanced L1, beta 10": BalancedL1(beta=10),
    "NWD": NWD(),
    "Bounded IoU": BoundedIoU(),
    "IoU": IoU(),
    "GIoU": GIoU(),
    "DIoU": DIoU(),
    "CIoU": CIoU(),
    "EIoU": EIoU(),
    "SIoU": SIoU(),
    "Shape-IoU": ShapeIoU(),
    "MPDIoU": MPDIoU(),
    "WIoU v1": WIoU(),
    "WIoU v3, mean 0.2": WIoU(version=3),
    "PIoU": PIoU(),
    "PIoU v2": PIoUv2(),
    "Focal-EIoU": FocalEIoU(),
    "Focal-EIoU, attached": FocalEIoU(detach_weight=False),
    "Alpha-GIoU": AlphaIoU(GIoU()),
    "Inner-IoU": Inner(IoU()),
    "Focaler-GIoU": Focaler(GIoU()),
}

LINES: dict[str, tuple[Loss, dict[str, object]]] = {
    "IoU": (IoU(), {"color": BLACK, "linewidth": 6, "alpha": 0.18}),
    "GIoU": (GIoU(), {"color": BLUE, "linewidth": 3.2, "alpha": 0.55}),
    "DIoU": (DIoU(), {"color": ORANGE, "linewidth": 1.8}),
    "CIoU": (CIoU(), {"color": BLACK, "linewidth": 1, "linestyle": (0, (4, 3))}),
    "EIoU": (EIoU(), {"color": GREEN, "linewidth": 1.6}),
    "SIoU": (SIoU(), {"color": PINK, "linewidth": 1.6, "linestyle": "-."}),
    "PIoU": (PIoU(), {"color": SKY, "linewidth": 1.6, "linestyle": ":"}),
}
"""Losses drawn over each other, the broadest line first, so that equal ones stay visible."""

FIELDS: dict[str, Loss] = {
    "IoU": IoU(),
    "GIoU": GIoU(),
    "DIoU and CIoU": DIoU(),
    "EIoU": EIoU(),
    "SIoU": SIoU(),
    "WIoU v1": WIoU(),
    "MPDIoU": MPDIoU(),
    "PIoU": PIoU(),
    "PIoU v2": PIoUv2(),
    "NWD": NWD(),
    "Bounded IoU": BoundedIoU(),
    "Focal-EIoU": FocalEIoU(),
}

ORIENTED: dict[str, Loss] = {
    "IoU": IoU(),
    "GIoU": GIoU(),
    "ProbIoU": ProbIoU(),
    "GWD": GWD(),
    "KLD": KLD(),
    "BCD": BCD(),
    "KFIoU": KFIoU(),
}


for _loss in defaults(GIoU()):
    _shown = ORIENTED if not _loss.axis_aligned else SLIDING
    if type(_loss) not in map(type, _shown.values()) and not isinstance(_loss, Focal):
        _shown[type(_loss).title] = _loss


def slide() -> Figure:
    """Each loss and its slope as a box of the target's size slides along x."""
    figure, panels = _panels(len(SLIDING), 6, 1.7)
    x = np.linspace(-2, 5, 700)
    for axes, (title, loss) in zip(panels, SLIDING.items(), strict=True):
        value, gradient = evaluate(loss, x, 0, 1, 1)
        _panel(axes, x, value, gradient[0])
        axes.set_title(title, pad=3)
        axes.set(xticks=(-1, 0, 1, 3, 5))
    figure.supxlabel("offset of the centers, in sides of the target", fontsize=8)
    _legend(figure, *_panel_handles())
    return figure


def nested() -> Figure:
    """A box of half the target's sides slides through it, and grows inside it."""
    figure, (loss, slope, growth) = pyplot.subplots(1, 3, figsize=(9.6, 3.3))
    x = np.linspace(-1.2, 1.2, 480)
    size = np.linspace(0.02, 1, 200)
    for name, (spec, line) in LINES.items():
        value, gradient = evaluate(spec, x, 0, 0.5, 0.5)
        loss.plot(x, value, label=name, **line)
        slope.plot(x, gradient[0], **line)
        growth.plot(size, evaluate(spec, 0, 0, size, size)[0], **line)
    for axes in (loss, slope):
        for edge in (-0.25, 0.25):
            axes.axvline(edge, color=BLACK, linewidth=0.6, linestyle=":")
        axes.set_xlabel("offset of the centers; dotted: inside the target")
    loss.set_title("a box of half the sides slides through: loss")
    slope.set_title("its slope along the way")
    growth.set_title("a box grows about the target's center: loss")
    growth.set_xlabel("its sides")
    _legend(figure, *loss.get_lines()[: len(LINES)])
    return figure


def proportional() -> Figure:
    """Boxes about the target's center: of its proportions, and of its area."""
    figure, (loss, slope, shape) = pyplot.subplots(1, 3, figsize=(9.6, 3.3))
    scale = np.geomspace(0.2, 3, 300)
    aspect = np.geomspace(1 / 8, 8, 301)
    for name, (spec, line) in LINES.items():
        value, gradient = evaluate(spec, 0, 0, 2 * scale, scale, target=(2, 1))
        loss.plot(scale, value, label=name, **line)
        for part in (scale < 1, scale > 1):
            slope.plot(scale[part], (2 * gradient[2] + gradient[3])[part], **line)
        shape.plot(aspect, evaluate(spec, 0, 0, np.sqrt(aspect), 1 / np.sqrt(aspect))[0], **line)
    loss.set_title("the target's proportions: loss")
    slope.set_title("its slope as the scale grows")
    for axes in (loss, slope):
        axes.set_xlabel("scale of the prediction")
    shape.set_title("the target's area: loss")
    shape.set(xscale="log", xticks=(1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8), xlabel="width / height; the target's is 1")
    shape.set_xticklabels(["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    shape.minorticks_off()
    _legend(figure, *loss.get_lines()[: len(LINES)])
    return figure


def field() -> Figure:
    """Where descent moves the center of a square around a target twice as wide."""
    figure, panels = _panels(len(FIELDS), 4, 2.2)
    x, y = np.meshgrid(np.linspace(-3.75, 3.75, 16), np.linspace(-2.75, 2.75, 12))
    for axes, (title, loss) in zip(panels, FIELDS.items(), strict=True):
        _, gradient = evaluate(loss, x, y, 1, 1, target=(2, 1))
        size = np.hypot(gradient[0], gradient[1])
        pulls = size >= FLAT / 10
        strength = np.clip((np.log10(size[pulls]) + 3) / 3, 0, 1)
        away = (gradient[0] * x + gradient[1] * y)[pulls] < 0
        colors = np.where(away[:, None], matplotlib.colors.to_rgb(ORANGE), matplotlib.colors.to_rgb(BLUE))
        axes.quiver(
            x[pulls],
            y[pulls],
            -gradient[0][pulls] / size[pulls],
            -gradient[1][pulls] / size[pulls],
            color=1 - (1 - colors) * (0.25 + 0.75 * strength[:, None]),
            scale=20,
            width=0.008,
            headwidth=4,
            pivot="middle",
        )
        axes.plot(x[~pulls], y[~pulls], ".", color="#AAAAAA", markersize=2)
        axes.add_patch(Rectangle((-1, -0.5), 2, 1, fill=False, edgecolor=BLACK, linewidth=1))
        axes.set_title(title, pad=3)
        axes.set_axis_off()
        axes.set(aspect="equal", xlim=(-4.2, 4.2), ylim=(-3.2, 3.2))
    _legend(
        figure,
        Line2D([], [], color=BLUE, marker=r"$\rightarrow$", markersize=11, linewidth=0, label="descent; pale: weak"),
        Line2D([], [], color=ORANGE, marker=r"$\rightarrow$", markersize=11, linewidth=0, label="leads away"),
        Line2D([], [], color="#AAAAAA", marker=".", linewidth=0, label="no pull"),
        Patch(facecolor="none", edgecolor=BLACK, label="target"),
    )
    return figure


def oriented() -> Figure:
    """Losses of oriented boxes as a box turns about the target's center, or slides along its long side."""
    figure, grid = pyplot.subplots(3, len(ORIENTED), figsize=(9.6, 5.2), sharey=True)
    x = np.linspace(-2, 8, 500)
    for column, (title, loss) in enumerate(ORIENTED.items()):
        for axes, width, limit in zip(grid[:2, column], (4, 1), (90, 45), strict=True):
            degrees = np.linspace(-limit, limit, 360)
            value, gradient = evaluate_oriented(loss, 0, np.radians(degrees), (width, 1))
            _panel(axes, degrees, value, gradient[1])
            axes.set(xticks=(-limit, 0, limit), xlabel="degrees")
        value, gradient = evaluate_oriented(loss, x, 0, (4, 1))
        _panel(grid[2, column], x, value, gradient[0])
        grid[2, column].set(xticks=(0, 4, 8), xlabel="short sides")
        grid[0, column].set_title(title, pad=3)
    for axes, label in zip(grid[:, 0], ("4 : 1 turns", "square turns", "4 : 1 slides"), strict=True):
        axes.set_ylabel(label)
    _legend(figure, *_panel_handles())
    return figure


def _panels(count: int, columns: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A grid with room for so many panels, each so many inches high."""
    rows = math.ceil(count / columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(9.6, rows * height), sharex=True, sharey=True, squeeze=False)
    for spare in grid.flat[count:]:
        spare.set_axis_off()
    return figure, list(grid.flat[:count])


def evaluate(
    loss: Loss, x: ArrayLike, y: ArrayLike, width: ArrayLike, height: ArrayLike, target: Sequence[float] = (1, 1)
) -> tuple[Array, Array]:
    """Losses of boxes given by center and sides, against a target around the origin; gradients in the same four."""
    planes = np.broadcast_arrays(*(np.asarray(each, dtype=np.float64) for each in (x, y, width, height)))
    boxes = torch.from_numpy(np.stack(planes)).requires_grad_()
    pairs = boxes.reshape(4, -1)
    targets = torch.tensor([0, 0, *target], dtype=torch.float64)[:, None].expand_as(pairs)
    values = losses.box_loss(_corners(pairs), _corners(targets), loss, image_size=IMAGE_SIZE, running_mean=RUNNING_MEAN)
    (gradient,) = torch.autograd.grad(values.sum(), boxes)
    return values.detach().numpy().reshape(planes[0].shape), gradient.numpy()


def evaluate_oriented(loss: Loss, x: ArrayLike, angle: ArrayLike, sides: tuple[float, float]) -> tuple[Array, Array]:
    """Losses of boxes moved along x and turned, against one like them; gradients in both."""
    planes = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(angle, dtype=np.float64))
    moves = torch.from_numpy(np.stack(planes)).requires_grad_()
    zero = torch.zeros_like(moves[0])
    width, height = (zero + side * SIDE for side in sides)
    target = rectangle_corners(torch.stack([zero, zero, width, height, zero]))
    prediction = rectangle_corners(torch.stack([moves[0] * SIDE, zero, width, height, moves[1]]))
    values = losses.evaluate(losses.OrientedGeometry(prediction, target), loss)
    (gradient,) = torch.autograd.grad(values.sum(), moves)
    return values.detach().numpy(), gradient.numpy()


def _corners(boxes: Tensor) -> Tensor:
    x, y, width, height = boxes * SIDE
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)


def _panel(axes: Axes, x: Array, value: Array, slope: Array) -> None:
    """Loss and size of its slope as shares of their largest; shades where it is flat or falls away from 0."""
    beside = np.abs(x) > (x[-1] - x[0]) / 50
    flat = (np.abs(slope) < FLAT) & (beside | (value.max() < FLAT))
    axes.fill_between(x, 0, 1.05, where=flat, color=FLAT_SHADE, linewidth=0)
    axes.fill_between(x, 0, 1.05, where=slope * np.sign(x) < -FLAT, color=WRONG_SHADE, linewidth=0)
    axes.plot(x, _share(np.abs(slope)), color=ORANGE, linewidth=1, linestyle="--")
    axes.plot(x, _share(value), color=BLUE, linewidth=1.6)
    axes.set(ylim=(0, 1.05), yticks=(0, 1), xlim=(x[0], x[-1]))


def _share(values: Array) -> Array:
    largest = values.max()
    return values / largest if largest > 1e-6 else np.zeros_like(values)


def _panel_handles() -> tuple[Line2D | Patch, ...]:
    return (
        Line2D([], [], color=BLUE, linewidth=1.6, label="loss"),
        Line2D([], [], color=ORANGE, linewidth=1, linestyle="--", label="size of its slope"),
        Patch(color=FLAT_SHADE, label="flat"),
        Patch(color=WRONG_SHADE, label="descent leads away"),
    )


def _legend(figure: Figure, *handles: Line2D | Patch) -> None:
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)


PICTURES: tuple[Callable[[], Figure], ...] = (slide, nested, proportional, field, oriented)


def draw(folder: Path) -> None:
    """Writes all pictures into a folder."""
    matplotlib.use("agg")
    matplotlib.rcdefaults()
    pyplot.rcParams.update(
        {
            "axes.edgecolor": BLACK,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 8,
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "font.size": 8,
        }
    )
    for picture in PICTURES:
        figure = picture()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        pyplot.close(figure)
        # A palette of 128 colors is a third as large.
        Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
            folder / f"{picture.__name__}.png", optimize=True
        )


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "pictures")
