"""The detector: a few convolutions, and for each cell of a grid an object's box and class, or none."""

from __future__ import annotations

from typing import NamedTuple

import torch
from examples.detector.pictures import CLASSES, SIDE
from torch import Tensor, nn

STRIDE = 8
"""Pixels of a cell's sides."""


_RARE = -2.0
"""The first logit of objectness: most cells have no object, and need not learn that."""


class Predictions(NamedTuple):
    """What is predicted for each of C cells in each of B pictures.

    Attributes:
        objectness: logits of there being an object, of shape (B, C).
        classes: logits of its class, of shape (B, C, len(CLASSES)).
        boxes: left, top, right, bottom in pixels, never inverted, of shape (B, C, 4).
    """

    objectness: Tensor
    classes: Tensor
    boxes: Tensor


class Detector(nn.Module):
    """A one-stage detector without anchors: a cell says how far the edges of its object's box are from its center."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 16, stride=2),
            *_convolution(16, 32, stride=2),
            *_convolution(32, 64, stride=2),
            *_convolution(64, 64),
            *_convolution(64, 64),
            *_convolution(64, 64),
        )
        self.head = nn.Conv2d(64, 1 + len(CLASSES) + 4, kernel_size=1)
        with torch.no_grad():
            self.head.bias[0] = _RARE  # type: ignore[index]

    def forward(self, pixels: Tensor) -> Predictions:
        """Predicts for pictures of shape (B, 3, SIDE, SIDE)."""
        cells = self.head(self.features(pixels - 0.5)).flatten(2).transpose(1, 2)
        distances = STRIDE * nn.functional.softplus(cells[..., -4:])
        centers = cell_centers().to(pixels)
        boxes = torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=2)
        return Predictions(cells[..., 0], cells[..., 1:-4], boxes)


def cell_centers() -> Tensor:
    """X and y of the cells' centers in pixels, row by row, of shape (C, 2)."""
    middles = torch.arange(STRIDE / 2, SIDE, STRIDE)
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )
