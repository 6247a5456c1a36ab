"""Boxes through the server, in parts, so that progress can be shown and no call takes long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxloss.calls.client import Client
from boxloss.compare.matching import Track, untracked
from boxloss.contract.arrays import Array
from boxloss.contract.words import BoxFormat
from boxloss.errors import fault
from boxloss.files.boxes import NAMES, BoxFile
from boxloss.losses import IoU, Loss

_PART = 2**16
_NAMED = 3
"""Invalid boxes that a message names."""


def valid_rows(client: Client, file: BoxFile, *, mask: bool = False, track: Track = untracked) -> NDArray[np.bool_]:
    """Asks the server which boxes of a file are valid.

    Raises:
        InvalidInputError: some are not, and `mask` is False; the message names them.
        BoxlossError: the server could not compute.
    """
    valid = np.ones(len(file), bool)
    for part in track(_parts(len(file)), f"checking {file.path}"):
        boxes = file.boxes[part]
        valid[part] = client.evaluate(boxes, boxes, IoU(), box_format=file.box_format, invalid="mask").valid
    rows = np.flatnonzero(~valid)
    if len(rows) and not mask:
        named = ", ".join(f"{file.place(row)} {file.boxes[row].tolist()}" for row in rows[:_NAMED])
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        raise fault(
            file.path,
            f"{named}{more}: no valid {file.box_format}, for it is inverted, not finite or too large; "
            "correct it, or --box-format, or give --invalid mask",
        )
    return valid


def score(
    client: Client,
    predictions: Array,
    targets: Array,
    losses: Mapping[str, Loss],
    *,
    gradients: bool = False,
    box_format: BoxFormat = "xyxy",
    image_size: tuple[float, float] | None = None,
    running_mean: float | None = None,
    track: Track = untracked,
) -> dict[str, Array]:
    """Evaluates losses over pairs of valid boxes.

    Args:
        client: evaluates.
        predictions: boxes of shape (N, 4), or as the format says.
        targets: one for each prediction, of the same shape.
        losses: each with its name.
        gradients: whether there are columns for the gradients with respect to the predictions.
        box_format: of the boxes and gradients.
        image_size: width and height of the image, for losses that need it.
        running_mean: of 1 - IoU, for losses that need it.
        track: shows the progress.

    Returns:
        Columns of N numbers: "iou", then of each loss for example "loss_ciou", and "gradient_ciou_x1" and so on.

    Raises:
        BoxlossError: the server could not compute.
    """
    parts: list[dict[str, Array]] = []
    for part in track(_parts(len(predictions)), "scoring pairs"):
        results = client.compare(
            predictions[part],
            targets[part],
            list(losses.values()),
            gradients=gradients,
            box_format=box_format,
            image_size=image_size,
            running_mean=running_mean,
        )
        columns = {"iou": results[0].iou}
        for name, result in zip(losses, results, strict=True):
            columns[f"loss_{name}"] = result.loss
            if result.gradient is not None:
                for coordinate, gradient in zip(NAMES[box_format][0], result.gradient.T, strict=True):
                    columns[f"gradient_{name}_{coordinate}"] = gradient
        parts.append(columns)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _parts(count: int) -> list[slice[Any, Any, Any]]:
    """One at least, for the names of the columns."""
    return [slice(start, start + _PART) for start in range(0, max(count, 1), _PART)]
