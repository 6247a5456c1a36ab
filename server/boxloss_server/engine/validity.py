"""Boxes that are no boxes: finding them, and telling which and why."""

from __future__ import annotations

import numpy as np
import torch

from boxloss.contract.words import BoxFormat
from boxloss.errors import Violation
from boxloss_server.engine.formats import LARGEST, misshapen, unusable
from boxloss_server.engine.pairs import Array, Rows

_ROWS_NAMED = 5

_SHAPE_FAULTS: dict[BoxFormat, str] = {
    "xyxy": "inverted; xyxy needs left <= right and top <= bottom: correct them, the box format, or have them masked",
    "xywh": "inverted; xywh needs width and height of 0 or more: correct them, the box format, or have them masked",
    "cxcywh": "inverted; cxcywh needs width and height of 0 or more: correct them, the box format, or have them masked",
    "cxcywha_degrees": "without size; oriented boxes need width and height above 0: correct them, or have them masked",
    "cxcywha_radians": "without size; oriented boxes need width and height above 0: correct them, or have them masked",
    "quad": "not convex; send the corners in their order around the box, without crossing, or have them masked",
}


def invalid_rows(boxes: Array, box_format: BoxFormat) -> Rows:
    """Rows of boxes of shape (N, K) that are not finite, too large or misshapen."""
    planes = torch.tensor(boxes.T)
    return np.flatnonzero((unusable(planes) | misshapen(planes, box_format)).numpy())


def violations(boxes: Array, field: str, box_format: BoxFormat) -> list[Violation]:
    """What is wrong with boxes of shape (N, K), naming the first rows; empty where all are valid."""
    planes = torch.tensor(boxes.T)
    beyond, wrong = unusable(planes), misshapen(planes, box_format)
    return [
        *named_rows(
            np.flatnonzero(beyond.numpy()),
            field,
            f"not finite, or beyond {LARGEST[planes.dtype]:g}; send finite numbers",
        ),
        *named_rows(np.flatnonzero((wrong & ~beyond).numpy()), field, _SHAPE_FAULTS[box_format]),
    ]


def named_rows(rows: Rows, field: str, fault: str) -> list[Violation]:
    """A fault that some rows have, naming the first of them; empty where none has it."""
    if not len(rows):
        return []
    named = ", ".join(map(str, rows[:_ROWS_NAMED]))
    more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    subject = f"row {named} is" if len(rows) == 1 else f"rows {named}{more} are"
    return [Violation(field, f"{subject} {fault}")]
