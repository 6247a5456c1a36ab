"""Which prediction belongs to which label."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from boxloss.audit.image import Flags
from boxloss.contract.arrays import Array

Matching: TypeAlias = Literal["greedy", "optimal"]
"""Greedy, as COCO evaluates: predictions choose in the order of their scores. Optimal: the largest sum of overlaps."""

NONE = -1
"""Instead of a label, for a prediction that has none."""


def match(
    overlaps: Array, scores: Array, allowed: Flags, taken: Flags, least: float, method: Matching
) -> NDArray[np.int64]:
    """Gives each prediction at most one label, and each label at most one prediction.

    Args:
        overlaps: of predictions (rows) and labels (columns).
        scores: of the predictions.
        allowed: which predictions (rows) may match which labels (columns).
        taken: labels that may not.
        least: smallest overlap of a match.
        method: see `Matching`.

    Returns:
        For each prediction the row of its label, or NONE.
    """
    matched = np.full(len(overlaps), NONE)
    worth = np.where(allowed & ~taken & (overlaps >= least), overlaps, 0.0)
    if not worth.any():
        return matched
    if method == "optimal":
        from scipy.optimize import linear_sum_assignment  # Only who asks for it needs SciPy.

        rows, columns = linear_sum_assignment(worth, maximize=True)
        good = worth[rows, columns] > 0
        matched[rows[good]] = columns[good]
        return matched
    # Among predictions of the same score, those choose first that fit best: otherwise labels that are held against
    # themselves could take each other's place.
    for row in np.lexsort((-worth.max(axis=1), -scores)):
        column = int(worth[row].argmax())
        if worth[row, column] > 0:
            matched[row] = column
            worth[:, column] = 0.0
    return matched
