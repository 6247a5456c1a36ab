"""The rules: from overlaps to findings, one image at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxloss.audit.finding import Finding, Kind, corners
from boxloss.audit.geometry import misshapen
from boxloss.audit.image import Flags, Id, Image, Predictions
from boxloss.audit.matching import NONE, Matching, match
from boxloss.audit.overlaps import Overlaps, overlaps_of
from boxloss.contract.arrays import Array
from boxloss.errors import InvalidInputError, Violation

_NEAR = 0.1
"""IoU from which on a prediction and a label of one class may mean the same object, if both have no better partner."""
_FITS = 0.9
"""IoU from which on a label is where its prediction is."""
_REPEATS = 0.6
"""IoU of two labels of one class from which on one may repeat the other."""
_REPEATS_FOR_SURE = 0.8
"""The same, where there is no model to say otherwise."""


@dataclass(frozen=True)
class Rules:
    """What an audit goes by.

    Attributes:
        matching: how predictions find their labels.
        min_iou: IoU from which on a prediction and a label mean the same object, above 0 and at most 1.
        min_score: predictions with a lower score accuse no label; they may still speak for one.

    Raises:
        InvalidInputError: a number is out of its range.
    """

    matching: Matching = "greedy"
    min_iou: float = 0.5
    min_score: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.min_iou <= 1:
            raise InvalidInputError([Violation("min_iou", f"is {self.min_iou:g}; give a number above 0 and at most 1")])
        if not 0 <= self.min_score <= 1:
            raise InvalidInputError([Violation("min_score", f"is {self.min_score:g}; give a number from 0 to 1")])


@dataclass(frozen=True)
class ImageAudit:
    """One image, audited.

    Attributes:
        image_id: names it.
        findings: what may be wrong, the surest first.
        matches: labels and predictions side by side, every one once, but for crowds and predictions that are not sure.
    """

    image_id: Id
    findings: tuple[Finding, ...]
    matches: tuple[Match, ...]


class Match(NamedTuple):
    """The classes of a label and of its prediction, None where there is no such; and their IoU."""

    label: str | None
    prediction: str | None
    iou: float | None


def audit_image(image: Image, rules: Rules | None = None, overlaps: Overlaps | None = None) -> ImageAudit:
    """Finds what may be wrong with the labels of an image.

    Without predictions that is only what labels tell by themselves: see `Kind`. With a model that found nothing every
    label is spurious; without labels every sure prediction is a missing one.

    Args:
        image: its labels, and predictions where there are.
        rules: the default ones unless given.
        overlaps: of its boxes, where they have been computed already.
    """
    seen = _Comparison(image, rules or Rules(), overlaps or overlaps_of(image))
    found = [*misshapen(image, seen.confirmed | image.labels.crowd), *seen.repeated()]
    if image.predictions is None:
        return ImageAudit(image.image_id, _surest_first(found), ())
    found += [*seen.misplaced(), *seen.misnamed(), *seen.unsupported(), *seen.unlabeled()]
    return ImageAudit(image.image_id, _surest_first(found), tuple(seen.matches()))


def _surest_first(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: -finding.score))


class _Comparison:
    """Labels and predictions of one image, matched step by step: each step takes what those before have left."""

    def __init__(self, image: Image, rules: Rules, overlaps: Overlaps) -> None:
        self._image = image
        self._rules = rules
        self._labels = image.labels
        self._predictions = image.predictions or Predictions(np.empty((0, 4)), (), np.empty(0))
        self._has_model = image.predictions is not None
        self._overlaps = overlaps.predictions
        self._among_labels = overlaps.labels
        names = {name: number for number, name in enumerate({*self._labels.classes, *self._predictions.classes})}
        self._classes = np.array([names[name] for name in self._labels.classes], int)
        predicted = np.array([names[name] for name in self._predictions.classes], int)
        self._same_class = predicted[:, None] == self._classes
        self._seen_class = self._same_class.any(axis=0)
        """Labels whose class the model finds somewhere in the image."""

    @cached_property
    def _objects(self) -> NDArray[np.int64]:
        """For each prediction the label of the same class that means the same object, or NONE."""
        return self._match(self._same_class, self._labels.crowd, self._rules.min_iou)

    @cached_property
    def confirmed(self) -> Flags:
        """Labels whose object the model sees."""
        return self._taken(self._objects)

    @cached_property
    def _fit(self) -> Array:
        """How well each confirmed label fits its prediction; 0 for others."""
        fit = np.zeros(len(self._labels))
        rows = np.flatnonzero(self._objects != NONE)
        fit[self._objects[rows]] = self._overlaps[rows, self._objects[rows]]
        return fit

    @cached_property
    def _repeats(self) -> NDArray[np.int64]:
        """For each label the one that it repeats, or NONE."""
        repeats = np.full(len(self._labels), NONE)
        crowd = self._labels.crowd
        pairs = np.triu(self._among_labels, 1) * (self._classes[:, None] == self._classes)
        pairs[crowd] = pairs[:, crowd] = 0
        least = _REPEATS if self._has_model else _REPEATS_FOR_SURE
        for one, other in np.argwhere(pairs >= least).tolist():
            # Two objects may hide each other: then each label fits its own prediction better than the other label.
            if min(self._fit[one], self._fit[other]) >= pairs[one, other]:
                continue
            worse, better = (one, other) if self._fit[one] < self._fit[other] else (other, one)
            if repeats[worse] == NONE and repeats[better] != worse:
                repeats[worse] = better
        return repeats

    @cached_property
    def _others(self) -> NDArray[np.int64]:
        """For each prediction without an object the label of another class in its place, or NONE."""
        taken = self._labels.crowd | self.confirmed | (self._repeats != NONE)
        return self._match(~self._same_class & self._accusers[:, None], taken, self._rules.min_iou)

    @cached_property
    def _neighbors(self) -> NDArray[np.int64]:
        """For each prediction still without a label the label of its class nearby, or NONE."""
        taken = self._labels.crowd | self.confirmed | (self._repeats != NONE) | self._taken(self._others)
        allowed = self._same_class & (self._accusers & (self._others == NONE))[:, None]
        return self._match(allowed, taken, _NEAR)

    @cached_property
    def _accusers(self) -> Flags:
        """Predictions that are sure, without an object, not in a crowd, and no second detection of a label's object."""
        crowd = self._labels.crowd
        explained = np.where(crowd | self._same_class, self._overlaps, 0).max(axis=1, initial=0) >= self._rules.min_iou
        accusers: Flags = (self._predictions.scores >= self._rules.min_score) & (self._objects == NONE) & ~explained
        return accusers

    def repeated(self) -> Iterator[Finding]:
        """Labels that repeat another."""
        for row, other in _matches(self._repeats):
            iou = float(self._among_labels[row, other])
            message = f"Repeats another {self._labels.classes[row]} (IoU {iou:.2f}). Remove one of them."
            yield Finding.of_label(self._image, row, Kind.DUPLICATE, iou, message, iou=iou)

    def misplaced(self) -> Iterator[Finding]:
        """Labels that fit their prediction badly."""
        repeating = self._repeats != NONE
        for row, label in (*_matches(self._objects), *_matches(self._neighbors)):
            iou = float(self._overlaps[row, label])
            if iou >= _FITS or self._predictions.scores[row] < self._rules.min_score or repeating[label]:
                continue
            name, box = self._labels.classes[label], corners(self._predictions.boxes[row])
            message = f"Fits badly: the model sees this {name} elsewhere (IoU {iou:.2f}). Move its edges."
            yield Finding.of_label(
                self._image, label, Kind.BAD_LOCATION, 1 - iou, message, prediction=row, iou=iou, proposed_box=box
            )

    def misnamed(self) -> Iterator[Finding]:
        """Labels of another class than the prediction in their place."""
        for row, label in _matches(self._others):
            iou, name = float(self._overlaps[row, label]), self._predictions.classes[row]
            message = f"Is labeled {self._labels.classes[label]}; the model sees {name} here (IoU {iou:.2f}). Check it."
            yield Finding.of_label(
                self._image, label, Kind.WRONG_CLASS, iou, message, prediction=row, iou=iou, proposed_class=name
            )

    def unsupported(self) -> Iterator[Finding]:
        """Labels where the model sees nothing."""
        left = ~(self._labels.crowd | self._labels.difficult | self.confirmed | (self._repeats != NONE))
        for matched in (self._others, self._neighbors, self._repeats):
            left &= ~self._taken(matched)
        support = self._overlaps.max(axis=0, initial=0)
        for row in np.flatnonzero(left).tolist():
            # A model overlooks one of several more easily than what it sees nowhere else.
            score = float(1 - support[row]) / (1 + bool(self._seen_class[row]))
            message = f"The model sees no {self._labels.classes[row]} here. Remove it, unless you see one."
            yield Finding.of_label(self._image, row, Kind.SPURIOUS, score, message)

    def unlabeled(self) -> Iterator[Finding]:
        """Predictions without a label."""
        nearest = self._overlaps.max(axis=1, initial=0)
        left = self._accusers & (self._others == NONE) & (self._neighbors == NONE)
        for row in np.flatnonzero(left).tolist():
            name, sure = self._predictions.classes[row], float(self._predictions.scores[row])
            yield Finding(
                Kind.MISSING,
                self._image.image_id,
                sure * float(1 - nearest[row]),
                f"The model sees {name} here (score {sure:.2f}), and there is no label. Add one, if you see it, too.",
                corners(self._predictions.boxes[row]),
                name,
                prediction_index=row,
            )

    def matches(self) -> Iterator[Match]:
        """Labels and predictions side by side."""
        labeled = self._labels.crowd.copy()
        detected = self._predictions.scores < self._rules.min_score
        for matched in (self._objects, self._others, self._neighbors):
            for row, label in _matches(matched):
                labeled[label] = detected[row] = True
                iou = float(self._overlaps[row, label])
                yield Match(self._labels.classes[label], self._predictions.classes[row], iou)
        for label in np.flatnonzero(~labeled).tolist():
            yield Match(self._labels.classes[label], None, None)
        for row in np.flatnonzero(~detected & self._accusers).tolist():
            yield Match(None, self._predictions.classes[row], None)

    def _match(self, allowed: Flags, taken: Flags, least: float) -> NDArray[np.int64]:
        return match(self._overlaps, self._predictions.scores, allowed, taken, least, self._rules.matching)

    def _taken(self, matched: NDArray[np.int64]) -> Flags:
        taken = np.zeros(len(self._labels), bool)
        taken[matched[matched != NONE]] = True
        return taken


def _matches(matched: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The rows that have a match, each with its match."""
    for row, other in enumerate(matched.tolist()):
        if other != NONE:
            yield row, other
