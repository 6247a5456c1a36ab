"""Reading labels and predictions: every format gives the same boxes, and is told from the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxloss.errors import InvalidInputError
from boxloss.files.annotations import Annotations
from boxloss.files.filenames import parts
from boxloss.files.formats import read
from boxloss.files.problems import Problem
from tests.readers import VOC_CLASSES, clean, dataset, everything, faulty, voc, write
from tests.shared_data import folder


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


# Detection, and options.


@pytest.mark.parametrize("name", ["voc", "cvat", "yolo", "txt", "mot"])
def test_a_folder_without_files_of_the_format_is_told(tmp_path: Path, name: Any) -> None:
    write(tmp_path / "set" / "a.npy", b"")
    images, problems = faulty(tmp_path / "set", format=name)
    assert images == []
    ending = ".xml" if name in ("voc", "cvat") else ".txt"
    assert problems == [f"set: holds no {ending} files; give a folder that does, or name another format (file skipped)"]


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
    subprocess.run([sys.executable, "-c", f"{blocked}; import boxloss.files.join"], check=True, timeout=60)


# Round trips.

sides = st.floats(0, 1e4).map(lambda number: round(number, 3))
boxes = st.tuples(sides, sides, sides, sides).map(
    lambda box: (*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:]))
)
names = st.text("abcxyz ", min_size=1, max_size=8).filter(lambda name: name == " ".join(name.split()))
SIDES = ("xmin", "ymin", "xmax", "ymax")
labeled = st.lists(st.tuples(names, boxes.filter(lambda box: box[0] < box[2] and box[1] < box[3])), max_size=5)


@settings(max_examples=30, deadline=None)
@given(labeled)
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
