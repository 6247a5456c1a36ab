"""Which cell is to predict which object."""

from __future__ import annotations

from typing import NamedTuple

import torch
from examples.detector.model import STRIDE, cell_centers
from torch import Tensor


class Targets(NamedTuple):
    """What each of C cells is to predict, in one picture or, with a dimension more, in several.

    Attributes:
        positive: whether there is an object, of shape (C,).
        classes: its class, of shape (C,); 0 where there is none.
        boxes: its box, of shape (C, 4); zeros where there is none.
    """

    positive: Tensor
    classes: Tensor
    boxes: Tensor


def assign(boxes: Tensor, classes: Tensor) -> Targets:
    """Gives each object the cells whose centers lie in the middle half of its box, and the cell around its own center.

    Where several objects ask for a cell, the smallest has it.

    Args:
        boxes: left, top, right, bottom in pixels, of shape (N, 4), N of 1 or more.
        classes: of shape (N,).
    """
    middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = (cell_centers()[:, None] - middles).abs()
    wanted = (offsets <= torch.maximum(sides / 4, torch.tensor(STRIDE / 2))).all(dim=2)
    areas = sides.prod(dim=1)
    owner = torch.where(wanted, areas, torch.inf).argmin(dim=1)
    positive = wanted.any(dim=1)
    return Targets(positive, classes[owner] * positive, boxes[owner] * positive[:, None])
