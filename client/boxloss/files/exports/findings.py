"""Findings as rows for other programs."""

from __future__ import annotations

from typing import Any

from boxloss.audit.finding import Finding
from boxloss.audit.image import Image


def row_of(finding: Finding, image: Image) -> dict[str, Any]:
    """A finding as JSON has it, with the name of its picture, who drew the label, and the prediction's row in its file.

    Args:
        finding: of the image.
        image: as it was audited.
    """
    index = finding.prediction_index
    annotator = None if finding.label is None else image.labels.annotators[finding.label]
    return finding.as_dict() | {
        "prediction_index": None if index is None or image.predictions is None else image.predictions.rows[index],
        "file_name": image.file_name,
        "annotator": annotator or None,
    }
