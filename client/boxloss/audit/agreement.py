"""How far annotators agree who drew boxes in the same images."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from boxloss.audit.finding import Corners, corners
from boxloss.audit.image import Labels
from boxloss.audit.overlaps import ious
from boxloss.contract.arrays import Array
from boxloss.errors import InvalidInputError, Violation

BINS = 20
"""Of the distribution of IoUs from 0 to 1."""

Annotated: TypeAlias = Mapping[str, Labels]
"""What each annotator drew in an image; one who looked and drew nothing has empty labels."""


@dataclass(frozen=True)
class ConsensusBox:
    """An object that most annotators of an image drew.

    Attributes:
        box: the median of their corners.
        class_name: what most of them call it; of equally many the first in alphabetical order.
        annotators: who drew it.
        iou: the least of any of their boxes and this one.
    """

    box: Corners
    class_name: str
    annotators: tuple[str, ...]
    iou: float


@dataclass(frozen=True)
class Share:
    """How many boxes of annotators have a counterpart with another.

    Every box is held once against each other annotator of its image.

    Attributes:
        boxes: held against somebody.
        matched: of these, with a counterpart.
        same_class: of these, with one of the same class.
        mean_iou: of the matched; NaN without any.
    """

    boxes: int
    matched: int
    same_class: int
    mean_iou: float

    @property
    def agreement(self) -> float:
        """Share of the boxes with a counterpart of the same class: F1, where two are compared. NaN without boxes."""
        return self.same_class / self.boxes if self.boxes else math.nan


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree.

    Attributes:
        images: that two annotators or more looked at.
        iou_histogram: of all matched pairs of boxes: how many in each of `BINS` equal parts of 0 to 1.
        pairs: for each two annotators.
        annotators: each against all others.
        classes: the boxes of each class.
        alpha: Krippendorff's alpha of the classes of matched boxes, nominal: 1 where all agree, 0 where chance would do
            as well. NaN where there is nothing to compare.
    """

    images: int
    iou_histogram: NDArray[np.int64]
    pairs: Mapping[tuple[str, str], Share]
    annotators: Mapping[str, Share]
    classes: Mapping[str, Share]
    alpha: float


class Agreements:
    """Gathers agreement, image by image, in memory that does not grow with their number.

    Args:
        min_iou: IoU from which on two annotators mean the same object, above 0 and at most 1.

    Raises:
        InvalidInputError: the number is out of its range.
    """

    def __init__(self, min_iou: float = 0.5) -> None:
        if not 0 < min_iou <= 1:
            raise InvalidInputError([Violation("min_iou", f"is {min_iou:g}; give a number above 0 and at most 1")])
        self._min_iou = min_iou
        self._images = 0
        self._histogram = np.zeros(BINS, np.int64)
        self._pairs: defaultdict[tuple[str, str], _Tally] = defaultdict(_Tally)
        self._annotators: defaultdict[str, _Tally] = defaultdict(_Tally)
        self._classes: defaultdict[str, _Tally] = defaultdict(_Tally)
        self._coincidences: defaultdict[tuple[str, str], float] = defaultdict(float)

    def add(self, annotated: Annotated) -> list[ConsensusBox]:
        """Adds what annotators drew in one image; returns what most of them agree on."""
        if len(annotated) < 2:
            return []
        self._images += 1
        names = sorted(annotated)
        boxes = np.concatenate([annotated[name].boxes for name in names])
        classes = [each for name in names for each in annotated[name].classes]
        owners = [name for name in names for _ in range(len(annotated[name]))]
        for name in names:
            self._annotators[name]  # Who drew nothing took part, too.
        for owner, each in zip(owners, classes, strict=True):
            for name in names:
                if name != owner:
                    for tally in self._tallies(owner, name, each):
                        tally.boxes += 1
        overlaps = ious(boxes, boxes)
        agreed = []
        for group in _objects(overlaps, owners, self._min_iou):
            for one, other in permutations(group, 2):
                for tally in self._tallies(owners[one], owners[other], classes[one]):
                    tally.match(float(overlaps[one, other]), classes[one] == classes[other])
                self._coincidences[classes[one], classes[other]] += 1 / (len(group) - 1)
            for one, other in combinations(group, 2):
                self._histogram[min(int(overlaps[one, other] * BINS), BINS - 1)] += 1
            if len(group) > len(names) / 2:
                agreed.append(_consensus(boxes[group], [classes[row] for row in group], [owners[row] for row in group]))
        return agreed

    def _tallies(self, owner: str, other: str, name: str) -> Iterator[_Tally]:
        """Where a box that is held against another annotator counts."""
        yield self._pairs[min(owner, other), max(owner, other)]
        yield self._annotators[owner]
        yield self._classes[name]

    def result(self) -> Agreement:
        """What has been gathered."""
        return Agreement(
            self._images,
            self._histogram.copy(),
            {names: tally.share() for names, tally in sorted(self._pairs.items())},
            {name: tally.share() for name, tally in sorted(self._annotators.items())},
            {name: tally.share() for name, tally in sorted(self._classes.items())},
            _alpha(self._coincidences),
        )


class _Tally:
    def __init__(self) -> None:
        self.boxes = 0
        self._matched = 0
        self._same_class = 0
        self._ious = 0.0

    def match(self, iou: float, same_class: bool) -> None:
        """Counts a box with its counterpart."""
        self._matched += 1
        self._same_class += same_class
        self._ious += iou

    def share(self) -> Share:
        """What has been counted."""
        mean = self._ious / self._matched if self._matched else math.nan
        return Share(self.boxes, self._matched, self._same_class, mean)


def _objects(overlaps: Array, owners: list[str], least: float) -> list[list[int]]:
    """Rows of boxes that mean the same object, at most one of each annotator: those that overlap most join first."""
    group_of = {row: [row] for row in range(len(owners))}
    pairs = np.argwhere(np.triu(overlaps >= least, 1))
    order = np.argsort(-overlaps[pairs[:, 0], pairs[:, 1]], kind="stable")
    for one, other in pairs[order].tolist():
        first, second = group_of[one], group_of[other]
        if {owners[row] for row in first}.isdisjoint(owners[row] for row in second):
            first += second
            group_of.update(dict.fromkeys(second, first))
    return [sorted(group) for row, group in group_of.items() if row == min(group)]


def _consensus(boxes: Array, classes: list[str], owners: list[str]) -> ConsensusBox:
    middle = np.median(boxes, axis=0)
    votes = Counter(classes)
    name = min(votes, key=lambda each: (-votes[each], each))
    return ConsensusBox(corners(middle), name, tuple(owners), float(ious(boxes, middle[None]).min()))


def _alpha(coincidences: Mapping[tuple[str, str], float]) -> float:
    """Krippendorff's alpha for nominal data (Computing Krippendorff's Alpha-Reliability, 2011)."""
    totals: defaultdict[str, float] = defaultdict(float)
    for (one, _), weight in coincidences.items():
        totals[one] += weight
    whole = sum(totals.values())
    expected = whole**2 - sum(total**2 for total in totals.values())
    if not expected:
        return math.nan  # A single class, or nothing: there is no disagreement to be expected.
    observed = sum(weight for (one, other), weight in coincidences.items() if one != other)
    return 1 - (whole - 1) * observed / expected
