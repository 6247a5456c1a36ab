"""Which prediction is compared with which target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from boxloss.calls.client import Client
from boxloss.contract.arrays import Array
from boxloss.errors import fault
from boxloss.files.boxes import BoxFile

Rows: TypeAlias = NDArray[np.int64]
Track: TypeAlias = Callable[[Sequence[Any], str], Iterable[Any]]
"""Goes over work as it is described, and shows the progress."""

NONE = -1
"""Instead of a row, where a box has no counterpart."""


def untracked(work: Sequence[Any], description: str) -> Iterable[Any]:
    """A `Track` that shows nothing."""
    return work


@dataclass(frozen=True)
class Matching:
    """Predictions and targets side by side, every box of both exactly once.

    Attributes:
        predictions: rows of the predictions; NONE beside a target that has none.
        targets: rows of the targets; NONE beside a prediction that has none.
        status: "paired" (to be compared); "missed", a target without prediction; "spurious", a prediction without
            target; "invalid", where a box is; "crowd", a target that stands for many objects.
    """

    predictions: Rows
    targets: Rows
    status: NDArray[np.str_]

    @property
    def paired(self) -> NDArray[np.bool_]:
        """Where there is a pair to compare."""
        return np.equal(self.status, "paired")


def match_rows(
    predictions: BoxFile,
    targets: BoxFile,
    valid_predictions: NDArray[np.bool_],
    valid_targets: NDArray[np.bool_],
) -> Matching:
    """Compares row i with row i.

    Raises:
        InvalidInputError: the files have different numbers of boxes.
    """
    if len(predictions) != len(targets):
        raise fault(
            targets.path,
            f"has {len(targets)} boxes, and {predictions.path} has {len(predictions)}; "
            "row i of one is compared with row i of the other, so give as many",
        )
    rows = np.arange(len(predictions))
    return Matching(rows, rows, np.where(valid_predictions & valid_targets, "paired", "invalid"))


def match_coco(
    client: Client,
    predictions: BoxFile,
    targets: BoxFile,
    valid_predictions: NDArray[np.bool_],
    valid_targets: NDArray[np.bool_],
    *,
    min_iou: float = 0.5,
    track: Track = untracked,
) -> Matching:
    """Gives each prediction the target that it fits best, as COCO's evaluation does.

    In each image, the predictions choose in descending order of score; each takes, of the targets of its category that
    are still free, that of the highest IoU, if it is above 0 and at least `min_iou`. Invalid boxes and crowds take no
    part.

    Args:
        client: computes the IoU.
        predictions: from a COCO file; those without a score choose last.
        targets: from a COCO file.
        valid_predictions: which predictions are valid boxes.
        valid_targets: which targets are valid boxes.
        min_iou: the least IoU of a pair; 0.5 is the lowest that COCO uses.
        track: shows the progress over the images.

    Raises:
        BoxlossError: the server could not compute.
    """
    if not predictions.coco or not targets.coco:
        raise ValueError("both files must be COCO")
    choosers, chosen = predictions.coco, targets.coco
    order = np.argsort(-choosers.scores, kind="stable")
    by_image = _by_image(choosers.image_ids, order[valid_predictions[order]])
    free_by_image = _by_image(chosen.image_ids, np.flatnonzero(valid_targets & ~chosen.crowd))
    partner = np.full(len(targets), NONE)
    for image in track(sorted(by_image.keys() & free_by_image.keys()), "matching images"):
        rows, columns = by_image[image], free_by_image[image]
        iou = client.pairwise_iou(predictions.boxes[rows], targets.boxes[columns], box_format="xywh")
        iou[choosers.category_ids[rows][:, None] != chosen.category_ids[columns]] = 0
        for row, column in choose(iou, min_iou):
            partner[columns[column]] = rows[row]
    alone = np.setdiff1d(np.arange(len(predictions)), partner)
    target_status = np.select([chosen.crowd, ~valid_targets, partner == NONE], ["crowd", "invalid", "missed"], "paired")
    return Matching(
        np.concatenate([partner, alone]),
        np.concatenate([np.arange(len(targets)), np.full(len(alone), NONE)]),
        np.concatenate([target_status, np.where(valid_predictions[alone], "spurious", "invalid")]),
    )


def choose(iou: Array, min_iou: float) -> list[tuple[int, int]]:
    """Lets each row in turn take the free column of its highest IoU, if above 0 and at least `min_iou`.

    Returns:
        (row, column) of each pair. Of equal columns, the first is taken.
    """
    iou = iou.copy()
    pairs = []
    for row, values in enumerate(iou):
        column = int(values.argmax())
        if values[column] > 0 and values[column] >= min_iou:
            pairs.append((row, column))
            iou[:, column] = 0
    return pairs


def _by_image(image_ids: Rows, rows: Rows) -> dict[int, Rows]:
    """The rows of each image, in their order."""
    rows = rows[np.argsort(image_ids[rows], kind="stable")]
    images, starts = np.unique(image_ids[rows], return_index=True)
    return dict(zip(images.tolist(), np.split(rows, starts[1:]), strict=False))  # No rows split into one empty group.
