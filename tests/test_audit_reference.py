"""The audit beside what others have published or computed of the same real boxes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boxloss.audit.finding import Finding
from boxloss.audit.image import Image, Labels, Predictions
from boxloss.audit.matching import NONE, match
from boxloss.audit.overlaps import overlaps_of
from boxloss.audit.rules import Rules, audit_image
from boxloss.contract.arrays import Array
from boxloss.files.filenames import parts
from boxloss.files.formats import read
from boxloss.files.join import by_annotator, join
from boxloss.files.problems import Problem
from tests.shared_data import folder

VOC_LABELS = (
    *("pascalvoc_format", "imagenet_format", "yolo_format", "coco_format_v1", "coco_format_v2"),
    *("cvat_format", "openimages_format"),
)


def images_of(labels: Path, predictions: Path | None = None, **options: Any) -> tuple[Image, ...]:
    problems: list[Problem] = []
    found = None if predictions is None else read(predictions, "predictions", problems.append)
    return join(read(labels, "labels", problems.append, **options), found, complete=True).images


def matches(image: Image) -> NDArray[np.int64]:
    """As COCO evaluates, at an IoU of 0.5."""
    labels, predictions = image.labels, image.predictions
    assert predictions is not None
    same_class = np.array(predictions.classes)[:, None] == np.array(labels.classes)
    return match(overlaps_of(image).predictions, predictions.scores, same_class, labels.crowd, 0.5, "greedy")


# pycocotools.


@pytest.mark.parametrize(
    ("name", "labels", "predictions", "matched"),
    [
        ("coco_val2014_100", "instances_val2014_100.json", "instances_val2014_fakebbox100_results.json", 649),
        ("voc100_multiformat", "gts/coco_format_v2/instances_v2.json", "dets/coco_format/coco_dets.json", 226),
    ],
)
def test_matches_are_those_of_pycocotools(name: str, labels: str, predictions: str, matched: int) -> None:
    root = folder(name)
    names = {each["id"]: each["name"] for each in json.loads((root / labels).read_text())["categories"]}
    images = {image.image_id: image for image in images_of(root / labels, root / predictions)}
    results = json.loads((root / predictions).read_text())
    rows: dict[int, int] = {}
    """Of each result, its row among those of its image."""
    of_image: dict[Any, int] = {}
    for index, result in enumerate(results if isinstance(results, list) else results["annotations"]):
        rows[index] = of_image.setdefault(result["image_id"], 0)
        of_image[result["image_id"]] += 1
    seen = 0
    for expected in json.loads((root / "REFERENCE_pycocotools.json").read_text())["per_image_matches"]:
        image = images[expected["image_id"]]
        assert image.predictions is not None
        found = matches(image)
        label_ids = image.labels.ids
        mine = [rows[index] for index in expected["dt_result_index"]]
        assert [image.predictions.classes[row] for row in mine] == [names[expected["category_id"]]] * len(mine)
        np.testing.assert_allclose(image.predictions.scores[mine], expected["dt_scores"])
        ids = [0 if found[row] == NONE else label_ids[found[row]] for row in mine]
        assert ids == expected["dt_match_gt_id_iou50"], expected
        seen += len(ids) - ids.count(0)
    assert seen == matched


def test_a_crowd_overlaps_as_pycocotools_has_it() -> None:
    root = folder("fcoco_ignore_fixtures")
    (image,) = images_of(root / "gt_ignore_test.json", root / "dt_ignore_test.json")
    assert image.predictions is not None
    assert image.labels.crowd.sum() == 1
    order = np.argsort(-image.predictions.scores, kind="stable")
    sure = order[image.predictions.scores[order] >= 0.1]
    published = np.load(root / "2299_1.npy")
    assert published.shape == (36, 14)
    crowds_last = np.argsort(image.labels.crowd, kind="stable")  # As pycocotools sorts labels.
    np.testing.assert_allclose(overlaps_of(image).predictions[sure][:, crowds_last], published, rtol=0, atol=1e-12)
    crowd = int(np.flatnonzero(image.labels.crowd)[0])
    assert crowd not in matches(image), "a crowd is nobody's match"


# Labels held against themselves.


def sure(labels: Labels) -> Predictions:
    return Predictions(labels.boxes, labels.classes, np.ones(len(labels)))


SETS = [
    "coco_val2014_100/instances_val2014_100.json",
    "coco_val2014_100/sampled_gts_bbox_area.json",
    *(f"voc100_multiformat/gts/{name}" for name in VOC_LABELS),
    "voc_toyexample_10/gts_vocpascal_format",
    "voc_toyexample_10/gts_coco_format",
    "cartucho_map_85/ground-truth",
    "objectmetrics_testcase1/gts",
    "fcoco_ignore_fixtures/gt_ignore_test.json",
    "fcoco_ignore_fixtures/gt_dataset.json",
]


@pytest.mark.parametrize("path", SETS)
def test_labels_as_predictions_are_never_accused(path: str) -> None:
    name, _, rest = path.partition("/")
    options: dict[str, Any] = {"layout": "xywh"} if name == "objectmetrics_testcase1" else {}
    images = images_of(folder(name) / rest, **options)
    assert sum(len(image.labels) for image in images) >= 3
    for image in images:
        for rules in (Rules(), Rules(matching="optimal"), Rules(min_iou=0.9, min_score=0)):
            assert audit_image(replace(image, predictions=sure(image.labels)), rules).findings == ()


def test_annotators_as_predictions_of_themselves_are_never_accused() -> None:
    source = read(folder("labelstudio_3annotators") / "test_bbox.json", "labels", lambda problem: None)
    boxes = 0
    for annotated in by_annotator(source):
        for labels in annotated.labels.values():
            boxes += len(labels)
            image = Image(annotated.image_id, labels, sure(labels), annotated.width, annotated.height)
            assert audit_image(image).findings == ()
    assert boxes == 91


# One set of labels in seven formats.


def findings(name: str) -> dict[str, tuple[list[Finding], Array]]:
    """Those of each image by its stem, in an order that does not depend on that of the labels; and their boxes.

    Boxes are parts of the image: two images have no predictions, and their size is not known to all formats.
    """
    root = folder("voc100_multiformat")
    found: dict[str, tuple[list[Finding], Array]] = {}
    for image in images_of(root / "gts" / name, root / "dets" / "coco_format"):
        labels = replace(image.labels, difficult=np.empty(0, bool))  # Only Pascal VOC says what is difficult.
        audited = audit_image(replace(image, labels=labels)).findings
        ordered = sorted(audited, key=lambda each: (each.kind, each.class_name, each.box))
        boxes = np.array([each.box for each in ordered]).reshape(-1, 2, 2) / [image.width or 0, image.height or 0]
        found[parts(str(image.file_name))[-1]] = ordered, boxes
    return found


@pytest.mark.parametrize("name", VOC_LABELS[1:])
def test_seven_formats_of_the_same_labels_give_the_same_findings(name: str) -> None:
    expected, found = findings(VOC_LABELS[0]), findings(name)
    assert sum(len(each) for each, _ in expected.values()) > 100
    assert found.keys() == expected.keys()
    for stem, (theirs, their_boxes) in expected.items():
        mine, my_boxes = found[stem]
        assert [told(each) for each in mine] == [told(each) for each in theirs], stem
        assert [each.score for each in mine] == pytest.approx([each.score for each in theirs], abs=1e-3)
        np.testing.assert_allclose(my_boxes, their_boxes, rtol=0, atol=1e-4)


def told(finding: Finding) -> tuple[Any, ...]:
    return finding.kind, finding.class_name, finding.prediction_index, finding.proposed_class
