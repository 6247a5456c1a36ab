"""Tasks to import into Label Studio."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boxloss.audit.finding import Corners, Finding
from boxloss.audit.image import Id, Image

_CONTROLS = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
"""The names in Label Studio's own template for boxes."""


def write_labelstudio(images: Iterable[Image], findings: Mapping[Id, Sequence[Finding]], path: Path) -> int:
    """Writes a task for each image with findings: its corrected labels to begin with, and what was found as text.

    Args:
        images: with corrected labels.
        findings: by image.
        path: of the file.

    Returns:
        How many images were left out, because their size is not known: Label Studio counts in percent.

    Raises:
        OSError: it cannot be written.
    """
    tasks: list[dict[str, Any]] = []
    left_out = 0
    for image in images:
        found = findings.get(image.image_id, ())
        if not found:
            continue
        if not (image.width and image.height):
            left_out += 1
            continue
        boxes = zip(image.labels.classes, image.labels.boxes.tolist(), strict=True)
        tasks.append(
            {
                "data": {
                    "image": image.file_name or str(image.image_id),
                    "findings": [finding.message for finding in found],
                },
                "predictions": [
                    {
                        "model_version": "boxloss audit",
                        "score": max(finding.score for finding in found),
                        "result": [_rectangle(name, box, image.width, image.height) for name, box in boxes],
                    }
                ],
            }
        )
    path.write_text(json.dumps(tasks))
    return left_out


def _rectangle(name: str, box: Corners, width: float, height: float) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return _CONTROLS | {
        "original_width": width,
        "original_height": height,
        "value": {
            "x": 100 * x1 / width,
            "y": 100 * y1 / height,
            "width": 100 * (x2 - x1) / width,
            "height": 100 * (y2 - y1) / height,
            "rotation": 0,
            "rectanglelabels": [name],
        },
    }
