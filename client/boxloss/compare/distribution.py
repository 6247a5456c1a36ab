"""How the values of a loss are distributed."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from boxloss.contract.arrays import Array


class Distribution(NamedTuple):
    """Of some numbers; the standard deviation is that of the numbers themselves, quantiles are interpolated."""

    mean: float
    std: float
    minimum: float
    p25: float
    median: float
    p75: float
    p95: float
    maximum: float

    @classmethod
    def of(cls, values: Array) -> Self:
        """The distribution of one number or more."""
        p25, median, p75, p95 = np.quantile(values, [0.25, 0.5, 0.75, 0.95])
        return cls(
            *map(float, (values.mean(), values.std(), values.min(), p25, median, p75, p95, values.max())),
        )
