"""How well a tool's suspicions are ranked, where it is known what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import numpy as np
from tests.injector import INJECTED, Injected, Spoiled, inject

from boxloss.audit.finding import Kind
from boxloss.audit.image import Flags, Image
from boxloss.audit.matching import NONE, match
from boxloss.audit.overlaps import ious, overlaps_of
from boxloss.audit.rules import Rules, audit_image

_SAME = 0.5
"""IoU from which on two boxes mean the same object."""


@dataclass(frozen=True)
class Suspicion:
    """Something that a tool takes for wrong.

    Attributes:
        image: its number.
        score: how sure the tool is.
        label: row of the label; None where one is missing.
        prediction: row of the prediction that has no label; None for a label.
    """

    image: int
    score: float
    label: int | None = None
    prediction: int | None = None


Find: TypeAlias = Callable[[Sequence[Image]], Mapping[Kind, Sequence[Suspicion]]]
"""A tool: what it suspects in images, by kind."""


@dataclass(frozen=True)
class Disputed:
    """What labels and predictions disagreed about before errors were injected; nobody knows who was right.

    Attributes:
        labels: those without a prediction.
        predictions: those without a label.
    """

    labels: Flags
    predictions: Flags


def disputed(image: Image) -> Disputed:
    """Finds what has no partner of its class with an IoU of 0.5, as COCO matches."""
    labels, predictions = image.labels, image.predictions
    assert predictions is not None
    same_class = np.array(predictions.classes)[:, None] == np.array(labels.classes)
    matched = match(overlaps_of(image).predictions, predictions.scores, same_class, labels.crowd, _SAME, "greedy")
    without = np.ones(len(labels), bool)
    without[matched[matched != NONE]] = False
    return Disputed(without, matched == NONE)


def mean_precision(images: Sequence[Image], seeds: Iterable[int], find: Find) -> dict[Kind, float]:
    """The mean of a tool's average precision over errors that are injected with each seed, by the kinds it knows."""
    before = [disputed(image) for image in images]
    seen: dict[Kind, list[float]] = {}
    for seed in seeds:
        spoiled = inject(images, seed)
        for kind, found in find([each.image for each in spoiled]).items():
            seen.setdefault(kind, []).append(average_precision(found, kind, spoiled, before))
    return {kind: fmean(precisions) for kind, precisions in seen.items()}


def suspicions(images: Sequence[Image], rules: Rules) -> dict[Kind, list[Suspicion]]:
    """What the audit finds, by the kinds of errors that are injected."""
    found: dict[Kind, list[Suspicion]] = {kind: [] for kind in INJECTED}
    for number, image in enumerate(images):
        for finding in audit_image(image, rules).findings:
            if finding.kind in found:
                row = finding.prediction_index if finding.label is None else None
                found[finding.kind].append(Suspicion(number, finding.score, finding.label, row))
    return found


def average_precision(
    found: Sequence[Suspicion], kind: Kind, spoiled: Sequence[Spoiled], before: Sequence[Disputed]
) -> float:
    """The mean, over all injected errors of a kind, of the precision at the rank where each is hit; 0 where none hits.

    An error is hit once: by a label that shows it or, where a label was removed, by a prediction in its place. What
    hits none, but was disputed before, has no rank: nobody knows whether it is right.

    Args:
        found: what a tool takes for errors of this kind, in any order.
        kind: of the errors.
        spoiled: the images, with their errors.
        before: what was disputed in each of them.
    """
    errors = {number: [error for error in each.errors if error.kind is kind] for number, each in enumerate(spoiled)}
    count = sum(map(len, errors.values()))
    ranked = hit = 0
    total = 0.0
    for suspicion in sorted(found, key=lambda each: -each.score):
        image, left = spoiled[suspicion.image], errors[suspicion.image]
        place = next((place for place, error in enumerate(left) if _hits(suspicion, error, image.image)), None)
        if place is not None:
            del left[place]
            ranked += 1
            hit += 1
            total += hit / ranked
        elif not _is_disputed(suspicion, image, before[suspicion.image]):
            ranked += 1
    return total / count if count else math.nan


def _hits(suspicion: Suspicion, error: Injected, image: Image) -> bool:
    if suspicion.prediction is None:
        return suspicion.label in error.labels
    if error.box is None or image.predictions is None:
        return False
    return bool(ious(image.predictions.boxes[suspicion.prediction][None], error.box[None]).item() >= _SAME)


def _is_disputed(suspicion: Suspicion, image: Spoiled, before: Disputed) -> bool:
    if suspicion.label is None:
        return bool(before.predictions[suspicion.prediction])
    origin = image.origins[suspicion.label]
    return origin >= 0 and bool(before.labels[origin])
