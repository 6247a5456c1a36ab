"""Labels as they are after findings have been accepted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from boxloss.audit.finding import Corners, Finding, Kind, corners
from boxloss.audit.image import Id, Image, Labels

_REMOVED = Kind.SPURIOUS, Kind.DUPLICATE, Kind.DEGENERATE, Kind.TINY
"""Kinds whose labels go."""


def corrected(image: Image, accepted: Iterable[Finding]) -> Image:
    """Corrects an image's labels.

    Missing labels are added, spurious, repeated, degenerate and tiny ones removed; wrong classes and bad locations
    become what was proposed; what reaches beyond the image is cut there, or removed if nothing of it is inside. Odd
    shapes stay: nobody knows better.

    Args:
        image: as it was audited.
        accepted: findings of it; those of other images are passed over.
    """
    labels = image.labels
    boxes: list[Corners] = [corners(box) for box in labels.boxes.tolist()]
    classes = list(labels.classes)
    kept = [True] * len(labels)
    added: list[Finding] = []
    for finding in accepted:
        if finding.image_id != image.image_id:
            continue
        row = finding.label
        if row is None:
            added.append(finding)
        elif finding.kind in _REMOVED:
            kept[row] = False
        elif finding.kind is Kind.WRONG_CLASS and finding.proposed_class is not None:
            classes[row] = finding.proposed_class
        elif finding.kind is Kind.BAD_LOCATION and finding.proposed_box is not None:
            boxes[row] = finding.proposed_box
        elif finding.kind is Kind.OUTSIDE and image.width and image.height:
            boxes[row] = x1, y1, x2, y2 = _cut(boxes[row], image.width, image.height)
            kept[row] = x1 < x2 and y1 < y2
    rows = [row for row, keep in enumerate(kept) if keep]
    ids: list[Id | None] = [labels.ids[row] for row in rows]
    return replace(
        image,
        labels=Labels(
            np.array([*(boxes[row] for row in rows), *(each.box for each in added)]).reshape(-1, 4),
            [*(classes[row] for row in rows), *(each.class_name for each in added)],
            [*ids, *(None for _ in added)],
            np.array([*labels.crowd[rows], *(False for _ in added)], bool),
            np.array([*labels.difficult[rows], *(False for _ in added)], bool),
            [*(labels.annotators[row] for row in rows), *("" for _ in added)],
        ),
    )


def _cut(box: Corners, width: float, height: float) -> Corners:
    x1, y1, x2, y2 = box
    return max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
