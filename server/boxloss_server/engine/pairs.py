"""What the engine is given and gives back, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from boxloss.losses import Loss, PenaltyLoss

Precision = Literal["float32", "float64"]
BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
Reduction = Literal["none", "mean", "sum"]
Array = NDArray[np.floating]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """What is computed for pairs of boxes; requests with equal evaluations share a batch."""

    losses: tuple[Loss, ...]
    precision: Precision
    prediction_gradients: bool
    target_gradients: bool


@dataclass(frozen=True)
class Matrix:
    """What is computed between two sets of boxes."""

    metric: PenaltyLoss
    precision: Precision


@dataclass(frozen=True)
class Pairs:
    """The boxes of one request: rows of four finite numbers in `box_format`.

    Rows named in `masked` may hold anything; they never reach the computation.
    """

    predictions: Array
    targets: Array
    box_format: BoxFormat
    masked: Rows
    weights: Array | None
    reduction: Reduction

    def __len__(self) -> int:
        return len(self.predictions)


@dataclass(frozen=True)
class Grid:
    """Two sets of boxes of one request, likewise."""

    rows: Array
    columns: Array
    box_format: BoxFormat
    masked_rows: Rows
    masked_columns: Rows


@dataclass(frozen=True)
class Score:
    """One loss over one request's pairs: (N,) or, reduced, (); gradients (N, 4) in the request's format."""

    loss: Array
    prediction_gradient: Array | None
    target_gradient: Array | None


@dataclass(frozen=True)
class Scores:
    """All losses over one request's pairs, and their IoU of shape (N,)."""

    scores: list[Score]
    iou: Array
