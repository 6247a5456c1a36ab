"""Gradient descent of boxes onto their targets, by the paper's rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from examples.simulation.cases import PER_POINT, cases_at, centered, written
from examples.simulation.gradients import Gradients, Source

from boxloss.contract.arrays import Array
from boxloss.contract.words import BoxFormat
from boxloss.losses import Loss

ITERATIONS = 200
STEP = 0.1
_POINTS_AT_ONCE = 2**16 // PER_POINT
"""Cases of so many points descend together, so that memory does not grow with their number."""


@dataclass(frozen=True)
class Descent:
    """What became of all cases under one loss. An error is the sum of the absolute differences of the center, width
    and height, in units of the targets' size.

    Attributes:
        curve: mean error before the first iteration and after each, shape (iterations + 1,).
        final: error of each case after the last, shape (cases,).
    """

    curve: Array
    final: Array


def descend(
    source: Source,
    loss: Loss,
    points: Array,
    iterations: int = ITERATIONS,
    coordinates: BoxFormat = "cxcywh",
    progressed: Callable[[int], None] = lambda cases: None,
) -> Descent:
    """Moves the anchors of all points by a loss.

    Args:
        source: of the gradients.
        loss: to descend.
        points: where the anchors are, shape (P, 2).
        iterations: how often each box is moved.
        coordinates: the numbers of a box that are moved: "cxcywh" as in the paper, or "xyxy".
        progressed: called with a number of cases, each time that these have been moved once.
    """
    curve, final = np.zeros(iterations + 1), []
    for start in range(0, len(points), _POINTS_AT_ONCE):
        anchors, targets = cases_at(points[start : start + _POINTS_AT_ONCE])
        for iteration, error in enumerate(
            _errors(source(loss, coordinates), anchors, targets, iterations, coordinates)
        ):
            curve[iteration] += error.sum()
            progressed(len(error) if iteration else 0)
        final.append(error)
    joined = np.concatenate(final)
    return Descent(curve / len(joined), joined)


def _errors(
    gradients: Gradients, anchors: Array, targets: Array, iterations: int, coordinates: BoxFormat
) -> Iterator[Array]:
    """The error of each case, before the first iteration and after each."""
    boxes, goals = written(anchors, coordinates), written(targets, coordinates)
    yield _distance(anchors, targets)
    for iteration in range(iterations):
        iou, gradient = gradients(boxes, goals)
        step = STEP * _decay(iteration / iterations) * (2 - iou)
        boxes = _upright(boxes - step[:, None] * gradient, coordinates)
        yield _distance(centered(boxes, coordinates), targets)


def _decay(progress: float) -> float:
    """The step's factor after a share of the iterations."""
    return 0.01 if progress >= 0.9 else 0.1 if progress >= 0.8 else 1.0


def _upright(boxes: Array, coordinates: BoxFormat) -> Array:
    """The boxes, with sides that a step has made negative set to 0."""
    if coordinates == "cxcywh":
        return np.hstack([boxes[:, :2], boxes[:, 2:].clip(min=0)])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.hstack([np.minimum(boxes[:, :2], middle), np.maximum(boxes[:, 2:], middle)])


def _distance(boxes: Array, targets: Array) -> Array:
    distance: Array = np.abs(boxes - targets).sum(axis=1)
    return distance
