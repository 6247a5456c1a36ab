"""What an audit says about all images together."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxloss.audit.finding import Finding, Kind
from boxloss.audit.image import Id, Image
from boxloss.audit.rules import ImageAudit

BINS = 20
"""Of the distribution of IoUs from 0 to 1."""


@dataclass
class ClassSummary:
    """One class.

    Attributes:
        labels: how many labels it has.
        matched: of these, with a prediction of the same class.
        mean_iou: of the matched; 0 without any.
        findings: about its labels, and about labels of it that are missing, by kind.
    """

    labels: int = 0
    matched: int = 0
    mean_iou: float = 0.0
    findings: Counter[Kind] = field(default_factory=Counter)


@dataclass(frozen=True)
class Summary:
    """All images of an audit.

    Attributes:
        images: how many.
        labels: how many boxes.
        predictions: how many boxes.
        findings: how many of each kind.
        classes: by name.
        iou_histogram: of all matched labels and predictions: how many in each of `BINS` equal parts of 0 to 1.
        confusion: how often a label's class met a prediction's, None for neither.
        worst_images: most findings first, each with the sum of their scores.
        worst_findings: the surest first.
    """

    images: int
    labels: int
    predictions: int
    findings: Mapping[Kind, int]
    classes: Mapping[str, ClassSummary]
    iou_histogram: NDArray[np.int64]
    confusion: Mapping[tuple[str | None, str | None], int]
    worst_images: tuple[tuple[Id, float], ...]
    worst_findings: tuple[Finding, ...]


class Tally:
    """Sums up an audit image by image, in memory that does not grow with their number.

    Args:
        worst: how many images and findings are remembered.
    """

    def __init__(self, worst: int = 100) -> None:
        self._worst = worst
        self._images = self._labels = self._predictions = 0
        self._findings: Counter[Kind] = Counter()
        self._classes: defaultdict[str, ClassSummary] = defaultdict(ClassSummary)
        self._histogram = np.zeros(BINS, np.int64)
        self._confusion: Counter[tuple[str | None, str | None]] = Counter()
        self._worst_images: list[tuple[float, int, Id]] = []
        self._worst_findings: list[tuple[float, int, Finding]] = []

    def add(self, image: Image, audited: ImageAudit) -> None:
        """Adds an image."""
        self._images += 1
        self._labels += len(image.labels)
        self._predictions += len(image.predictions or ())
        for name in image.labels.classes:
            self._classes[name].labels += 1
        for match in audited.matches:
            self._confusion[match.label, match.prediction] += 1
            if match.iou is not None:
                self._histogram[min(int(match.iou * BINS), BINS - 1)] += 1
                if match.label == match.prediction and match.label is not None:
                    seen = self._classes[match.label]
                    seen.matched += 1
                    seen.mean_iou += (match.iou - seen.mean_iou) / seen.matched
        for finding in audited.findings:
            self._findings[finding.kind] += 1
            self._classes[finding.class_name].findings[finding.kind] += 1
            # Of equally sure ones, those that came first stay: the second number decides before findings are compared.
            self._keep(self._worst_findings, (finding.score, -sum(self._findings.values()), finding))
        if audited.findings:
            self._keep(
                self._worst_images, (sum(each.score for each in audited.findings), -self._images, image.image_id)
            )

    def summary(self) -> Summary:
        """All that has been added."""
        return Summary(
            self._images,
            self._labels,
            self._predictions,
            {kind: self._findings[kind] for kind in Kind},
            dict(sorted(self._classes.items())),
            self._histogram.copy(),
            dict(self._confusion),
            tuple((image_id, score) for score, _, image_id in sorted(self._worst_images, reverse=True)),
            tuple(finding for _, _, finding in sorted(self._worst_findings, reverse=True)),
        )

    def _keep(self, worst: list[Any], each: tuple[Any, ...]) -> None:
        (heapq.heappushpop if len(worst) >= self._worst else heapq.heappush)(worst, each)
