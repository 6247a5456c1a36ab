"""The losses of pairs, with what some of them need besides boxes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxloss.calls.client import Client
from boxloss.compare.frame import framed_gradient
from boxloss.compare.pairs import Pairs, Rows
from boxloss.contract.arrays import Array
from boxloss.losses import IoU, Loss

_LEAST_MEAN = 1e-3
"""Running mean of 1 - IoU where all pairs are all but identical."""
_IMAGE = (0.6, 0.8)
"""An image whose diagonal is 1."""


class Scores(NamedTuple):
    """A loss over pairs.

    Attributes:
        loss: of shape (N,).
        gradient: in the labels' frames, of shape (N, 4); see `boxloss.compare.frame`.
        iou: of shape (N,).
    """

    loss: Array
    gradient: Array
    iou: Array


class Evaluation:
    """Evaluates losses over pairs, through one client."""

    def __init__(self, client: Client, pairs: Pairs) -> None:
        self._client, self._pairs = client, pairs
        iou = client.evaluate(pairs.predictions, pairs.targets, IoU()).iou
        self._running_mean = float(np.clip(1 - iou.mean(), _LEAST_MEAN, 1))

    def lacks(self, loss: Loss) -> bool:
        """Whether the loss needs the sizes of images, and some are not known."""
        return "image_size" in loss.needed and bool(np.isnan(self._pairs.diagonals).any())

    def __call__(self, loss: Loss, predictions: Array | None = None, rows: Rows | None = None) -> Scores:
        """Evaluates a loss.

        Args:
            loss: what to compute.
            predictions: other boxes in place of those of the pairs.
            rows: of the pairs whose labels these boxes belong to; by default those of all.

        Raises:
            BoxlossError: the server could not compute.
        """
        rows = np.arange(len(self._pairs)) if rows is None else rows
        predictions = self._pairs.predictions[rows] if predictions is None else predictions
        targets = self._pairs.targets[rows]
        sized = "image_size" in loss.needed
        # A call has one image size. Such losses see its diagonal alone, and not the unit of length: so each image's
        # diagonal becomes the unit, and one call serves images of all sizes.
        unit = self._pairs.diagonals[rows][:, None] if sized else np.ones((len(rows), 1))
        result = self._client.evaluate(
            predictions / unit,
            targets / unit,
            loss,
            gradients=True,
            image_size=_IMAGE if sized else None,
            running_mean=self._running_mean if "running_mean" in loss.needed else None,
        )
        assert result.gradient is not None
        return Scores(result.loss, framed_gradient(result.gradient / unit, targets), result.iou)
