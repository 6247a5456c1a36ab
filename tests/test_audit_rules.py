"""What an audit finds in one image, kind by kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import ArrayLike

from boxloss.audit.finding import Finding, Kind
from boxloss.audit.image import Image, Labels, Predictions
from boxloss.audit.rules import Match, Rules
from boxloss.audit.rules import audit_image as audit
from boxloss.errors import InvalidInputError

CAT = (100.0, 100.0, 200.0, 200.0)
DOG = (300.0, 100.0, 420.0, 180.0)
FAR = (500.0, 300.0, 560.0, 380.0)


def moved(box: Sequence[float], x: float, y: float = 0.0) -> tuple[float, ...]:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def image(
    labels: Sequence[tuple[Sequence[float], str]],
    predictions: Sequence[tuple[Sequence[float], str, float]] | None = (),
    crowd: ArrayLike = (),
    difficult: ArrayLike = (),
    size: tuple[float, float] = (640.0, 480.0),
) -> Image:
    found = None
    if predictions is not None:
        found = Predictions(
            np.array([box for box, _, _ in predictions]).reshape(-1, 4),
            [name for _, name, _ in predictions],
            np.array([score for _, _, score in predictions]),
        )
    boxes = np.array([box for box, _ in labels]).reshape(-1, 4)
    names = [name for _, name in labels]
    ids = [100 + row for row in range(len(labels))]
    return Image(
        "picture", Labels(boxes, names, ids, np.array(crowd, bool), np.array(difficult, bool)), found, size[0], size[1]
    )


def audit_image(held: Image, rules: Rules | None = None) -> list[Finding]:
    return list(audit(held, rules).findings)


def kinds(findings: Sequence[Finding]) -> list[str]:
    return [str(finding.kind) for finding in findings]


def test_labels_that_a_model_confirms_are_not_accused() -> None:
    assert audit_image(image([(CAT, "cat"), (DOG, "dog")], [(DOG, "dog", 0.9), (CAT, "cat", 0.8)])) == []


def test_labels_held_against_themselves_give_no_finding() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        corners = rng.uniform(0, 400, (30, 2))
        boxes = np.hstack([corners, corners + rng.uniform(0.5, 80, (30, 2))])
        names = rng.choice(["a", "b", "c"], 30).tolist()
        labels = Labels(boxes, names, crowd=rng.random(30) < 0.1)
        held = Image(0, labels, Predictions(boxes, names, np.ones(30)), 640, 480)
        assert audit_image(held) == []


def test_a_sure_prediction_without_a_label_is_a_missing_label() -> None:
    (finding,) = audit_image(image([(CAT, "cat")], [(CAT, "cat", 0.9), (DOG, "dog", 0.8)]))
    assert finding.kind is Kind.MISSING
    assert finding.box == DOG
    assert finding.class_name == "dog"
    assert finding.prediction_index == 1
    assert (finding.label, finding.label_id, finding.iou) == (None, None, None)
    assert finding.score == pytest.approx(0.8)


def test_a_low_scoring_prediction_accuses_no_one() -> None:
    rules = Rules(min_score=0.5)
    assert audit_image(image([], [(DOG, "dog", 0.49)]), rules) == []
    assert audit_image(image([(CAT, "cat")], [(moved(CAT, 25), "cat", 0.49)]), rules) == []
    assert kinds(audit_image(image([(CAT, "cat")], [(CAT, "dog", 0.49)]), rules)) == ["spurious"]


def test_a_low_scoring_prediction_still_speaks_for_a_label() -> None:
    assert audit_image(image([(CAT, "cat")], [(CAT, "cat", 0.01)])) == []


def test_a_second_detection_of_a_labeled_object_is_no_missing_label() -> None:
    seen = image([(CAT, "cat")], [(CAT, "cat", 0.9), (moved(CAT, 8), "cat", 0.8)])
    assert audit_image(seen) == []


def test_nothing_is_missing_in_a_crowd() -> None:
    crowd = (0.0, 0.0, 400.0, 400.0)
    assert audit_image(image([(crowd, "person")], [(CAT, "person", 0.9)], crowd=[True])) == []


def test_a_label_that_the_model_does_not_see_is_spurious() -> None:
    (finding,) = audit_image(image([(CAT, "cat"), (DOG, "dog")], [(CAT, "cat", 0.9)]))
    assert finding.kind is Kind.SPURIOUS
    assert (finding.label, finding.label_id, finding.prediction_index) == (1, 101, None)
    assert finding.score == 1.0


def test_a_label_is_less_surely_spurious_where_the_model_sees_its_class_elsewhere() -> None:
    (finding,) = audit_image(image([(CAT, "cat"), (FAR, "cat")], [(CAT, "cat", 0.9)]))
    assert finding.kind is Kind.SPURIOUS
    assert finding.score == 0.5


def test_a_difficult_label_may_be_overlooked() -> None:
    assert audit_image(image([(CAT, "cat")], [], difficult=[True])) == []


@pytest.mark.parametrize(("x", "iou"), [(25.0, 0.6), (60.0, 0.25)])
def test_a_label_that_fits_its_object_badly(x: float, iou: float) -> None:
    there = moved(CAT, x)
    (finding,) = audit_image(image([(CAT, "cat")], [(there, "cat", 0.9)]))
    assert finding.kind is Kind.BAD_LOCATION
    assert finding.iou == pytest.approx(iou)
    assert finding.score == pytest.approx(1 - iou)
    assert finding.proposed_box == there
    assert (finding.label, finding.prediction_index) == (0, 0)


def test_a_label_of_another_class_than_its_object() -> None:
    (finding,) = audit_image(image([(CAT, "cat"), (DOG, "dog")], [(CAT, "lynx", 0.9), (DOG, "dog", 0.9)]))
    assert finding.kind is Kind.WRONG_CLASS
    assert (finding.class_name, finding.proposed_class) == ("cat", "lynx")
    assert (finding.label, finding.prediction_index, finding.iou) == (0, 0, 1.0)


def test_a_second_label_of_one_object_is_a_duplicate_and_the_worse_one_is_named() -> None:
    (finding,) = audit_image(image([(moved(CAT, 10), "cat"), (CAT, "cat")], [(CAT, "cat", 0.9)]))
    assert finding.kind is Kind.DUPLICATE
    assert finding.label == 0
    assert finding.score == finding.iou == pytest.approx(9 / 11)


def test_two_objects_that_hide_each_other_are_no_duplicates() -> None:
    other = moved(CAT, 10)
    assert audit_image(image([(CAT, "cat"), (other, "cat")], [(CAT, "cat", 0.9), (other, "cat", 0.8)])) == []


def test_without_a_model_only_what_labels_tell_by_themselves_is_found() -> None:
    labels = [(CAT, "cat"), (moved(CAT, 5), "cat"), (DOG, "dog")]
    assert kinds(audit_image(image(labels, None))) == ["duplicate"]


def test_a_model_that_found_nothing_makes_every_label_spurious() -> None:
    assert kinds(audit_image(image([(CAT, "cat"), (DOG, "dog")], []))) == ["spurious", "spurious"]


def test_an_image_without_any_box_has_nothing_wrong() -> None:
    assert audit_image(image([], [])) == audit_image(image([], None)) == []


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((600.0, 100.0, 700.0, 200.0), "outside"),
        ((100.0, 100.0, 100.0, 200.0), "degenerate"),
        ((200.0, 200.0, 100.0, 100.0), "degenerate"),
        ((100.0, 100.0, 101.0, 101.0), "tiny"),
        ((0.0, 100.0, 600.0, 110.0), "shape"),
    ],
)
def test_geometry_of_a_label_alone(box: Sequence[float], kind: str) -> None:
    (finding,) = audit_image(image([(box, "cat")], None))
    assert finding.kind == kind
    assert 0 < finding.score <= 1


def test_a_box_at_the_edge_may_be_rounded_beyond_it() -> None:
    assert audit_image(image([((540.0, 380.0, 640.9, 480.9), "cat")], None)) == []


def test_what_a_model_confirms_may_be_tiny_or_long() -> None:
    tiny, long = (100.0, 100.0, 101.0, 101.0), (0.0, 200.0, 600.0, 210.0)
    assert audit_image(image([(tiny, "cat"), (long, "dog")], [(tiny, "cat", 0.9), (long, "dog", 0.9)])) == []


def test_findings_do_not_depend_on_the_scale() -> None:
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 400, (40, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 200, (40, 2))])
    names, scores = rng.choice(["a", "b"], 40).tolist(), rng.random(20)
    seen = []
    for scale in (1 / 1024, 1.0, 1024.0):
        labels, predictions = boxes[:20] * scale, boxes[20:] * scale
        held = Image(
            0, Labels(labels, names[:20]), Predictions(predictions, names[20:], scores), 700 * scale, 700 * scale
        )
        seen.append([(each.kind, each.label, each.prediction_index, each.score) for each in audit_image(held)])
    assert len(seen[1]) > 10
    assert seen[0] == seen[1] == seen[2]


def test_greedy_predictions_choose_by_score_and_optimal_ones_by_the_sum_of_overlaps() -> None:
    labels = [(CAT, "cat"), (moved(CAT, 30), "cat")]
    predictions = [(moved(CAT, 10), "cat", 0.9), (moved(CAT, -20), "cat", 0.8)]
    greedy = audit_image(image(labels, predictions))
    assert {(each.kind, each.label, each.prediction_index) for each in greedy if each.prediction_index == 0} == {
        ("bad_location", 0, 0)
    }
    optimal = audit_image(image(labels, predictions), Rules(matching="optimal"))
    assert {(each.label, each.prediction_index) for each in optimal} == {(0, 1), (1, 0)}


def test_labels_and_predictions_stand_side_by_side() -> None:
    held = image(
        [(CAT, "cat"), (DOG, "dog"), (FAR, "fox")],
        [(CAT, "cat", 0.9), (DOG, "lynx", 0.8), (moved(FAR, -300), "fox", 0.7)],
    )
    assert audit(held).matches == (
        Match("cat", "cat", 1.0),
        Match("dog", "lynx", 1.0),
        Match("fox", None, None),
        Match(None, "fox", None),
    )


def test_the_surest_findings_come_first() -> None:
    scores = [each.score for each in audit_image(image([(CAT, "cat"), (FAR, "dog")], [(DOG, "dog", 0.7)]))]
    assert scores == sorted(scores, reverse=True)


def test_a_finding_is_written_as_coco_has_boxes() -> None:
    (finding,) = audit_image(image([(CAT, "cat")], []))
    assert finding.as_dict() == {
        "kind": "spurious",
        "image_id": "picture",
        "label": 0,
        "label_id": 100,
        "prediction_index": None,
        "box": [100.0, 100.0, 100.0, 100.0],
        "class": "cat",
        "iou": None,
        "score": 1.0,
        "message": "The model sees no cat here. Remove it, unless you see one.",
        "proposed_class": None,
        "proposed_box": None,
    }


@pytest.mark.parametrize("number", [0.0, 2.5, float("nan")])
def test_rules_out_of_range_are_named(number: float) -> None:
    with pytest.raises(InvalidInputError, match="min_iou"):
        Rules(min_iou=number)
    with pytest.raises(InvalidInputError, match="min_score"):
        Rules(min_score=number - 1)


def test_boxes_and_what_is_said_of_them_must_agree() -> None:
    with pytest.raises(InvalidInputError, match=r"labels\.classes"):
        Labels(np.zeros((2, 4)), ["cat"])
    with pytest.raises(InvalidInputError, match=r"predictions\.scores"):
        Predictions(np.zeros((1, 4)), ["cat"], np.array([1.5]))
