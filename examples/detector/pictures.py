"""Pictures of a few shapes, with their boxes and classes; the same seed draws the same pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIDE = 64
"""Pixels of a picture's sides."""
CLASSES = ("rectangle", "ellipse", "triangle")
MOST = 4
"""Shapes in a picture; there is always one."""
LEAST_SIDE, MOST_SIDE = 11, 28
"""Pixels of a box's sides."""
NOISE = 0.06
"""Every channel of a pixel is off by at most this."""
CONTRAST = 0.3
"""A shape differs from the ground by at least this in some channel."""
_TRIES = 40
"""Places that are tried for the shapes of a picture."""


@dataclass(frozen=True)
class Picture:
    """A picture and what is in it.

    Attributes:
        pixels: red, green and blue between 0 and 1, of shape (3, SIDE, SIDE).
        boxes: as left, top, right, bottom, of shape (N, 4): the edges of the pixels drawn. No two boxes overlap.
        classes: indices of `CLASSES`, of shape (N,).
    """

    pixels: Tensor
    boxes: Tensor
    classes: Tensor


def pictures(seed: tuple[int, ...]) -> Iterator[Picture]:
    """Draws pictures without end.

    Args:
        seed: whole numbers from 0 up; other numbers draw other pictures.
    """
    rng = np.random.default_rng(seed)
    while True:
        yield _draw(rng)


def _draw(rng: np.random.Generator) -> Picture:
    ground = rng.uniform(0.1, 0.9, 3)
    pixels = np.broadcast_to(ground[:, None, None], (3, SIDE, SIDE)).copy()
    boxes = _place(rng)
    classes = rng.integers(len(CLASSES), size=len(boxes))
    for box, number in zip(boxes, classes, strict=True):
        left, top, right, bottom = box
        shape = _shape(CLASSES[number], right - left, bottom - top, rng)
        pixels[:, top:bottom, left:right][:, shape] = _color(rng, ground)[:, None]
    pixels += rng.uniform(-NOISE, NOISE, pixels.shape)
    return Picture(
        torch.from_numpy(pixels.clip(0, 1).astype(np.float32)),
        torch.from_numpy(boxes.astype(np.float32)),
        torch.from_numpy(classes),
    )


def _place(rng: np.random.Generator) -> NDArray[np.int64]:
    """Boxes apart from each other; fewer than wanted where they find no place."""
    wanted = rng.integers(1, MOST, endpoint=True)
    placed: list[NDArray[np.int64]] = []
    for _ in range(_TRIES):
        size = rng.integers(LEAST_SIDE, MOST_SIDE, size=2, endpoint=True)
        corner = rng.integers(SIDE - size, endpoint=True)
        box = np.concatenate([corner, corner + size])
        if all((box[2:] < other[:2]).any() or (other[2:] < box[:2]).any() for other in placed):
            placed.append(box)
        if len(placed) == wanted:
            break
    return np.stack(placed)


def _shape(name: str, width: int, height: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which pixels of its box a shape fills. It touches all four edges."""
    # Of each pixel's center, -1 and 1 being the centers of the outermost pixels.
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    if name == "ellipse":
        return (x * (1 - 1 / width)) ** 2 + (y * (1 - 1 / height)) ** 2 <= 1
    if name == "triangle":
        apex, share = rng.uniform(-0.8, 0.8), (1 + y) / 2
        half = 1 / (width - 1)  # Half a pixel on either side: its tip has one.
        return (x >= apex - (apex + 1) * share - half) & (x <= apex + (1 - apex) * share + half)
    return np.ones((height, width), bool)


def _color(rng: np.random.Generator, ground: NDArray[np.float64]) -> NDArray[np.float64]:
    while True:
        color = rng.uniform(0, 1, 3)
        if np.abs(color - ground).max() >= CONTRAST:
            return color
