"""Reading labels and predictions: every format gives the same boxes, and nothing that is wrong stops the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxloss.audit.annotations import Annotations, Source
from boxloss.audit.filenames import parts
from boxloss.audit.formats import Role, read
from boxloss.audit.formats.markup import elements
from boxloss.audit.problems import Problem
from boxloss.errors import InvalidInputError
from tests.shared_data import folder

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
"""In the order of the class numbers of the detector's text files."""


def everything(path: Path, role: Role = "labels", **options: Any) -> tuple[Source, list[Annotations], list[Problem]]:
    problems: list[Problem] = []
    source = read(path, role, problems.append, **options)
    return source, list(source), problems


def clean(path: Path, role: Role = "labels", **options: Any) -> list[Annotations]:
    """The images of a source that has nothing wrong."""
    _, images, problems = everything(path, role, **options)
    assert problems == []
    return images


def faulty(path: Path, role: Role = "labels", **options: Any) -> tuple[list[Annotations], list[str]]:
    """The images of a source, and what is wrong in it, without the folder."""
    _, images, problems = everything(path, role, **options)
    return images, [str(problem).replace(f"{path.parent}/", "") for problem in problems]


def by_stem(images: Sequence[Annotations]) -> dict[str, Annotations]:
    found = {parts(str(image))[-1]: image for image in images}
    assert len(found) == len(images)
    return found


# The real sets.

VOC_FORMATS = {
    "pascalvoc_format": "voc",
    "imagenet_format": "voc",
    "yolo_format": "yolo",
    "coco_format_v1": "coco",
    "coco_format_v2": "coco",
    "cvat_format": "cvat",
    "openimages_format": "openimages",
}


@pytest.mark.parametrize(("name", "format_name"), VOC_FORMATS.items())
def test_seven_formats_hold_the_same_273_boxes(name: str, format_name: str) -> None:
    root = folder("voc100_multiformat") / "gts"
    expected = by_stem(clean(root / "pascalvoc_format"))
    source, images, problems = everything(root / name)
    assert problems == []
    assert source.format == format_name
    assert sum(map(len, images)) == 273
    found = by_stem(images)
    assert found.keys() == expected.keys()
    assert len(found) == 100
    for stem, image in found.items():
        truth = expected[stem]
        assert truth.width is not None
        assert truth.height is not None
        size = [truth.width, truth.height, truth.width, truth.height]
        boxes = image.boxes * size if image.relative else image.boxes
        mine = sorted(range(len(image)), key=lambda row: (image.classes[row], *boxes[row].round()))
        theirs = sorted(range(len(truth)), key=lambda row: (truth.classes[row], *truth.boxes[row].round()))
        assert [image.classes[row] for row in mine] == [truth.classes[row] for row in theirs]
        np.testing.assert_allclose(boxes[mine], truth.boxes[theirs], rtol=0, atol=0.01)


def test_four_layouts_hold_the_same_452_predictions() -> None:
    root = folder("voc100_multiformat") / "dets"
    coco = by_stem(clean(root / "coco_format", "predictions"))
    corners = by_stem(clean(root / "abs_xyx2y2", "predictions", names=VOC_CLASSES))
    sides = by_stem(clean(root / "abs_xywh", "predictions", names=VOC_CLASSES, layout="xywh"))
    relative = by_stem(
        clean(root / "rel_xywh", "predictions", format="txt", names=VOC_CLASSES, layout="cxcywh", relative=True)
    )
    assert sum(map(len, coco.values())) == 452
    for stem, image in coco.items():
        assert image.scores is not None
        for other in (corners[stem], sides[stem], relative[stem]):
            assert other.scores is not None
            assert other.classes == image.classes
            size = [image.width, image.height] * 2 if other.relative else [1] * 4
            np.testing.assert_allclose(other.boxes * np.array(size, float), image.boxes, rtol=0, atol=0.01)
            np.testing.assert_allclose(other.scores, image.scores, rtol=0, atol=1e-6)


def test_a_score_that_may_be_first_or_last_is_asked_about() -> None:
    with pytest.raises(InvalidInputError, match="may be the first or the last; name the format: yolo, with the score"):
        everything(folder("voc100_multiformat") / "dets" / "rel_xywh", "predictions")


def test_coco_has_crowds_and_results() -> None:
    root = folder("coco_val2014_100")
    labels = clean(root / "instances_val2014_100.json")
    assert len(labels) == 100
    assert sum(map(len, labels)) == 839
    assert sum(int(image.crowd.sum()) for image in labels) == 9
    assert all(image.width and image.height and image.scores is None for image in labels)
    results = clean(root / "instances_val2014_fakebbox100_results.json", "predictions")
    assert len(results) == 99
    assert sum(map(len, results)) == 734
    assert all(isinstance(category, int) for image in results for category in image.classes)
    assert all(image.scores is not None for image in results)


def test_an_image_id_may_be_a_string_here_and_a_number_there() -> None:
    (labels,) = clean(folder("fcoco_ignore_fixtures") / "gt_ignore_test.json")
    assert labels.image_id == "2299"
    assert len(labels) == 14
    assert labels.crowd.sum() == 1


def test_label_studio_has_three_annotators() -> None:
    path = folder("labelstudio_3annotators") / "test_bbox.json"
    labels = clean(path)
    assert len(labels) == 5
    assert sum(map(len, labels)) == 91
    assert {len(image.seen_by) for image in labels} == {3}
    assert all(image.annotators.count(name) for image in labels for name in image.seen_by)
    assert not any(image.relative for image in labels)
    first = labels[0]
    assert first.file_name == "/data/upload/Highway20030201_1002591.jpg"
    assert (first.width, first.height) == (320, 240)
    np.testing.assert_allclose(first.boxes[0], [116, 148, 142, 171])
    assert first.ids[0] == "126/SMiPhTvFAt"
    predictions = clean(path, "predictions")
    assert len(predictions[0]) == 6
    assert predictions[0].scores is not None
    np.testing.assert_array_equal(predictions[0].scores, [0.95] * 6)


TOY_LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("dets_coco_format", {}),
    ("dets_classname_abs_xyx2y2", {}),
    ("dets_classname_abs_xywh", {"layout": "xywh"}),
    ("dets_classname_rel_xcycwh", {"layout": "cxcywh", "relative": True}),
    ("dets_classid_abs_xyx2y2", {"names": VOC_CLASSES}),
    ("dets_classid_abs_xywh", {"names": VOC_CLASSES, "layout": "xywh"}),
    ("dets_classid_rel_xcycwh", {"names": VOC_CLASSES, "layout": "cxcywh", "relative": True, "format": "txt"}),
]


@pytest.mark.parametrize(("name", "options"), TOY_LAYOUTS)
def test_the_toy_example_is_the_same_in_all_layouts(name: str, options: dict[str, Any]) -> None:
    root = folder("voc_toyexample_10")
    expected = by_stem(everything(root / "dets_coco_format", "predictions")[1])
    _, images, problems = everything(root / name, "predictions", **options)
    assert all("is not within its image" in problem.what for problem in problems)
    found = by_stem(images)
    assert found.keys() == expected.keys()
    assert sum(map(len, found.values())) == 12
    for stem, image in found.items():
        truth = expected[stem]
        size = np.array([truth.width, truth.height] * 2 if image.relative else [1] * 4, float)
        assert image.classes == truth.classes
        # Only the relative ones are not rounded.
        np.testing.assert_allclose(image.boxes * size, truth.boxes, rtol=0, atol=1 if image.relative else 0.01)


def test_text_without_sizes_is_read_as_it_stands() -> None:
    root = folder("cartucho_map_85")
    assert sum(map(len, clean(root / "ground-truth"))) == 686
    predictions = clean(root / "detection-results", "predictions")
    assert len(predictions) == 85
    assert sum(map(len, predictions)) == 494
    assert len(clean(folder("objectmetrics_testcase1") / "dets", "predictions", layout="xywh")) == 7


# Formats in small.


def write(path: Path, content: str | bytes | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}]


def dataset(*annotations: dict[str, Any], **image: Any) -> dict[str, Any]:
    """A COCO dataset of one image, 100 by 50."""
    images = [{"id": 0, "file_name": "a.jpg", "width": 100, "height": 50} | image]
    defaults = {"id": 0, "image_id": 0, "category_id": 0, "bbox": [10, 10, 20, 20]}
    return {
        "images": images,
        "categories": CATEGORIES,
        "annotations": [defaults | {"id": row} | annotation for row, annotation in enumerate(annotations)],
    }


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


def yolo_set(root: Path) -> Path:
    write(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 7: dog}\n")
    write(root / "labels" / "train" / "a.txt", "0 0.5 0.5 0.2 0.4\n7 0.1 0.1 0.1 0.1\n")
    write(root / "labels" / "val" / "c.txt", "")
    for picture in ("train/a.jpg", "train/b.png", "val/c.jpg"):
        write(root / "images" / picture, b"")
    return root


@pytest.mark.parametrize("entry", ["data.yaml", "."])
def test_yolo_follows_its_data_yaml(tmp_path: Path, entry: str) -> None:
    """The picture b has no file of boxes: YOLO takes it as one without objects."""
    source, images, problems = everything(yolo_set(tmp_path) / entry)
    assert (source.format, problems) == ("yolo", [])
    assert {image.file_name: len(image) for image in images} == {
        "images/train/a.jpg": 2,
        "images/train/b.png": 0,
        "images/val/c.jpg": 0,
    }
    assert images[0].relative
    assert images[0].classes == ("cat", "dog")
    np.testing.assert_allclose(images[0].boxes[0], [0.4, 0.3, 0.6, 0.7])


def test_yolo_reads_what_roboflow_writes(tmp_path: Path) -> None:
    """Its data.yaml points one folder too far up."""
    write(tmp_path / "set" / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [cat]\n")
    write(tmp_path / "set" / "train" / "images" / "a.jpg", b"")
    write(tmp_path / "set" / "train" / "labels" / "a.txt", "0 0.5 0.5 0.2 0.4\n")
    write(tmp_path / "set" / "train" / "labels" / "b.txt", "0 0.5 0.5 0.2 0.4\n")
    images, problems = faulty(tmp_path / "set")
    assert {image.file_name: len(image) for image in images} == {"train/images/a.jpg": 1, "train/labels/b": 1}
    assert len(problems) == 1
    assert problems[0].startswith("set/data.yaml: val: ")
    assert problems[0].endswith("set/valid/images does not exist; correct the path (file skipped)")


def test_yolo_follows_a_list_of_pictures(tmp_path: Path) -> None:
    write(tmp_path / "data.yaml", "train: train.txt\nnames: [cat]\n")
    write(tmp_path / "train.txt", "./images/a.jpg\n./images/b.jpg\n/\n")
    write(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.2 0.4\n")
    images, problems = faulty(tmp_path / "data.yaml")
    assert problems == ["train.txt: line 3: '/' is no picture; list pictures (line skipped)"]
    assert {image.file_name: len(image) for image in images} == {"images/a.jpg": 1, "images/b.jpg": 0}


def test_yolo_labels_alone_find_their_names_above(tmp_path: Path) -> None:
    images = clean(yolo_set(tmp_path) / "labels" / "train")
    assert [image.classes for image in images] == [("cat", "dog")]


def test_yolo_scores_come_last(tmp_path: Path) -> None:
    (image,) = clean(write(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.4 0.9\n"), "predictions", format="yolo")
    assert image.scores is not None
    assert image.scores.tolist() == [0.9]
    assert image.classes == (0,)


YOLO_FAULTS = [
    ("0 0.5 0.5 0.2", "'0 0.5 0.5 0.2' is no box; give class cx cy w h and perhaps a score (line skipped)"),
    ("cat 0.5 0.5 0.2 0.2", "'cat 0.5 0.5 0.2 0.2' is no box; give class cx cy w h and perhaps a score (line skipped)"),
    ("0 0.1 0.1 0.9 0.1 0.5 0.9", "has 6 numbers: a polygon, a turned box or keypoints; give class cx cy w h: only"),
    ("0 nan 0.5 0.2 0.2", "the box (nan, 0.4, nan, 0.6) is not finite; give finite numbers (box skipped)"),
    ("0 0.5 0.5 -0.2 0.2", "the box (0.6, 0.4, 0.4, 0.6) ends before it begins; give x1 <= x2"),
    ("0 0.9 0.5 0.4 0.2", "the box (0.7, 0.4, 1.1, 0.6) is not within its image, 0 to 1 by 0 to 1; draw it again"),
    ("9 0.5 0.5 0.2 0.2", "the class 9 has no name; name it; there are 2 names"),
    ("0 0.5 0.5 0.2 0.2 80", "the score 80 is not within 0 and 1; give a probability (box skipped)"),
]


@pytest.mark.parametrize(("line", "expected"), YOLO_FAULTS)
def test_a_fault_in_yolo_is_told_and_leaves_the_rest(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "a.txt", f"1 0.5 0.5 0.2 0.4\n\n{line}\n")
    (image,), problems = faulty(path, format="yolo", names=["cat", "dog"])
    assert len(problems) == 1
    assert problems[0].startswith(f"a.txt: line 3: {expected}")
    skipped = "skipped" in problems[0]
    assert (len(image), image.skipped) == ((1, 1) if skipped else (2, 0))


def test_text_that_is_not_utf8_is_told_and_says_nothing_of_its_image(tmp_path: Path) -> None:
    write(tmp_path / "yolo" / "a.txt", b"\xff\xfe0\x00")
    write(tmp_path / "yolo" / "b.txt", "0 0.5 0.5 0.2 0.4\n")
    images, problems = faulty(tmp_path / "yolo", format="yolo")
    assert problems == ["yolo/a.txt: is not text in UTF-8; save it as UTF-8 (file skipped)"]
    assert {image.file_name: len(image) for image in images} == {"b": 1}


def test_names_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    write(tmp_path / "yolo" / "data.yaml", "names: [cat\n")
    write(tmp_path / "yolo" / "a.txt", "0 0.5 0.5 0.2 0.4\n")
    (image,), problems = faulty(tmp_path / "yolo")
    assert image.classes == (0,)
    assert len(problems) == 1
    assert problems[0].startswith("yolo/data.yaml: is not YAML: ")


def voc(name: str, objects: str, size: str = "<size><width>100</width><height>50</height></size>") -> str:
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def voc_object(box: str = "<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax>", more: str = "") -> str:
    return f"<object><name>cat</name>{more}<bndbox>{box}</bndbox></object>"


def test_voc_knows_difficult_objects_and_parts(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    objects = voc_object(more=f"<difficult>1</difficult>{part}") + voc_object()
    (image,) = clean(write(tmp_path / "a.xml", voc("a.jpg", objects)))
    assert image.difficult.tolist() == [True, False]
    assert image.file_name == "a.jpg"
    np.testing.assert_array_equal(image.boxes[0], [1, 2, 30, 40])


VOC_FAULTS = [
    ("<object><name>cat</name></object>", "object[1]: has nothing for a bndbox; give one, with axis-aligned sides"),
    ("<object><bndbox/></object>", "object[1]: has no name; name its class (box skipped)"),
    (voc_object("<xmin>1</xmin><ymin>x</ymin>"), "object[1]: has a bndbox without four numbers; give xmin, ymin, xmax"),
]


@pytest.mark.parametrize(("element", "expected"), VOC_FAULTS)
def test_a_fault_in_voc_is_told_and_leaves_the_rest(tmp_path: Path, element: str, expected: str) -> None:
    (image,), problems = faulty(write(tmp_path / "a.xml", voc("a.jpg", voc_object() + element)))
    assert len(problems) == 1
    assert problems[0].startswith(f"a.xml: {expected}")
    assert len(image) == 1


def test_voc_files_go_by_their_own_name(tmp_path: Path) -> None:
    write(tmp_path / "voc" / "sub" / "b.xml", voc("old.jpg", voc_object()))
    (image,), problems = faulty(tmp_path / "voc")
    assert image.file_name == "sub/b"
    assert problems == [
        "voc/sub/b.xml: filename: names the picture old.jpg, but is itself called b.xml; call both the same; it is "
        "taken as b"
    ]


BOMB = '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;">]><{root}><object>&y;</object></{root}>'
LEAK = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><{root}><object><name>&x;</name></object></{root}>'


@pytest.mark.parametrize("attack", [BOMB, LEAK])
@pytest.mark.parametrize(("name", "root"), [("voc", "annotation"), ("cvat", "annotations")])
def test_xml_that_declares_entities_is_refused(tmp_path: Path, attack: str, name: Any, root: str) -> None:
    images, problems = faulty(write(tmp_path / "a.xml", attack.format(root=root)), format=name)
    assert images == []
    assert problems == [
        "a.xml: declares a document type or entities; leave them out: no label needs them (file skipped)"
    ]


@pytest.mark.parametrize("content", ["<annotation><object>", "", "no xml", '<?xml version="1.0" encoding="xx"?><a/>'])
def test_broken_xml_is_told_and_leaves_other_files(tmp_path: Path, content: str) -> None:
    write(tmp_path / "voc" / "a.xml", content)
    write(tmp_path / "voc" / "b.xml", voc("b.jpg", voc_object()))
    images, problems = faulty(tmp_path / "voc", format="voc")
    assert [image.file_name for image in images] == ["b.jpg"]
    assert len(problems) == 1
    assert problems[0].startswith("voc/a.xml: is not XML from there on: ")


CVAT = """<annotations>
<image id="0" name="sub/a.jpg" width="100" height="50">
  <box label="cat" xtl="1" ytl="2" xbr="30" ybr="40"/>{shapes}
</image>
<image id="1" name="b.jpg" width="100" height="50"/>{more}
</annotations>"""

CVAT_FAULTS = [
    ('<polygon label="cat" points="0,0;1,1;0,1"/>', "polygon[1]: is a polygon; draw a box: only boxes are audited"),
    ('<box label="cat" xtl="1" ytl="2" xbr="3"/>', "box[1]: is a box without four numbers; give xtl, ytl, xbr, ybr"),
    ('<box xtl="1" ytl="2" xbr="3" ybr="4"/>', "box[1]: has no label; name its class"),
    (
        '<box label="cat" xtl="1" ytl="2" xbr="3" ybr="4" rotation="12.5"/>',
        "box[1]: is rotated by 12.5 degrees; only upright boxes are audited",
    ),
]


@pytest.mark.parametrize(("shape", "expected"), CVAT_FAULTS)
def test_a_fault_in_cvat_is_told_and_leaves_the_rest(tmp_path: Path, shape: str, expected: str) -> None:
    images, problems = faulty(write(tmp_path / "a.xml", CVAT.format(shapes=shape, more="")))
    assert problems == [f"a.xml: image 0 sub/a.jpg: {expected} (box skipped)"]
    assert [(image.image_id, image.file_name, len(image)) for image in images] == [
        ("0", "sub/a.jpg", 1),
        ("1", "b.jpg", 0),
    ]


def test_cvat_is_read_in_pieces(tmp_path: Path) -> None:
    """The parser takes 64 KiB at once: some 2000 of these images."""
    content = "<annotations>" + '<image id="1"><box/></image>' * 20_000 + "</annotations>"
    held = [len(root) for root, _ in elements(write(tmp_path / "a.xml", content))]
    assert len(held) == 20_000
    assert max(held) < 5_000


def test_cvat_tracks_and_broken_ends_are_told(tmp_path: Path) -> None:
    content = CVAT.format(shapes="", more='<track id="3"/>')
    images, problems = faulty(write(tmp_path / "a.xml", content.removesuffix("</annotations>")))
    assert len(images) == 2
    assert problems[0] == (
        "a.xml: track 3: is of CVAT for video, which is not read; export it as CVAT for images 1.1 (annotation skipped)"
    )
    assert problems[1].startswith("a.xml: is not XML from there on: ")


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


def test_openimages_classes_may_be_machine_ids(tmp_path: Path) -> None:
    names = write(tmp_path / "names.csv", "/m/01,Cat, big\n")
    rows = "a,xclick,/m/01,1,0.1,0.3,0.2,0.4,0,0,1,0,0\nb,xclick,/m/02,1,0.1,0.3,0.2,0.4,0,0,0,0,0\n"
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    images, problems = faulty(write(tmp_path / "boxes.csv", f"{header}\n{rows}"), names=names)
    assert [image.classes for image in images] == [("Cat, big",), ("/m/02",)]
    assert [image.crowd.tolist() for image in images] == [[True], [False]]
    assert images[0].image_id == "a"
    np.testing.assert_array_equal(images[0].boxes, [[0.1, 0.2, 0.3, 0.4]])
    assert problems == ["boxes.csv: line 3: the class /m/02 has no name; add it to the names"]


def test_mot_has_frames_tracks_and_flags(tmp_path: Path) -> None:
    path = write(tmp_path / "gt.txt", "1,1,10,20,30,40,1,1,0.9\n2,1,11,20,30,40,0,8,1\n1,2,50,20,30,40,1,1,1\n")
    images = clean(path)
    assert [(image.image_id, image.ids, image.classes) for image in images] == [
        (1, (1, 2), ("pedestrian", "pedestrian")),
        (2, (1,), ("distractor",)),
    ]
    assert [image.difficult.tolist() for image in images] == [[False, False], [True]]
    np.testing.assert_array_equal(images[0].boxes[0], [10, 20, 40, 60])


def test_mot_detections_have_scores_and_no_class(tmp_path: Path) -> None:
    (image,) = clean(write(tmp_path / "det.txt", "1,-1,10,20,30,40,0.8,-1,-1,-1\n"), "predictions")
    assert image.scores is not None
    assert image.scores.tolist() == [0.8]
    assert image.classes == ("pedestrian",)
    assert image.ids == (None,)


def test_mot_classes_may_be_named_beside_it(tmp_path: Path) -> None:
    """As in CVAT's export."""
    write(tmp_path / "labels.txt", "cat\ndog\n")
    (image,) = clean(write(tmp_path / "gt.txt", "1,1,10,20,30,40,1,2,1\n"))
    assert image.classes == ("dog",)


def test_mot_sequences_keep_their_frames_apart(tmp_path: Path) -> None:
    for sequence in ("A", "B"):
        write(tmp_path / sequence / "gt" / "gt.txt", "1,1,10,20,30,40,1,1,1\n")
        write(tmp_path / sequence / "det" / "det.txt", "1,-1,10,20,30,40,0.8\n")
    assert [image.image_id for image in clean(tmp_path)] == ["A/1", "B/1"]
    predictions = clean(tmp_path, "predictions")
    assert [image.image_id for image in predictions] == ["A/1", "B/1"]
    assert all(image.scores is not None for image in predictions)


@pytest.mark.parametrize("line", ["1,1,10,20,30", "1,1,10,20,30,x", "1.5,1,1,2,3,4", "1,1,inf,2,3,4", "nan,1,1,2,3,4"])
def test_a_fault_in_mot_is_told_and_leaves_the_rest(tmp_path: Path, line: str) -> None:
    (image,), problems = faulty(write(tmp_path / "a.txt", f"1,1,10,20,30,40\n{line}\n"), format="mot")
    assert len(image) == 1
    assert problems == [
        f"a.txt: line 2: '{line}' is no box; give frame, id, x, y, w, h, confidence, class as numbers (line skipped)"
    ]


def test_csv_says_its_layout_in_the_header(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        'image,label,x,y,w,h,score\nb/a.jpg,"cat, big",1,2,3,4,0.5\nb/c.jpg,,,,,,\n7,dog,0,0,1,1,1\n',
    )
    images = clean(path, "predictions")
    assert [(image.file_name, image.image_id, image.classes) for image in images] == [
        ("b/a.jpg", None, ("cat, big",)),
        ("b/c.jpg", None, ()),
        (None, "7", ("dog",)),
    ]
    np.testing.assert_array_equal(images[0].boxes, [[1, 2, 4, 6]])


def test_csv_of_a_spreadsheet_has_semicolons_and_commas(tmp_path: Path) -> None:
    (image,) = clean(write(tmp_path / "a.csv", "\ufeffimage;class;x1;y1;x2;y2\r\na.jpg;cat;0,5;1;2;3,25\r\n"))
    np.testing.assert_array_equal(image.boxes, [[0.5, 1, 2, 3.25]])


CSV_FAULTS = [
    ("a.jpg,cat,1,2,3", "has 5 cells for 7 columns; give one for each; quote those with a comma (line skipped)"),
    ("a.jpg,cat,1,2,x,4,1", "the box (1, 2, x, 4) is not four numbers; give numbers (box skipped)"),
    ("a.jpg,cat,1,2,3,4,sure", "has the score 'sure'; give a number (box skipped)"),
    (",cat,1,2,3,4,1", "names no image; fill the column image (line skipped)"),
    ("a.jpg,,1,2,3,4,1", "has no class; name it (box skipped)"),
    ("a.jpg,cat,3,2,1,4,1", "the box (3, 2, 1, 4) ends before it begins"),
]


@pytest.mark.parametrize(("line", "expected"), CSV_FAULTS)
def test_a_fault_in_csv_is_told_and_leaves_the_rest(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "a.csv", f"image,class,x1,y1,x2,y2,score\na.jpg,dog,1,2,3,4,0.5\n{line}\n")
    (image,), problems = faulty(path)
    assert image.classes == ("dog",)
    assert len(problems) == 1
    assert problems[0].startswith(f"a.csv: line 3: {expected}")


def test_csv_without_a_header_is_told(tmp_path: Path) -> None:
    images, problems = faulty(write(tmp_path / "a.csv", "a.jpg,cat,1,2,3,4\n"))
    assert images == []
    assert problems == [
        "a.csv: line 1: has the columns a.jpg, cat, 1, 2, 3, 4; name image, class, x1, y1, x2, y2 and perhaps score in "
        "the first line (file skipped)"
    ]


def test_classes_of_text_may_have_spaces(tmp_path: Path) -> None:
    (image,) = clean(write(tmp_path / "a.jpg.txt", "potted plant 0.5 1 2 3 4\ntraffic light 1 2 3 4\n7 1 2 3 4\n"))
    assert image.classes == ("potted plant", "traffic light", 7)
    assert image.file_name == "a.jpg"
    assert image.scores is not None
    np.testing.assert_array_equal(image.scores, [0.5, np.nan, np.nan])


def test_a_fault_in_text_is_told_and_leaves_the_rest(tmp_path: Path) -> None:
    (image,), problems = faulty(write(tmp_path / "a.txt", "cat 1 2 3 4\n1 2 3 4\ncat 1 2 three 4\n7 1 2 3 4 5 6\n"))
    assert len(image) == 1
    assert problems == [
        "a.txt: line 2: '1 2 3 4' is no box; give a class, perhaps a score, and four numbers (line skipped)",
        "a.txt: line 3: 'cat 1 2 three 4' is no box; give a class, perhaps a score, and four numbers (line skipped)",
        "a.txt: line 4: '7 1 2 3 4 5 6' is no box; give a class, perhaps a score, and four numbers (line skipped)",
    ]


@pytest.mark.parametrize("name", ["voc", "cvat", "yolo", "txt", "mot"])
def test_a_folder_without_files_of_the_format_is_told(tmp_path: Path, name: Any) -> None:
    write(tmp_path / "set" / "a.npy", b"")
    images, problems = faulty(tmp_path / "set", format=name)
    assert images == []
    ending = ".xml" if name in ("voc", "cvat") else ".txt"
    assert problems == [f"set: holds no {ending} files; give a folder that does, or name another format (file skipped)"]


# Detection, and options.


def test_polygons_of_yolo_are_not_taken_for_text(tmp_path: Path) -> None:
    source, _, problems = everything(write(tmp_path / "a.txt", "0 0.1 0.1 0.9 0.1 0.5 0.9\n"))
    assert source.format == "yolo"
    assert len(problems) == 1


def test_decimal_commas_are_not_taken_for_mot(tmp_path: Path) -> None:
    source, (image,), problems = everything(write(tmp_path / "a.txt", "cat 0,5 1,5 2 3\n"))
    assert (source.format, problems) == ("txt", [])
    np.testing.assert_array_equal(image.boxes, [[0.5, 1.5, 2, 3]])


UNCLEAR: list[tuple[dict[str, str], str, str]] = [
    ({}, "none.json", "does not exist; give a file or a folder"),
    ({"a.npy": ""}, "a.npy", "ends in '.npy'; give .json, .xml, .csv, .txt, .yaml or a folder, or name the format"),
    ({"readme.md": ""}, ".", "holds no .xml, .json, .csv, .txt files; give labels or predictions"),
    ({"a.json": "[]", "b.json": "[]"}, ".", "holds 2 .json files; give one of them"),
    ({"a.json": '{"a": 1}'}, "a.json", "is none that is known; give a COCO dataset or results list, or Label Studio's"),
    ({"a.xml": "<html/>"}, ".", "is neither Pascal VOC nor CVAT for images; give one of these, or name the format"),
    ({"a.txt": ""}, ".", "holds no boxes to tell its format by; name it: yolo, txt or mot"),
]


@pytest.mark.parametrize(("contents", "entry", "expected"), UNCLEAR)
def test_what_cannot_be_told_apart_is_asked_for(
    tmp_path: Path, contents: dict[str, str], entry: str, expected: str
) -> None:
    for name, content in contents.items():
        write(tmp_path / "set" / name, content)
    with pytest.raises(InvalidInputError) as caught:
        everything(tmp_path / "set" / entry)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layout": "xywh"}, "layout: does not go with coco, which has its own; leave it out"),
        ({"relative": True}, "relative: does not go with coco, which knows; leave it out"),
        ({"format": "voc", "names": ["cat"]}, "names: do not go with voc, which names its classes; leave them out"),
        ({"format": "kitti"}, "format: 'kitti' is unknown; give one of coco, yolo, voc"),
    ],
)
def test_options_that_do_not_go_with_a_format_are_refused(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    path = write(tmp_path / "a.json", dataset())
    with pytest.raises(InvalidInputError) as caught:
        everything(path, **options)
    assert str(caught.value).startswith(expected)


def test_folders_are_read_file_by_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.txt", "cat 1 2 3 4\n")
    problems: list[Problem] = []
    images = iter(read(tmp_path, "labels", problems.append))
    assert next(images).file_name == "a"
    write(tmp_path / "b.txt", "broken\n")
    assert len(next(images)) == 0
    assert len(problems) == 1


def test_the_join_needs_no_extra_packages() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['msgspec', 'defusedxml', 'yaml', 'pyarrow', 'typer']))"
    subprocess.run([sys.executable, "-c", f"{blocked}; import boxloss.audit.join"], check=True, timeout=60)


# Round trips.

sides = st.floats(0, 1e4).map(lambda number: round(number, 3))
boxes = st.tuples(sides, sides, sides, sides).map(
    lambda box: (*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:]))
)
names = st.text("abcxyz ", min_size=1, max_size=8).filter(lambda name: name == " ".join(name.split()))
SIDES = ("xmin", "ymin", "xmax", "ymax")
labelled = st.lists(st.tuples(names, boxes.filter(lambda box: box[0] < box[2] and box[1] < box[3])), max_size=5)


@settings(max_examples=30, deadline=None)
@given(labelled)
def test_coco_text_csv_and_voc_give_back_what_was_written(tmp_path_factory: Any, wanted: list[Any]) -> None:
    root = tmp_path_factory.mktemp("round")
    table = sorted({name for name, _ in wanted})
    annotations = [
        {"image_id": 1, "category_id": table.index(name), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for name, (x1, y1, x2, y2) in wanted
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(table)]
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": categories, "annotations": annotations}
    rows = "".join(f"a.jpg,{name},{','.join(map(repr, map(float, box)))}\n" for name, box in wanted)
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{side}>{float(number)!r}</{side}>" for side, number in zip(SIDES, box, strict=True))
        + "</bndbox></object>"
        for name, box in wanted
    )
    paths = [
        write(root / "a.json", content),
        write(root / "a.txt", "".join(f"{name} {' '.join(map(repr, map(float, box)))}\n" for name, box in wanted)),
        write(root / "a.csv", f"image,class,x1,y1,x2,y2\n{rows or 'a.jpg,,,,,'}"),
        write(root / "a.xml", voc("a.jpg", objects, "")),
    ]
    for path, name in zip(paths, ("coco", "txt", "csv", "voc"), strict=True):
        (image,) = clean(path, format=name)
        assert image.classes == tuple(name for name, _ in wanted)
        expected = np.array([box for _, box in wanted], float).reshape(-1, 4)
        np.testing.assert_allclose(image.boxes, expected, rtol=0, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=60),
    st.sampled_from(["yolo", "txt", "mot", "csv", "coco", "voc", "cvat", "labelstudio", "openimages"]),
)
def test_no_content_stops_a_reader(tmp_path_factory: Any, content: str, name: Any) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.any", content.encode("utf-8", "surrogatepass"))
    everything(path, format=name)
