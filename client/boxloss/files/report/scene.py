"""What is drawn of a finding: the boxes around it, over the picture where there is one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from boxloss.audit.finding import Corners, Finding, corners
from boxloss.audit.image import Image
from boxloss.files.pictures import Pictures

WIDTH, HEIGHT = 400, 300
"""Of a scene, in its own units."""
_WIDEST = 640
"""Pixels of a picture in it: sharp on a dense screen, and some 30 kB."""
_AROUND = 0.5
"""What is shown around the boxes, as a share of their longer side."""
_AROUND_BLANK = 1.0
"""The same without a picture, where the other boxes tell the place."""
_LEAST = 0.08
"""Smallest width of a scene, as a share of the image's longer side."""


@dataclass(frozen=True)
class Rectangle:
    """In the units of the scene."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Scene:
    """A drawing.

    Attributes:
        sheet: what of the image is in it; None where the image's size is not known.
        picture: of the sheet as a data URI; None to leave it blank.
        others: labels nearby.
        label: the accused one; None where it is missing.
        prediction: that accuses it; None where there is none.
    """

    sheet: Rectangle | None
    picture: str | None
    others: tuple[Rectangle, ...]
    label: Rectangle | None
    prediction: Rectangle | None


def scene_of(finding: Finding, image: Image, pictures: Pictures | None) -> Scene:
    """Draws a finding.

    Args:
        finding: of the image.
        image: as it was audited.
        pictures: to draw over; None to leave the sheet blank.
    """
    label = None if finding.label is None else _ordered(corners(image.labels.boxes[finding.label]))
    prediction = None
    if finding.prediction_index is not None and image.predictions is not None:
        prediction = corners(image.predictions.boxes[finding.prediction_index])
    shown = [box for box in (label, prediction) if box is not None] or [finding.box]
    frame = (0.0, 0.0, image.width, image.height) if image.width and image.height else None
    if frame is None and pictures is not None and (size := pictures.size(image.image_id, image.file_name)):
        frame = (0.0, 0.0, *size)
    window = _window(shown, frame, _AROUND if pictures else _AROUND_BLANK)
    sheet = None if frame is None else _common(window, frame)
    picture = None
    if pictures is not None and frame is None:
        pictures.note_missing(image.image_id, image.file_name)
    elif pictures is not None and frame is not None and sheet is not None:
        picture = pictures.cut(image.image_id, image.file_name, frame[2:], sheet, _WIDEST)
    others = (_ordered(corners(box)) for row, box in enumerate(image.labels.boxes.tolist()) if row != finding.label)
    return Scene(
        None if sheet is None else _placed(sheet, window),
        picture,
        tuple(_placed(box, window) for box in others if _common(box, window)),
        None if label is None else _placed(label, window),
        None if prediction is None else _placed(prediction, window),
    )


def _window(boxes: Iterable[Corners], frame: Corners | None, around: float) -> Corners:
    """The part of the plane to show: the boxes and their surroundings, in the scene's proportions."""
    each = np.array(list(boxes))
    (x1, y1), (x2, y2) = each[:, :2].min(axis=0), each[:, 2:].max(axis=0)
    side = max(x2 - x1, y2 - y1)
    least = _LEAST * max(frame[2:]) if frame else 0
    width = max(x2 - x1 + 2 * around * side, least) or 1.0
    height = max(y2 - y1 + 2 * around * side, least) or 1.0
    width, height = max(width, height * WIDTH / HEIGHT), max(height, width * HEIGHT / WIDTH)
    left, top = (x1 + x2 - width) / 2, (y1 + y2 - height) / 2
    if frame:
        left, top = _within(left, width, frame[2]), _within(top, height, frame[3])
    return float(left), float(top), float(left + width), float(top + height)


def _within(start: float, length: float, limit: float) -> float:
    """Moved into 0 to the limit, if it fits and overlaps that at all."""
    if length > limit or start > limit or start + length < 0:
        return start
    return min(max(start, 0), limit - length)


def _common(one: Corners, other: Corners) -> Corners | None:
    x1, y1, x2, y2 = max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _ordered(box: Corners) -> Corners:
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _placed(box: Corners, window: Corners) -> Rectangle:
    """In the scene, and not endlessly far outside."""
    scale = WIDTH / (window[2] - window[0])
    x1, x2 = (min(max((x - window[0]) * scale, -WIDTH), 2 * WIDTH) for x in (box[0], box[2]))
    y1, y2 = (min(max((y - window[1]) * scale, -HEIGHT), 2 * HEIGHT) for y in (box[1], box[3]))
    # Nothing is drawn of a rectangle without width.
    return Rectangle(round(x1, 1), round(y1, 1), max(round(x2 - x1, 1), 0.1), max(round(y2 - y1, 1), 0.1))
