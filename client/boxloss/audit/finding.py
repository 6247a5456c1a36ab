"""What an audit finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TypeAlias

from boxloss.audit.image import Id, Image
from boxloss.contract.arrays import Array
from boxloss.errors import InvalidInputError, Violation

Corners: TypeAlias = tuple[float, float, float, float]
"""Of a box: (x1, y1, x2, y2) in pixels."""


class Kind(StrEnum):
    """What may be wrong."""

    MISSING = "missing"
    """A model sees an object that has no label."""
    SPURIOUS = "spurious"
    """A label where the model sees nothing."""
    BAD_LOCATION = "bad_location"
    """A label that fits its object badly."""
    WRONG_CLASS = "wrong_class"
    """A label whose object the model takes for something else."""
    DUPLICATE = "duplicate"
    """A second label of one object."""
    OUTSIDE = "outside"
    """A label that reaches beyond its image."""
    DEGENERATE = "degenerate"
    """A label without area, or with corners in the wrong order."""
    TINY = "tiny"
    """A label too small to be seen."""
    SHAPE = "shape"
    """A label far longer than wide, or the reverse."""


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
        kind: what may be wrong.
        image_id: where.
        score: how sure that is, 0 to 1.
        message: a sentence for whoever corrects the label.
        box: the label's, or the prediction's where a label is missing.
        class_name: the label's class, or the prediction's where a label is missing.
        label: row of the label among its image's; None where it is missing.
        label_id: its id, where it has one.
        prediction_index: row of the prediction that accuses the label; None where there is none.
        iou: of label and prediction, or of the label and the one that it repeats; None where nothing is compared.
        proposed_class: what the class should be, where it seems wrong.
        proposed_box: where the box should be, where it seems badly placed.
    """

    kind: Kind
    image_id: Id
    score: float
    message: str
    box: Corners
    class_name: str
    label: int | None = None
    label_id: Id | None = None
    prediction_index: int | None = None
    iou: float | None = None
    proposed_class: str | None = None
    proposed_box: Corners | None = None

    @classmethod
    def of_label(
        cls,
        image: Image,
        label: int,
        kind: Kind,
        score: float,
        message: str,
        *,
        prediction: int | None = None,
        iou: float | None = None,
        proposed_class: str | None = None,
        proposed_box: Corners | None = None,
    ) -> Self:
        """A finding about the label in a row."""
        labels = image.labels
        return cls(
            kind,
            image.image_id,
            score,
            message,
            corners(labels.boxes[label]),
            labels.classes[label],
            label,
            labels.ids[label],
            prediction,
            iou,
            proposed_class,
            proposed_box,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: boxes as COCO has them, (x, y, width, height)."""
        return {
            "kind": str(self.kind),
            "image_id": self.image_id,
            "label": self.label,
            "label_id": self.label_id,
            "prediction_index": self.prediction_index,
            "box": _xywh(self.box),
            "class": self.class_name,
            "iou": self.iou,
            "score": self.score,
            "message": self.message,
            "proposed_class": self.proposed_class,
            "proposed_box": None if self.proposed_box is None else _xywh(self.proposed_box),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `as_dict` gives.

        Raises:
            InvalidInputError: a field is missing or holds what it must not.
        """
        try:
            return cls(
                Kind(values["kind"]),
                values["image_id"],
                float(values["score"]),
                str(values["message"]),
                _corners_of(values["box"]),
                str(values["class"]),
                values.get("label"),
                values.get("label_id"),
                values.get("prediction_index"),
                values.get("iou"),
                values.get("proposed_class"),
                None if values.get("proposed_box") is None else _corners_of(values["proposed_box"]),
            )
        except KeyError as error:
            raise InvalidInputError([Violation(str(error.args[0]), "is missing; give findings as they came")]) from None
        except (TypeError, ValueError) as error:
            raise InvalidInputError([Violation("finding", f"{error}; give findings as they came")]) from None


def corners(box: Sequence[float] | Array) -> Corners:
    """A box as plain numbers."""
    x1, y1, x2, y2 = map(float, box)
    return x1, y1, x2, y2


def _corners_of(box: Sequence[float]) -> Corners:
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _xywh(box: Corners) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
