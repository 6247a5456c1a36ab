"""Figures of a report, computed for the template to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LEVELS = 5
"""Shades of a cell."""
_MOST = 12
"""Classes that a confusion matrix shows: more are hard to read."""


@dataclass(frozen=True)
class Bar:
    """Of a histogram: the range that it counts, how much, and its height as a share of the highest."""

    lower: float
    upper: float
    count: int
    share: float


def bars(counts: Sequence[int]) -> list[Bar]:
    """The bars of a histogram from 0 to 1."""
    most = max(counts, default=0) or 1
    size = 1 / max(len(counts), 1)
    return [Bar(row * size, (row + 1) * size, count, count / most) for row, count in enumerate(counts)]


@dataclass(frozen=True)
class Cell:
    """A count of the confusion matrix, its shade from 0 to 5, and whether it is no mistake."""

    count: int
    level: int
    agrees: bool


@dataclass(frozen=True)
class Confusion:
    """The part of the confusion matrix where most mistakes are.

    Attributes:
        names: of rows (labels) and columns (predictions); the last, None, is for no label and no prediction.
        rows: of cells.
        omitted: classes that are left out.
    """

    names: tuple[str | None, ...]
    rows: tuple[tuple[Cell, ...], ...]
    omitted: int


def confusion(counts: Mapping[tuple[str | None, str | None], int]) -> Confusion:
    """The confusion matrix of the classes with most mistakes, in alphabetical order."""
    mistakes: Counter[str] = Counter()
    for pair, count in counts.items():
        for name in pair:
            if name is not None:
                mistakes[name] += count * (pair[0] != pair[1])
    chosen = sorted(sorted(mistakes, key=lambda name: (-mistakes[name], name))[:_MOST])
    names = (*chosen, None)
    wrong = max((counts.get((a, b), 0) for a in names for b in names if a != b), default=0)
    right = max((counts.get((name, name), 0) for name in chosen), default=0)
    rows = tuple(
        tuple(_cell(counts.get((label, prediction), 0), label == prediction, right, wrong) for prediction in names)
        for label in names
    )
    return Confusion(names, rows, len(mistakes) - len(chosen))


def _cell(count: int, agrees: bool, right: int, wrong: int) -> Cell:
    most = right if agrees else wrong
    return Cell(count, -(-count * _LEVELS // most) if most else 0, agrees)
