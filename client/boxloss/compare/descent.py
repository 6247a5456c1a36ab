"""What gradient descent under a loss makes of the predictions: how soon they reach their labels.

Each box moves on its own, in its label's frame, as in the simulations of Zheng et al., Distance-IoU Loss, AAAI 2020.
Losses have different scales, as their weights do in training. So every loss takes the rates at which its median first
step is a given length, and the best of them counts; rates fall linearly to 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxloss.compare.evaluation import Evaluation
from boxloss.compare.frame import framed, unframed
from boxloss.compare.pairs import Pairs, Rows
from boxloss.contract.arrays import Array
from boxloss.losses import Loss

STEPS = 30
RATES = (0.01, 0.03, 0.1, 0.3)
"""Median first steps, in sides of the label."""
LONGEST = 0.25
"""Of a step, in sides: detectors clip gradients."""
PAIRS = 2000
"""Most that descend."""

_NARROWEST = 0.01


class Descent(NamedTuple):
    """Of the pairs under one loss.

    Attributes:
        path: mean IoU before the first step and after each, at the best rate.
        rate: that one, of `RATES`; NaN where there is no gradient.
    """

    path: Array
    rate: float

    @property
    def on_the_way(self) -> float:
        """The mean over all steps: higher the sooner the boxes arrive, and the closer they get."""
        return float(self.path[1:].mean())

    @property
    def end(self) -> float:
        """Mean IoU after the last step."""
        return float(self.path[-1])


def chosen(iou: Array) -> Rows:
    """The rows that descend: all, or `PAIRS` at even distances in the order of their IoU."""
    order = np.argsort(iou, kind="stable")
    places = np.linspace(0, len(iou) - 1, min(len(iou), PAIRS)).round().astype(int)
    return np.sort(order[places])


def descend(evaluate: Evaluation, pairs: Pairs, rows: Rows, loss: Loss) -> Descent:
    """Descends from predictions towards labels, at all rates at once.

    Args:
        evaluate: computes the gradients.
        pairs: where boxes start, and where they should end.
        rows: of the pairs that take part.
        loss: to descend under.

    Raises:
        BoxlossError: the server could not compute.
    """
    targets = np.tile(pairs.targets[rows], (len(RATES), 1))
    everyone = np.tile(rows, len(RATES))
    boxes = np.tile(framed(pairs.predictions[rows], pairs.targets[rows]), (len(RATES), 1))
    path = []
    rates = None
    for step in range(STEPS + 1):
        scores = evaluate(loss, unframed(boxes, targets), everyone)
        path.append(scores.iou.reshape(len(RATES), -1).mean(axis=1))
        norms = np.linalg.norm(scores.gradient, axis=1, keepdims=True)
        if rates is None:
            if not norms.any():
                return Descent(np.full(STEPS + 1, path[0][0]), np.nan)
            rates = np.repeat(RATES, len(rows))[:, None] / np.median(norms[norms > 0])
        factors = rates * (1 - step / STEPS)
        shorten = np.minimum(1, np.divide(LONGEST, factors * norms, out=np.ones_like(norms), where=factors * norms > 0))
        boxes = boxes - factors * shorten * scores.gradient
        boxes[:, 2:] = np.maximum(boxes[:, 2:], _NARROWEST)
    paths = np.array(path)
    best = int(paths[1:].mean(axis=0).argmax())
    return Descent(paths[:, best], RATES[best])
