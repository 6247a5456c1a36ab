"""Overlaps of many images in one computation."""

from __future__ import annotations

import numpy as np
import torch

from boxloss.audit.image import Image, Labels, Predictions
from boxloss.audit.overlaps import overlaps_of
from boxloss_server.engine.overlaps import ImageBoxes, overlaps


def some_image(rng: np.random.Generator, labels: int, predictions: int) -> Image:
    corners = rng.uniform(0, 300, (labels + predictions, 2))
    boxes = np.hstack([corners, corners + rng.uniform(0, 150, (labels + predictions, 2)).round()])
    return Image(
        0,
        Labels(boxes[:labels], ["a"] * labels, crowd=rng.random(labels) < 0.3),
        Predictions(boxes[labels:], ["a"] * predictions, np.ones(predictions)),
    )


def test_many_images_at_once_are_as_each_alone_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    sizes = [(0, 0), (0, 5), (5, 0), (1, 1), *rng.integers(0, 60, (40, 2)).tolist()]
    images = [some_image(rng, *size) for size in sizes]
    boxes = [
        ImageBoxes(image.predictions.boxes, image.labels.boxes, image.labels.crowd)
        for image in images
        if image.predictions is not None
    ]
    for image, computed in zip(images, overlaps(boxes, torch.device("cpu")), strict=True):
        alone = overlaps_of(image)
        np.testing.assert_array_equal(computed.predictions, alone.predictions)
        np.testing.assert_array_equal(computed.labels, alone.labels)


def test_pairs_are_predictions_and_labels_against_labels() -> None:
    image = ImageBoxes(np.zeros((3, 4)), np.zeros((2, 4)), np.zeros(2, bool))
    assert image.pairs == (3 + 2) * 2
