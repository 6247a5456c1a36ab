"""What is audited, and what is found, to messages and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from boxloss.audit.image import Image, Labels, Predictions
from boxloss.audit.rules import Rules, audit_image
from boxloss.audit.summary import Tally
from boxloss.audit.wire import (
    audit_from_message,
    audit_to_message,
    image_from_message,
    image_to_message,
    rules_from_message,
    rules_to_message,
    summary_from_message,
    summary_to_message,
)
from boxloss.errors import InvalidInputError, UnsupportedError
from boxloss.v1.audit_service_pb2 import AuditImage, AuditRules
from tests.audits import assert_same


def some_image(seed: int, image_id: str | int) -> Image:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 300, (24, 2))
    boxes = np.hstack([corners, corners + rng.uniform(1, 150, (24, 2))])
    names = rng.choice(["cat", "dog", "fox"], 24).tolist()
    labels = Labels(boxes[:12], names[:12], [0, "0", None, *range(9)], rng.random(12) < 0.2, rng.random(12) < 0.2)
    return Image(image_id, labels, Predictions(boxes[12:], names[12:], rng.random(12)), 400, 500.5)


@pytest.mark.parametrize("image_id", [0, 7, "", "0", "häuser/1.jpg"])
def test_an_image_comes_back_as_it_went(image_id: str | int) -> None:
    image = some_image(0, image_id)
    back = image_from_message(AuditImage.FromString(image_to_message(image).SerializeToString()))
    assert (back.image_id, back.width, back.height) == (image_id, 400, 500.5)
    np.testing.assert_array_equal(back.labels.boxes, image.labels.boxes)
    assert (back.labels.classes, back.labels.ids) == (image.labels.classes, image.labels.ids)
    np.testing.assert_array_equal(back.labels.crowd, image.labels.crowd)
    np.testing.assert_array_equal(back.labels.difficult, image.labels.difficult)
    assert back.predictions is not None
    assert image.predictions is not None
    np.testing.assert_array_equal(back.predictions.boxes, image.predictions.boxes)
    np.testing.assert_array_equal(back.predictions.scores, image.predictions.scores)
    assert back.predictions.classes == image.predictions.classes


def test_no_model_is_not_a_model_that_found_nothing() -> None:
    labels = some_image(0, 1).labels
    nothing = Predictions(np.empty((0, 4)), (), np.empty(0))
    assert image_from_message(image_to_message(Image(1, labels))).predictions is None
    assert image_from_message(image_to_message(Image(1, labels, nothing))).predictions is not None


def test_findings_and_the_summary_come_back_as_they_went() -> None:
    tally = Tally(5)
    kinds: set[str] = set()
    for seed in range(20):
        image = some_image(seed, f"image {seed}")
        audited = audit_image(image)
        tally.add(image, audited)
        kinds.update(finding.kind for finding in audited.findings)
        assert audit_from_message(audit_to_message(audited)) == audited
    assert len(kinds) >= 4
    summary = tally.summary()
    assert_same(summary_from_message(summary_to_message(summary)), summary)


def test_rules_come_back_as_they_went_and_have_defaults() -> None:
    rules = Rules("optimal", 0.4, 0.0)
    assert rules_from_message(rules_to_message(rules, 7)) == (rules, 7)
    assert rules_from_message(AuditRules()) == (Rules(), 100)


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda image: image.ClearField("id"), "id"),
        (lambda image: image.labels.classes.append(0), r"labels\.classes"),
        (lambda image: image.labels.classes.__setitem__(0, 99), r"labels\.classes"),
        (lambda image: image.predictions.classes.__setitem__(0, -1), r"predictions\.classes"),
        (lambda image: setattr(image.labels.boxes, "data", b"1234"), r"labels\.boxes"),
        (lambda image: setattr(image.labels.boxes, "data", b"12345678"), r"labels\.boxes"),
        (lambda image: setattr(image.predictions.scores, "data", np.full(12, 2.0).tobytes()), r"predictions\.scores"),
        (lambda image: setattr(image.predictions.boxes, "data", np.full(48, np.nan).tobytes()), r"predictions\.boxes"),
        (lambda image: image.labels.crowd.append(True), r"labels\.crowd"),
        (lambda image: setattr(image.size, "width", -1.0), "size"),
    ],
)
def test_a_bad_image_is_named_by_its_field(spoil: Callable[[AuditImage], None], field: str) -> None:
    message = image_to_message(some_image(3, 1))
    message.labels.ClearField("crowd")
    spoil(message)
    with pytest.raises(InvalidInputError, match=field):
        image_from_message(message)


def test_what_is_newer_than_this_version_is_refused() -> None:
    unknown = AuditImage()
    unknown.MergeFromString(b"\xf8\x3f\x01")  # Field 1023.
    with pytest.raises(UnsupportedError, match="field 1023"):
        image_from_message(unknown)
    with pytest.raises(UnsupportedError, match="matching"):
        rules_from_message(AuditRules(matching=9))  # type: ignore[arg-type]


def test_too_many_of_the_worst_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="worst_count"):
        rules_from_message(AuditRules(worst_count=10_001))
