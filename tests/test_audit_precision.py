"""Errors that were put into real labels are found before what is no error. docs/audit-quality.md has more."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from benchmarks.audit.precision import Disputed, Suspicion, average_precision, disputed, mean_precision, suspicions
from benchmarks.audit.sets import SETS, images_of

from boxloss.audit.finding import Kind
from boxloss.audit.image import Image, Labels, Predictions
from boxloss.audit.rules import Rules
from tests.injector import INJECTED, Injected, Spoiled, inject
from tests.shared_data import folder

CAT = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)

PAGE = (Path(__file__).parent.parent / "docs/audit-quality.md").read_text(encoding="utf-8")
PUBLISHED: dict[tuple[str, str], dict[Kind, float]] = {}
"""Average precision by set and tool, from the page; cleanlab has not all kinds."""
for row in re.findall(r"^\| (?:coco|voc) \|.*$", PAGE, re.MULTILINE):
    name, tool, *cells = (cell.strip() for cell in row.strip("|").split("|"))
    PUBLISHED[name, tool] = {kind: float(cell) for kind, cell in zip(INJECTED, cells, strict=True) if cell}

TOOLS = {"boxloss": Rules(), "boxloss, --min-score 0.05": Rules(min_score=0.05)}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", SETS)
def test_errors_in_real_labels_are_found_before_others(name: str, tool: str) -> None:
    folder("")
    precision = mean_precision(images_of(name), range(6), partial(suspicions, rules=TOOLS[tool]))
    assert precision[Kind.SPURIOUS] >= 0.9
    assert precision[Kind.DUPLICATE] >= 0.9
    theirs = PUBLISHED[name, "cleanlab"]
    assert theirs.keys() == {Kind.MISSING, Kind.BAD_LOCATION, Kind.WRONG_CLASS}
    for kind, figure in theirs.items():
        assert precision[kind] > figure
    assert precision == pytest.approx(PUBLISHED[name, tool], abs=0.01), "docs/audit-quality.md is not up to date"


# How that is reckoned.


def spoiled(*errors: Injected, labels: int = 4) -> Spoiled:
    image = Image(
        0,
        Labels(np.array([CAT] * labels), ["cat"] * labels),
        Predictions(np.array([CAT, FAR]), ["cat", "cat"], np.array([0.9, 0.8])),
    )
    return Spoiled(image, errors, tuple(range(labels)))


def error(kind: Kind, *labels: int) -> Injected:
    return Injected(kind, frozenset(labels), None if labels else np.array(FAR))


NOTHING = Disputed(np.zeros(4, bool), np.zeros(2, bool))


def test_precision_is_that_at_the_rank_of_each_error() -> None:
    image = spoiled(error(Kind.WRONG_CLASS, 0), error(Kind.WRONG_CLASS, 3))
    found = [Suspicion(0, score, label) for label, score in enumerate([0.9, 0.8, 0.7, 0.6])]
    assert average_precision(found, Kind.WRONG_CLASS, [image], [NOTHING]) == (1 / 1 + 2 / 4) / 2
    assert average_precision(found[::-1], Kind.WRONG_CLASS, [image], [NOTHING]) == (1 / 1 + 2 / 4) / 2
    assert average_precision(found[:1], Kind.WRONG_CLASS, [image], [NOTHING]) == 1 / 2
    assert average_precision([], Kind.WRONG_CLASS, [image], [NOTHING]) == 0


def test_either_label_of_a_duplicate_hits_it_once() -> None:
    image = spoiled(error(Kind.DUPLICATE, 0, 1), error(Kind.DUPLICATE, 2, 3))
    found = [Suspicion(0, 0.9, 1), Suspicion(0, 0.8, 0), Suspicion(0, 0.7, 2)]
    assert average_precision(found, Kind.DUPLICATE, [image], [NOTHING]) == (1 / 1 + 2 / 3) / 2


def test_a_missing_label_is_hit_by_a_prediction_in_its_place() -> None:
    image = spoiled(error(Kind.MISSING))
    assert average_precision([Suspicion(0, 0.9, prediction=0)], Kind.MISSING, [image], [NOTHING]) == 0
    assert average_precision([Suspicion(0, 0.9, prediction=1)], Kind.MISSING, [image], [NOTHING]) == 1


def test_what_was_disputed_before_has_no_rank_unless_it_is_an_error() -> None:
    image = spoiled(error(Kind.WRONG_CLASS, 1))
    before = Disputed(np.array([True, True, False, False]), np.zeros(2, bool))
    found = [Suspicion(0, 0.9, 0), Suspicion(0, 0.8, 1)]
    assert average_precision(found, Kind.WRONG_CLASS, [image], [NOTHING]) == 1 / 2
    assert average_precision(found, Kind.WRONG_CLASS, [image], [before]) == 1


def test_disputed_is_what_has_no_partner_of_its_class() -> None:
    labels = Labels(np.array([CAT, FAR, CAT]), ["cat", "dog", "cat"], crowd=np.array([False, False, True]))
    predictions = Predictions(np.array([CAT, FAR]), ["cat", "cat"], np.array([0.9, 0.8]))
    before = disputed(Image(0, labels, predictions))
    assert before.labels.tolist() == [False, True, True]
    assert before.predictions.tolist() == [False, True]


def test_injected_errors_are_as_they_are_said_to_be() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (2000, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 100, (2000, 2))])
    images = [Image(0, Labels(boxes, rng.choice(["cat", "dog"], 2000).tolist()), None, 400, 400)]
    (one,), (again,), (other,) = inject(images, 0), inject(images, 0), inject(images, 1)
    np.testing.assert_array_equal(one.image.labels.boxes, again.image.labels.boxes)
    assert one.image.labels.classes != other.image.labels.classes
    before, after = images[0].labels, one.image.labels
    for each in one.errors:
        rows = sorted(each.labels)
        origins = [one.origins[row] for row in rows]
        match each.kind:
            case Kind.MISSING:
                assert rows == []
                assert (after.boxes != each.box).any(axis=1).all()
            case Kind.SPURIOUS:
                assert origins == [-1]
            case Kind.WRONG_CLASS:
                assert after.classes[rows[0]] != before.classes[origins[0]]
            case Kind.DUPLICATE:
                assert len(rows) == 2
                assert origins[0] == origins[1]
            case Kind.BAD_LOCATION:
                assert (after.boxes[rows[0]] != before.boxes[origins[0]]).any()
    untouched = set(range(len(after))) - {row for each in one.errors for row in each.labels}
    for row in untouched:
        np.testing.assert_array_equal(after.boxes[row], before.boxes[one.origins[row]])
