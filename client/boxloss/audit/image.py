"""What is audited: the labels and the predictions of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from boxloss.contract.arrays import Array, boxes_of
from boxloss.errors import InvalidInputError, Violation

Id: TypeAlias = str | int
Flags: TypeAlias = NDArray[np.bool_]

_LARGEST = 1e15
"""Coordinates beyond could not be computed with."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The boxes that people drew in an image.

    Args:
        boxes: (x1, y1, x2, y2) of shape (N, 4), in pixels.
        classes: name of each box's class.
        ids: of each box; None where it has none. By default none has.
        crowd: boxes that stand for many objects, as COCO's iscrowd; nobody is accused there. By default none is.
        difficult: boxes that may be overlooked, as VOC's difficult. By default none is.
        annotators: who drew each box; empty where that is not known.

    Raises:
        InvalidInputError: lengths differ, or the boxes are not of that shape or not finite. Boxes without area, or with
            corners in the wrong order, are findings.
    """

    boxes: Array
    classes: Sequence[str]
    ids: Sequence[Id | None] = ()
    crowd: Flags = field(default_factory=lambda: np.empty(0, bool))
    difficult: Flags = field(default_factory=lambda: np.empty(0, bool))
    annotators: Sequence[str] = ()

    def __post_init__(self) -> None:
        boxes = _boxes(self.boxes, "labels.boxes")
        count = len(boxes)
        _set(self, "boxes", boxes)
        _set(self, "classes", _all(self.classes, count, "labels.classes"))
        _set(self, "ids", _all(self.ids or [None] * count, count, "labels.ids"))
        _set(self, "crowd", _flags(self.crowd, count, "labels.crowd"))
        _set(self, "difficult", _flags(self.difficult, count, "labels.difficult"))
        _set(self, "annotators", _all(self.annotators or [""] * count, count, "labels.annotators"))

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The boxes that a model found in an image.

    Args:
        boxes: (x1, y1, x2, y2) of shape (N, 4), in pixels.
        classes: name of each box's class.
        scores: how sure the model is of each box, 0 to 1.
        rows: of each box in the file that it comes from; by default those here.

    Raises:
        InvalidInputError: lengths differ, the boxes are not of that shape, not finite or inverted, or a score is not
            within 0 and 1.
    """

    boxes: Array
    classes: Sequence[str]
    scores: Array
    rows: Sequence[int] = ()

    def __post_init__(self) -> None:
        boxes = _boxes(self.boxes, "predictions.boxes")
        count = len(boxes)
        if len(rows := np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))):
            raise InvalidInputError(
                [
                    Violation(
                        "predictions.boxes",
                        f"has the corners of row {rows[0]} in the wrong order; give (x1, y1, x2, y2)",
                    )
                ]
            )
        scores = np.asarray(self.scores, np.float64)
        _check_length(scores.shape, count, "predictions.scores")
        if not np.all((scores >= 0) & (scores <= 1)):
            raise InvalidInputError(
                [Violation("predictions.scores", "have numbers outside 0 to 1; give probabilities")]
            )
        _set(self, "boxes", boxes)
        _set(self, "classes", _all(self.classes, count, "predictions.classes"))
        _set(self, "scores", scores)
        _set(self, "rows", _all(self.rows or range(count), count, "predictions.rows"))

    def __len__(self) -> int:
        return len(self.boxes)


def _nothing() -> Array:
    return np.empty((0, 4))


@dataclass(frozen=True, eq=False)
class Image:
    """One image to audit.

    Attributes:
        image_id: names it in findings.
        labels: what people drew.
        predictions: what a model found; None where there is no model, which is not the same as one that found nothing.
        width: in pixels; None where it is not known.
        height: in pixels; None where it is not known.
        file_name: of the picture, where it is known.
    """

    image_id: Id
    labels: Labels = field(default_factory=lambda: Labels(_nothing(), ()))
    predictions: Predictions | None = None
    width: float | None = None
    height: float | None = None
    file_name: str | None = None


def _boxes(value: Any, name: str) -> Array:
    boxes = boxes_of(value, name, 4).astype(np.float64, copy=False)
    if len(rows := np.flatnonzero(~(np.abs(boxes) <= _LARGEST).all(axis=1))):
        raise InvalidInputError(
            [Violation(name, f"has a number in row {rows[0]} that is not finite, or beyond 1e15; leave such boxes out")]
        )
    return boxes


def _all(values: Sequence[Any], count: int, name: str) -> tuple[Any, ...]:
    _check_length((len(values),), count, name)
    return tuple(values)


def _flags(values: Any, count: int, name: str) -> Flags:
    flags = np.asarray(values, bool)
    if not flags.size:
        return np.zeros(count, bool)
    _check_length(flags.shape, count, name)
    return flags


def _check_length(shape: tuple[int, ...], count: int, name: str) -> None:
    if shape != (count,):
        raise InvalidInputError([Violation(name, f"has shape {shape} for {count} boxes; give one for each")])


def _set(instance: Any, name: str, value: Any) -> None:
    object.__setattr__(instance, name, value)
