"""Which prediction is held against which label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from boxloss.audit.image import Id, Image, Labels, Predictions
from boxloss.audit.matching import NONE, Matching, match
from boxloss.calls.client import Client
from boxloss.contract.arrays import Array

Rows: TypeAlias = NDArray[np.int64]

REACH = 1.0
"""How far apart the centers of a pair may lie, in diagonals of the label."""


class Name(NamedTuple):
    """What a pair is called.

    Attributes:
        image: its id; None where boxes are compared row by row.
        label: its id, or its row where it has none.
        prediction: its row in the file.
        class_name: of both.
    """

    image: Id | None
    label: Id
    prediction: int
    class_name: str | None


@dataclass(frozen=True, eq=False)
class Pairs:
    """Predictions and labels, row by row.

    Attributes:
        predictions: (x1, y1, x2, y2) of shape (N, 4), valid.
        targets: (x1, y1, x2, y2) of shape (N, 4), valid, each with an area.
        names: of the pairs.
        diagonals: of the images, in the unit of the boxes; NaN where a size is not known.
        labels: how many there were; crowds do not count.
        candidates: how many predictions there were.
        flat: labels that were left out as they have no area, or their corners in the wrong order.
        crowds: labels that were left out as they stand for many objects.
    """

    predictions: Array
    targets: Array
    names: Sequence[Name]
    diagonals: Array
    labels: int
    candidates: int
    flat: int = 0
    crowds: int = 0

    def __len__(self) -> int:
        return len(self.targets)


def match_images(
    client: Client,
    images: Iterable[Image],
    *,
    method: Matching = "optimal",
    reach: float = REACH,
    min_score: float = 0.0,
) -> Pairs:
    """Gives predictions the labels of their class that they fit best, one to one, whether they overlap or not.

    The fit is the IoU less the squared distance of the centers, over that of the enclosing diagonal (DIoU), so that it
    tells near from far where boxes are apart. What several annotators drew is matched for each of them.

    Args:
        client: computes the fit.
        images: with labels and predictions.
        method: "optimal", for the largest sum of fits, or "greedy", where surer predictions choose first.
        reach: diagonals of the label that the centers may lie apart; beyond, boxes are two objects.
        min_score: least score of a prediction that takes part.

    Raises:
        BoxlossError: the server could not compute.
    """
    found: list[tuple[Name, Array, Array, float]] = []
    labels = candidates = flat = crowds = 0
    for image in images:
        size = (image.width, image.height)
        diagonal = np.nan if None in size or 1.0 in size else float(np.hypot(*size))  # type: ignore[arg-type]
        sides = image.labels.boxes[:, 2:] - image.labels.boxes[:, :2]
        solid = (sides > 0).all(axis=1)
        usable = solid & ~image.labels.crowd
        labels += len(image.labels) - int(image.labels.crowd.sum())
        crowds += int(image.labels.crowd.sum())
        flat += int((~solid & ~image.labels.crowd).sum())
        if image.predictions is None:
            continue
        sure = np.flatnonzero(image.predictions.scores >= min_score)
        candidates += len(sure)
        for name in dict.fromkeys(image.labels.annotators):
            drawn = np.flatnonzero(usable & np.equal(image.labels.annotators, name))
            for row, column in _match(client, image.predictions, sure, image.labels, drawn, method, reach):
                label_id = image.labels.ids[column]
                named = Name(
                    image.image_id,
                    column if label_id is None else label_id,
                    image.predictions.rows[row],
                    image.labels.classes[column],
                )
                found.append((named, image.predictions.boxes[row], image.labels.boxes[column], diagonal))
    return Pairs(
        np.array([prediction for _, prediction, _, _ in found]).reshape(-1, 4),
        np.array([target for _, _, target, _ in found]).reshape(-1, 4),
        [name for name, _, _, _ in found],
        np.array([diagonal for _, _, _, diagonal in found], np.float64),
        labels,
        candidates,
        flat,
        crowds,
    )


def _match(
    client: Client,
    predictions: Predictions,
    rows: Rows,
    labels: Labels,
    columns: Rows,
    method: Matching,
    reach: float,
) -> Iterator[tuple[int, int]]:
    """Rows of predictions and labels that belong together."""
    boxes, targets = predictions.boxes[rows], labels.boxes[columns]
    classes = np.array(predictions.classes, object)[rows][:, None] == np.array(labels.classes, object)[columns]
    apart = np.linalg.norm(_centers(boxes)[:, None] - _centers(targets), axis=2)
    allowed = classes & (apart <= reach * np.linalg.norm(targets[:, 2:] - targets[:, :2], axis=1))
    if not allowed.any():
        return
    fit = (1 + client.pairwise_iou(boxes, targets, metric="diou")) / 2  # Above 0, as a match must be.
    free = np.zeros(len(targets), bool)
    for row, column in enumerate(match(fit, predictions.scores[rows], allowed, free, 0.0, method)):
        if column != NONE:
            yield int(rows[row]), int(columns[column])


def _centers(boxes: Array) -> Array:
    centers: Array = (boxes[:, :2] + boxes[:, 2:]) / 2
    return centers
