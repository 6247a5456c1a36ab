"""What tests of audits share."""

from __future__ import annotations

import numpy as np

from boxloss.audit.summary import Summary


def assert_same(actual: Summary, expected: Summary) -> None:
    """Holds one summary against another, field by field."""
    np.testing.assert_array_equal(actual.iou_histogram, expected.iou_histogram)
    for name in (
        "images",
        "labels",
        "predictions",
        "findings",
        "classes",
        "confusion",
        "worst_images",
        "worst_findings",
    ):
        assert getattr(actual, name) == getattr(expected, name), name
