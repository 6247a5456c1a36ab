"""COCO and Label Studio are read, and nothing that is wrong stops the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.readers import clean, dataset, faulty, write

# COCO.


def test_coco_ids_of_zero_are_ids(tmp_path: Path) -> None:
    (image,) = clean(write(tmp_path / "a.json", dataset({}, {"category_id": 7})))
    assert image.image_id == 0
    assert image.ids == (0, 1)
    assert image.classes == ("cat", "dog")
    np.testing.assert_array_equal(image.boxes[0], [10, 10, 30, 30])


def test_coco_lists_images_without_boxes(tmp_path: Path) -> None:
    (image,) = clean(write(tmp_path / "a.json", dataset()))
    assert len(image) == 0
    assert image.boxes.shape == (0, 4)


def test_coco_annotators_are_read(tmp_path: Path) -> None:
    (image,) = clean(write(tmp_path / "a.json", dataset({"annotator": "ann"}, {"annotator": 2}, {})))
    assert image.annotators == ("ann", "2", "")
    assert image.seen_by == ("ann", "2")


COCO_FAULTS = [
    ({"bbox": [1, 2, 3]}, "expected array of length 4 in bbox", "box", 1),
    ({"bbox": [10, 10, -5, 5]}, "the box (10, 10, 5, 15) ends before it begins; give x1 <= x2 and", "box", 1),
    ({"bbox": [10, 10, 5, -5]}, "the box (10, 10, 15, 5) ends before it begins", "box", 1),
    ({"bbox": [0, 0, 5, 0]}, "the box (0, 0, 5, 0) has no area; draw it again, or delete it", None, 2),
    ({"bbox": [90, 0, 20, 5]}, "the box (90, 0, 110, 5) is not within its image, 0 to 100 by 0 to 50", None, 2),
    ({"category_id": 3}, "the class 3 has no name; name it; there are 2 names", None, 2),
    ({"score": 1.5}, "the score 1.5 is not within 0 and 1; give a probability", "box", 1),
    ({"score": "high"}, "expected float | null, got str in score", "box", 1),
    ({"id": 0}, "the id 0 is used twice; give each box its own", None, 2),
    ({"image_id": 5}, "the image 5 of 1 annotations is not among images; list it, with its size", None, 2),
    ({"image_id": None}, "expected int | str, got null in image_id; name its image", "box", 1),
]


@pytest.mark.parametrize(("annotation", "expected", "skipped", "kept"), COCO_FAULTS)
def test_a_fault_in_coco_is_told_and_leaves_the_rest(
    tmp_path: Path, annotation: dict[str, Any], expected: str, skipped: str | None, kept: int
) -> None:
    images, problems = faulty(write(tmp_path / "a.json", dataset({}, annotation)))
    assert len(problems) == 1
    assert problems[0].startswith(f"a.json: annotations[1]: {expected}")
    assert problems[0].endswith(f" ({skipped} skipped)") == (skipped is not None)
    assert sum(map(len, images)) == kept


def test_numbers_that_json_does_not_have_cost_their_box_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", dataset({}, {"bbox": [0, float("nan"), 5, float("inf")]}))
    (image,), problems = faulty(path)
    assert len(image) == 1
    assert problems == [
        "a.json: holds Infinity and NaN 2 times, read as null; write numbers: JSON has no others",
        "a.json: annotations[1]: expected float, got null in bbox[1]; write it as COCO does: category_id and bbox "
        "[x, y, w, h] (box skipped)",
    ]


def test_coco_images_that_are_wrong_are_told(tmp_path: Path) -> None:
    content = dataset({})
    content["images"] += [{"id": 0, "file_name": "b.jpg"}, {"file_name": "c.jpg"}]
    content["images"][0]["height"] = 0
    (image,), problems = faulty(write(tmp_path / "a.json", content))
    assert image.width is None
    assert problems == [
        "a.json: a.jpg: its size 100.0 x 0.0 is none; give its width and height in pixels",
        "a.json: images[1]: the id 0 is used twice; give each image its own (image skipped)",
        "a.json: images[2]: object missing required field id; write it as COCO's images are (line skipped)",
    ]


def test_coco_box_ids_are_unique_in_all_images(tmp_path: Path) -> None:
    content = dataset({"id": 5}, {"id": "5", "image_id": 1})
    content["images"].append({"id": 1, "file_name": "b.jpg"})
    images, problems = faulty(write(tmp_path / "a.json", content))
    assert [len(image) for image in images] == [1, 1]
    assert problems == ["a.json: annotations[1]: the id '5' is used twice; give each box its own"]


def test_broken_json_is_no_labels_at_all(tmp_path: Path) -> None:
    """Half a file would pass for images without labels."""
    whole = json.dumps(dataset({}))
    images, problems = faulty(write(tmp_path / "a.json", whole[:-9]), format="coco")
    assert images == []
    assert problems == [
        "a.json: is not a JSON list or object: input data was truncated; give a whole JSON file (file skipped)"
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"shapes": [], "version": 5},
            "holds an object with shapes, version; give a COCO dataset, which has annotations",
        ),
        (b"\xff\xfe{", "is not a JSON list or object: "),
        (b"", "is not a JSON list or object: input data was truncated"),
        ("[" * 100_000, "is not a JSON list or object: nested too deeply"),
        ({"images": {}, "annotations": []}, "images: expected array, got object; give the images as a list"),
    ],
)
def test_a_json_file_of_another_kind_is_told(tmp_path: Path, content: object, expected: str) -> None:
    images, problems = faulty(write(tmp_path / "a.json", content), format="coco")
    assert images == []
    assert len(problems) == 1
    assert problems[0].startswith(f"a.json: {expected}")
    assert problems[0].endswith(" (file skipped)")


# Label Studio.


def task(*regions: dict[str, Any], **annotation: Any) -> dict[str, Any]:
    value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
    result = [
        {"type": "rectanglelabels", "id": f"r{row}", "original_width": 200, "original_height": 100}
        | region
        | {"value": value | region.get("value", {})}
        for row, region in enumerate(regions)
    ]
    return {
        "id": 3,
        "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"},
        "annotations": [{"result": result} | annotation],
    }


LABEL_STUDIO_FAULTS = [
    ({"value": {"rotation": 30}}, "is rotated by 30 degrees; only upright boxes are audited (box skipped)"),
    ({"value": {"rectanglelabels": []}}, "has no label; name its class (box skipped)"),
    ({"value": {"x": None}}, "expected float, got null in x; give x, y, width and height in percent"),
    ({"type": "polygonlabels"}, "is of type polygonlabels; draw rectangles with labels: only boxes are audited"),
]


@pytest.mark.parametrize(("region", "expected"), LABEL_STUDIO_FAULTS)
def test_a_fault_in_label_studio_is_told_and_leaves_the_rest(
    tmp_path: Path, region: dict[str, Any], expected: str
) -> None:
    (image,), problems = faulty(write(tmp_path / "a.json", [task({}, region, completed_by=4)]))
    assert len(problems) == 1
    assert problems[0].startswith(f"a.json: task 3: annotations[0].result[1]: {expected}")
    assert image.file_name == "/data/upload/1/a.jpg"
    assert image.annotators == ("4",)
    np.testing.assert_allclose(image.boxes, [[20, 20, 80, 60]])


def test_label_studio_without_sizes_is_relative(tmp_path: Path) -> None:
    (image,) = clean(write(tmp_path / "a.json", [task({"original_width": None})]))
    assert image.relative
    np.testing.assert_allclose(image.boxes, [[0.1, 0.2, 0.4, 0.6]])


def test_who_drew_nothing_in_label_studio_was_there(tmp_path: Path) -> None:
    (image,) = clean(write(tmp_path / "a.json", [task(completed_by={"id": 1, "email": "ann@example.com"})]))
    assert len(image) == 0
    assert image.seen_by == ("ann@example.com",)


def test_answers_of_label_studio_that_are_no_shapes_do_not_count_as_boxes(tmp_path: Path) -> None:
    regions: list[dict[str, Any]] = [{"type": "choices"}, {"type": "ellipselabels"}]
    (image,), problems = faulty(write(tmp_path / "a.json", [task(*regions)]))
    assert [problem.rpartition("; ")[2] for problem in problems] == [
        "draw rectangles with labels: only boxes are audited (annotation skipped)",
        "draw rectangles with labels: only boxes are audited (box skipped)",
    ]
    assert image.skipped == 1


def test_cancelled_work_in_label_studio_does_not_count(tmp_path: Path) -> None:
    images, problems = faulty(write(tmp_path / "a.json", [task({}, was_cancelled=True)]))
    assert images == []
    assert problems == [
        "a.json: task 3: annotations[0]: was cancelled by its annotator; submit it, if it counts (annotation skipped)"
    ]


def test_only_the_last_prediction_of_label_studio_is_read(tmp_path: Path) -> None:
    old, new = task({"score": 0.1})["annotations"][0], task({"score": 0.2})["annotations"][0]
    content = [{"id": 3, "data": {"image": "a.jpg"}, "predictions": [old | {"model_version": "old"}, new]}]
    (image,), problems = faulty(write(tmp_path / "a.json", content), "predictions")
    assert image.scores is not None
    assert image.scores.tolist() == [0.2]
    assert problems == [
        "a.json: task 3: predictions[0]: is one of 2 predictions, of model version old; only the last is read; delete "
        "the others (annotation skipped)"
    ]
