"""What the engine is given and gives back, as numpy arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxloss.contract.words import BoxFormat, Reduction
from boxloss.losses import Loss

Precision = Literal["float32", "float64"]
Array = NDArray[np.floating]
Rows = NDArray[np.int64]

NO_ROWS: Rows = np.empty(0, np.int64)


@dataclass(frozen=True)
class Evaluation:
    """What is computed for pairs of boxes; requests with equal evaluations share a batch."""

    losses: tuple[Loss, ...]
    box_format: BoxFormat
    precision: Precision
    prediction_gradients: bool
    target_gradients: bool
    similarities: bool = False
    crowds: bool = False

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Computed once: every request is looked up by it several times."""
        return hash((self.losses, self.box_format, self.precision, self.prediction_gradients, self.target_gradients))

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """What is needed besides the boxes, of "crowd", "image_size" and "running_mean", in this order."""
        crowd = {"crowd"} if self.crowds else set()
        return tuple(sorted(crowd.union(*(loss.needed for loss in self.losses))))


@dataclass(frozen=True)
class Matrix:
    """What is computed between two sets of boxes."""

    metric: Loss
    box_format: BoxFormat
    precision: Precision


class Pairs(NamedTuple):
    """The boxes of one request: rows of shape (N, K).

    Rows named in `masked` may hold anything; they never reach the computation. Where others are no valid boxes, the
    request fails, and harms no other.
    """

    predictions: Array
    targets: Array
    masked: Rows = NO_ROWS
    weights: Array | None = None
    reduction: Reduction = "none"
    squared_image_diagonal: float = math.nan
    running_mean: float = math.nan
    crowd: NDArray[np.bool_] | None = None
    """Pairs whose IoU is the intersection over the area of the prediction."""


class Grid(NamedTuple):
    """Two sets of boxes of one request, all of one with all of the other."""

    rows: Array
    columns: Array
    masked_rows: Rows = NO_ROWS
    masked_columns: Rows = NO_ROWS
    crowd: NDArray[np.bool_] | None = None
    """Columns whose metric is the intersection over the area of the row's box."""
    squared_image_diagonal: float = math.nan


class Score(NamedTuple):
    """One loss over one request's pairs: (N,) or, reduced, (); gradients in the shape and format of the boxes."""

    loss: Array
    prediction_gradient: Array | None
    target_gradient: Array | None
    running_mean: float | None
    """For the next request, where the loss needs one."""


class Scores(NamedTuple):
    """All losses over one request's pairs, and their IoU of shape (N,)."""

    scores: list[Score]
    iou: Array
