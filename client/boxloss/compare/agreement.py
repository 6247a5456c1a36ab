"""How far losses agree on which pairs are worse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from boxloss.contract.arrays import Array


class Agreement(NamedTuple):
    """Correlations of L losses over the same pairs, each of shape (L, L); NaN where a loss is the same for all pairs.

    Attributes:
        pearson: of the values.
        spearman: of the ranks, ties averaged.
        kendall: tau-b. Without ties, the share of pairs of pairs that two losses order differently is (1 - tau) / 2.
    """

    pearson: Array
    spearman: Array
    kendall: Array


class Disagreement(NamedTuple):
    """The pair that two losses rank most differently.

    Attributes:
        first: the position of one loss.
        second: of the other.
        row: of the pair.
        first_rank: of the pair by one loss, from 1, the least; ties averaged.
        second_rank: by the other.
    """

    first: int
    second: int
    row: int
    first_rank: float
    second_rank: float

    @property
    def gap(self) -> float:
        """How many ranks lie between."""
        return abs(self.first_rank - self.second_rank)


def agreement(values: Array) -> Agreement:
    """Correlates losses.

    Args:
        values: of N pairs under L losses, of shape (N, L).
    """
    kendall = _correlations(values)
    for first, second in combinations(range(values.shape[1]), 2):
        if not np.isnan(kendall[first, second]):
            tau = stats.kendalltau(values[:, first], values[:, second]).statistic
            kendall[first, second] = kendall[second, first] = tau
    return Agreement(_correlations(values), _correlations(stats.rankdata(values, axis=0)), kendall)


def disagreements(values: Array) -> Sequence[Disagreement]:
    """For every two losses the pair that they rank most differently, if there is one; largest gap first."""

    def found() -> Iterator[Disagreement]:
        ranks = stats.rankdata(values, axis=0)
        for first, second in combinations(range(values.shape[1]), 2):
            row = int(np.abs(ranks[:, first] - ranks[:, second]).argmax())
            yield Disagreement(first, second, row, float(ranks[row, first]), float(ranks[row, second]))

    return sorted((each for each in found() if each.gap > 0), key=lambda each: -each.gap)


def _correlations(values: Array) -> Array:
    """Pearson's, of columns; those that do not vary get NaN."""
    varies = np.ptp(values, axis=0) > 0
    correlations = np.full((values.shape[1], values.shape[1]), np.nan)
    if varies.any():
        correlations[np.ix_(varies, varies)] = np.corrcoef(values[:, varies], rowvar=False)
    return correlations
