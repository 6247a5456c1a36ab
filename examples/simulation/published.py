"""Why the paper's figures show another order: the gradients of its authors' program, one departure at a time.

That program does not differentiate the losses exactly. Here the gradients of IoU, GIoU, DIoU and CIoU are written out,
each departure of the program can be made by itself, and without any they are those of boxloss. Run it with
`python -m examples.simulation.published`.

The program is "simulation experiment" in github.com/Zzh-tju/DIoU, revision 391f42d. This says what it computes in words
of its own; none of it is copied.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
import typer
from examples.simulation.cases import PER_POINT, scatter
from examples.simulation.descent import ITERATIONS, descend
from examples.simulation.gradients import Gradients, Source
from examples.simulation.plots import draw_published
from examples.simulation.results import OFF, Result, Setting, stored, write_tables
from rich import box
from rich.console import Console
from rich.table import Table

from boxloss.contract.arrays import Array
from boxloss.contract.words import BoxFormat
from boxloss.losses import CIoU, DIoU, GIoU, IoU, Loss

Departure: TypeAlias = Literal["overlaps", "sides", "sign", "mixed", "shrink", "aspect"]

DEPARTURES: dict[Departure, str] = {
    "overlaps": "GIoU: of boxes apart, the intersection is the product of their negative overlaps, not 0",
    "sides": "IoU and GIoU: derivatives in width and height are twice what they are: the factor 1/2 is missing",
    "sign": "DIoU and CIoU: the change of the enclosing diagonal with the center has the opposite sign",
    "mixed": "DIoU and CIoU: that change, of one of its sides, is counted for both sides",
    "shrink": "DIoU and CIoU: a box wider than its target at both ends widens the diagonal by -1, not by 1; so heights",
    "aspect": "CIoU: the derivatives of the aspect term lack the factor 1 / (w^2 + h^2)",
}

PUBLISHED: dict[Loss, tuple[Departure, ...]] = {
    IoU(): ("sides",),
    GIoU(): ("overlaps", "sides"),
    DIoU(): ("sides", "sign", "mixed", "shrink"),
    CIoU(): ("sides", "sign", "mixed", "shrink", "aspect"),
}
"""The departures that the program makes in each loss."""


_OUTWARDS = np.array([-1.0, 1.0])[:, None, None]
"""By how much a side grows with its near edge and with its far one."""


def program(departures: Collection[Departure] = ()) -> Source:
    """Gradients with departures, in the program's coordinates: center and sides."""
    return partial(_gradients, departures)


def _gradients(departures: Collection[Departure], loss: Loss, box_format: BoxFormat) -> Gradients:
    if loss not in PUBLISHED or box_format != "cxcywh":
        raise ValueError(f"the program moves center and sides, by {', '.join(each.title for each in PUBLISHED)}")

    def gradients(boxes: Array, targets: Array) -> tuple[Array, Array]:
        pairs = _Pairs(boxes, targets, departures)
        edges = pairs.iou_slopes
        if isinstance(loss, GIoU):
            edges = edges + pairs.covered_slopes
        ascent = np.hstack([edges[0] + edges[1], (edges[1] - edges[0]) * (1.0 if "sides" in departures else 0.5)])
        if isinstance(loss, DIoU | CIoU):
            ascent -= pairs.distance_slopes
        if isinstance(loss, CIoU):
            ascent[:, 2:] -= pairs.aspect_slopes
        return pairs.iou, -ascent

    return gradients


class _Pairs:
    """Pairs of boxes and the derivatives of what losses consist of.

    Arrays have a column for x and one for y. Derivatives in edges have two layers: the near edges (left, top) and the
    far ones (right, bottom); others have the four columns of the boxes.
    """

    def __init__(self, boxes: Array, targets: Array, departures: Collection[Departure]) -> None:
        self._departures = departures
        self._offset = boxes[:, :2] - targets[:, :2]
        self._sides, self._target_sides = boxes[:, 2:], targets[:, 2:]
        near, far = boxes[:, :2] - self._sides / 2, boxes[:, :2] + self._sides / 2
        target_near, target_far = targets[:, :2] - self._target_sides / 2, targets[:, :2] + self._target_sides / 2
        overlaps = np.minimum(far, target_far) - np.maximum(near, target_near)  # Negative across a gap.
        self._meets = (overlaps > 0).all(axis=1, keepdims=True)
        self._product = _area(overlaps)
        self._product_slopes = _OUTWARDS * np.stack([near > target_near, far < target_far]) * _other(overlaps)
        self._areas = _area(self._sides) + _area(self._target_sides)
        self._area_slopes = _OUTWARDS * _other(self._sides)
        self._intersection = np.where(self._meets, self._product, 0)
        self._union = self._areas - self._intersection
        self._enclosing = np.maximum(far, target_far) - np.minimum(near, target_near)
        self._enclosing_slopes = _OUTWARDS * np.stack([near < target_near, far > target_far])

    @property
    def iou(self) -> Array:
        """Intersection over union."""
        iou: Array = (self._intersection / self._union)[:, 0]
        return iou

    @property
    def iou_slopes(self) -> Array:
        """Of the IoU, in the edges."""
        union_slopes = self._area_slopes - self._product_slopes
        numerator = self._union * self._product_slopes - self._intersection * union_slopes
        slopes: Array = np.where(self._meets, numerator / self._union**2, 0)
        return slopes

    @property
    def covered_slopes(self) -> Array:
        """Of U / C, the share of the enclosing box that is covered, in the edges."""
        counted = self._meets | ("overlaps" in self._departures)
        union = self._areas - np.where(counted, self._product, 0)
        union_slopes = self._area_slopes - np.where(counted, self._product_slopes, 0)
        enclosing, enclosing_slopes = _area(self._enclosing), self._enclosing_slopes * _other(self._enclosing)
        return (enclosing * union_slopes - union * enclosing_slopes) / enclosing**2

    @property
    def distance_slopes(self) -> Array:
        """Of DIoU's penalty, the squared distance of the centers over the squared diagonal of the enclosing box."""
        near, far = self._enclosing_slopes
        in_center, in_sides = near + far, (far - near) / 2
        own, other = 2 * self._enclosing, 2 * _other(self._enclosing) * ("mixed" in self._departures)
        center = (own + other) * in_center * (-1 if "sign" in self._departures else 1)
        turned = (in_sides == 1) & ("shrink" in self._departures)
        sides = own * np.where(turned, -1, in_sides) + other * in_sides
        squared_diagonal = (self._enclosing**2).sum(axis=1, keepdims=True)
        squared_distance = (self._offset**2).sum(axis=1, keepdims=True)
        nearer = np.hstack([2 * self._offset, np.zeros_like(self._offset)]) / squared_diagonal
        slopes: Array = nearer - np.hstack([center, sides]) * squared_distance / squared_diagonal**2
        return slopes

    @property
    def aspect_slopes(self) -> Array:
        """Of CIoU's alpha v, with alpha constant, in width and height."""
        (width, height), (target_width, target_height) = self._sides.T, self._target_sides.T
        difference = np.arctan2(target_width, target_height) - np.arctan2(width, height)
        v = 4 / math.pi**2 * difference**2
        whole = 1 - self.iou + v
        alpha = np.divide(v, whole, out=np.zeros_like(v), where=whole > 0)
        divisor = 1.0 if "aspect" in self._departures else width**2 + height**2
        factor = 8 / math.pi**2 * alpha * difference / divisor
        return np.column_stack([-factor * height, factor * width])


def _area(sides: Array) -> Array:
    area: Array = sides.prod(axis=1, keepdims=True)
    return area


def _other(sides: Array) -> Array:
    """Of each side, the other one."""
    return sides[:, ::-1]


def main(
    points: Annotated[int, typer.Option(min=1, help=f"Points with anchors; each has {PER_POINT} cases.")] = 500,
    iterations: Annotated[int, typer.Option(min=1, help="How often each box is moved.")] = ITERATIONS,
    output: Annotated[Path, typer.Option(metavar="FOLDER", file_okay=False, help="For the results.")] = Path(
        "build/simulation/published"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the points.")] = 0,
) -> None:
    """Descends the paper's losses with the departures of its program: none, each alone, and all."""
    output.mkdir(parents=True, exist_ok=True)
    table = Table("loss", "departures", "a quarter", "80%", "all iterations", f"above {OFF:g}", box=box.SIMPLE_HEAD)
    places = scatter(points, seed)
    for loss, made in PUBLISHED.items():
        for departures in dict.fromkeys([(), *((each,) for each in made), made]):
            descent = descend(program(departures), loss, places, iterations)
            name = " ".join([loss.name, *departures])
            result = Result.of(Setting(name, "cxcywh", points, iterations, seed), "process", descent)
            result.save(output)
            errors = (result.curve[iterations // 4], result.curve[iterations * 4 // 5], result.mean)
            table.add_row(loss.title, ", ".join(departures), *(f"{each:.4f}" for each in errors), f"{result.off:.2%}")
    results = stored(output)
    write_tables(results, output)
    draw_published(results, output)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    typer.run(main)
