"""Labels and predictions join by image and class; what does not is told, never guessed and never lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxloss.audit.image import Id, Image
from boxloss.files.annotations import Annotations, Class, Draft, Source
from boxloss.files.filenames import parts
from boxloss.files.formats import read
from boxloss.files.join import Joined, by_annotator, join
from boxloss.files.problems import Problem
from tests.readers import VOC_CLASSES
from tests.shared_data import folder

SQUARE = (10.0, 20.0, 30.0, 40.0)


def image(
    name: str | None = None,
    number: Id | None = None,
    classes: Sequence[Class] = ("cat",),
    *,
    size: tuple[float, float] | tuple[None, None] = (100, 50),
    box: tuple[float, float, float, float] = SQUARE,
    relative: bool = False,
    scores: Sequence[float | None] = (),
    annotators: Sequence[str] = (),
    seen_by: Sequence[str] = (),
) -> Annotations:
    """One image with a box of each class."""
    draft = Draft(Path("a"), _none, image_id=number, file_name=name, width=size[0], height=size[1], relative=relative)
    for row, category in enumerate(classes):
        score = scores[row] if scores else None
        draft.add("", box, category, score=score, annotator=annotators[row] if annotators else "")
    for annotator in seen_by:
        draft.seen_by(annotator)
    return draft.finish()


def _none(problem: Problem) -> None:
    raise AssertionError(str(problem))


def source(*images: Annotations, table: dict[Class, str] | None = None) -> Source:
    return Source(Path("a"), "made", images, table or {})


def found(
    name: str | None = None, number: Id | None = None, classes: Sequence[Class] = ("cat",), **more: Any
) -> Annotations:
    """A predicted image."""
    return image(name, number, classes, **{"scores": [0.9] * len(classes)} | more)


def pairs(joined: Joined) -> dict[Id, int]:
    """The number of predictions of each image that has some or none; those that no model saw are not there."""
    return {image.image_id: len(image.predictions) for image in joined.images if image.predictions is not None}


def told(joined: Joined) -> list[str]:
    return [str(mismatch) for mismatch in joined.mismatches]


# Images.


@pytest.mark.parametrize(("label", "prediction"), [(7, "7"), ("7", 7), (0, 0), (0, "0"), ("a b", "a b")])
def test_ids_join_as_numbers_or_strings(label: Id, prediction: Id) -> None:
    joined = join(source(image(number=label)), source(found(number=prediction)))
    assert pairs(joined) == {label: 1}
    assert told(joined) == []


def test_ids_join_where_one_side_has_no_file_names() -> None:
    labels = source(image("a.jpg", 0), image("b.jpg", 1))
    assert pairs(join(labels, source(found(number=1), found(number="0")))) == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("label", "prediction"),
    [
        ("a.jpg", "a.txt"),
        ("/data/2007/a.jpg", "a.xml"),
        ("train/a.jpg", "/home/me/train/a.PNG"),
        ("C:\\pictures\\a.jpg", "labels/a"),
        ("a.jpg", "a.jpg.txt"),
        ("scene.12", "x/scene.12.txt"),
    ],
)
def test_file_names_join_without_folders_and_endings(label: str, prediction: str) -> None:
    joined = join(source(image(label, 1)), source(found(prediction, 2)))
    assert pairs(joined) == {1: 1}
    assert joined.images[0].file_name == label
    assert told(joined) == []


def test_an_id_may_be_the_name_of_a_picture() -> None:
    """As in results of models that were trained on folders of pictures."""
    joined = join(source(image("pictures/a.jpg")), source(found(number="a")))
    assert pairs(joined) == {"pictures/a.jpg": 1}


def test_ids_of_other_pictures_do_not_join() -> None:
    labels = source(image("a.jpg", 1), image("b.jpg", 2))
    predictions = source(found("b.jpg", 1, ["cat", "cat"]), found("c.jpg", 2))
    joined = join(labels, predictions)
    assert pairs(joined) == {2: 2}
    assert told(joined) == [
        "2 ids name different pictures in labels and predictions; file names decide there: 1 is a.jpg and b.jpg, "
        "2 is b.jpg and c.jpg",
        "1 labeled images have no predictions; say complete if the model saw them: a.jpg",
        "1 predicted images have no labels, not even an empty list; correct their ids or names: c.jpg",
    ]


def test_the_same_stem_in_two_folders_is_not_guessed() -> None:
    labels = source(image("x/a.jpg"), image("y/a.jpg"))
    joined = join(labels, source(found("a.txt")))
    assert pairs(joined) == {}
    assert told(joined)[0] == (
        "2 names fit several images; make them unique, or keep the folders of both alike: x/a.jpg, y/a.jpg"
    )
    joined = join(source(image("x/a.jpg"), image("y/a.jpg")), source(found("x/a.txt"), found("z/a.txt")))
    assert pairs(joined) == {"x/a.jpg": 1}
    assert "1 names fit several images" in told(joined)[0]


def test_folders_that_both_sides_have_tell_stems_apart() -> None:
    labels = source(image("d/x/a.jpg"), image("d/y/a.jpg"), image("a.jpg"))
    predictions = source(found("a.txt", classes=[]), found("y/a.txt"), found("x/a.txt", classes=["cat"] * 2))
    joined = join(labels, predictions)
    assert pairs(joined) == {"d/x/a.jpg": 2, "d/y/a.jpg": 1, "a.jpg": 0}
    assert told(joined) == []


def test_an_image_without_boxes_is_known_and_one_that_is_missing_is_not() -> None:
    labels = source(image("a.jpg", classes=[]), image("b.jpg"), image("c.jpg"))
    joined = join(labels, source(found("a.jpg"), found("b.jpg", classes=[]), found("d.jpg")))
    assert pairs(joined) == {"a.jpg": 1, "b.jpg": 0}
    assert [image.image_id for image in joined.images] == ["a.jpg", "b.jpg", "c.jpg"]
    assert told(joined) == [
        "1 labeled images have no predictions; say complete if the model saw them: c.jpg",
        "1 predicted images have no labels, not even an empty list; correct their ids or names: d.jpg",
    ]


def test_complete_predictions_found_nothing_where_they_say_nothing() -> None:
    joined = join(source(image("a.jpg"), image("b.jpg")), source(found("a.jpg")), complete=True)
    assert pairs(joined) == {"a.jpg": 1, "b.jpg": 0}
    assert told(joined) == [
        "1 labeled images have no predictions; the model, which saw all, found nothing there: b.jpg"
    ]


def test_an_image_whose_predictions_are_unclear_is_not_empty() -> None:
    joined = join(source(image("x/a.jpg"), image("y/a.jpg"), image("b.jpg")), source(found("a.txt")), complete=True)
    assert pairs(joined) == {"b.jpg": 0}
    assert len(joined.images) == 3


def test_labels_alone_have_no_predictions() -> None:
    joined = join(source(image("a.jpg")))
    assert [image.predictions for image in joined.images] == [None]
    assert told(joined) == []


def test_images_whose_labels_could_not_be_read_are_no_empty_images() -> None:
    """Else all that a model finds there would pass for missing labels."""
    problems: list[Problem] = []
    drafts = [Draft(Path("a"), problems.append, file_name=name) for name in ("a.jpg", "b.jpg")]
    drafts[1].add("", SQUARE, "cat")
    for draft in drafts:
        draft.add("", (9, 9, 1, 1), "cat")
    joined = join(source(*(draft.finish() for draft in drafts)), source(found("a.jpg"), found("b.jpg")))
    assert len(problems) == 2
    assert pairs(joined) == {"b.jpg": 1}
    assert told(joined) == [
        "2 labeled images have boxes that could not be read; what lies there may pass for unlabeled, so those "
        "without any other are left out: a.jpg, b.jpg"
    ]


def test_images_whose_predictions_could_not_be_read_are_not_predicted() -> None:
    """Else all labels there would pass for spurious."""
    problems: list[Problem] = []
    draft = Draft(Path("a"), problems.append, file_name="a.jpg")
    draft.add("", SQUARE, "cat", score=80)
    joined = join(source(image("a.jpg")), source(draft.finish()))
    assert len(problems) == 1
    assert [image.predictions for image in joined.images] == [None]
    assert told(joined) == [
        "1 predicted images have boxes that could not be read; their labels may pass for spurious, so those without "
        "any other count as not predicted: a.jpg"
    ]


# Places.


@pytest.mark.parametrize("sized", ["labels", "predictions"])
def test_parts_of_an_image_become_pixels_by_the_size_that_either_side_knows(sized: str) -> None:
    part = (0.1, 0.4, 0.3, 0.8)
    if sized == "labels":
        joined = join(source(image("a")), source(found("a", size=(None, None), box=part, relative=True)))
    else:
        joined = join(source(image("a", size=(None, None), box=part, relative=True)), source(found("a")))
    (only,) = joined.images
    assert (only.width, only.height) == (100, 50)
    assert only.predictions is not None
    np.testing.assert_allclose(only.labels.boxes, [SQUARE])
    np.testing.assert_allclose(only.predictions.boxes, [SQUARE])
    assert told(joined) == []


def test_where_no_size_is_known_two_relative_sides_share_the_unit_square() -> None:
    part = (0.1, 0.4, 0.3, 0.8)
    unsized: dict[str, Any] = {"size": (None, None), "box": part, "relative": True}
    (only,) = join(source(image("a", **unsized)), source(found("a", **unsized))).images
    assert (only.width, only.height) == (1, 1)
    assert only.predictions is not None
    np.testing.assert_array_equal(only.labels.boxes, only.predictions.boxes)


def test_pixels_and_parts_without_a_size_do_not_join() -> None:
    labels = source(image("a", size=(None, None), box=(0.1, 0.4, 0.3, 0.8), relative=True))
    joined = join(labels, source(found("a", size=(None, None))))
    assert joined.images == ()
    assert told(joined) == [
        "1 images are left out: one side has pixels, the other parts of the image, and neither knows its size; read "
        "one of them from a format with sizes: a"
    ]


def test_sizes_that_differ_are_told() -> None:
    joined = join(source(image("a")), source(found("a", size=(200, 100))))
    assert told(joined) == [
        "1 images have other sizes in labels than in predictions; give both for the same picture: a has 100 x 50 and "
        "200 x 100"
    ]


def test_pixels_that_are_parts_of_an_image_are_suspected() -> None:
    joined = join(source(image("a")), source(found("a", size=(None, None), box=(0.1, 0.4, 0.3, 0.8))))
    assert told(joined) == ["1 images have all boxes within one pixel; say that they are relative, if they are: a"]


# Classes.


def predicted(joined: Joined) -> list[str]:
    return [name for image in joined.images if image.predictions is not None for name in image.predictions.classes]


def test_classes_are_spelled_as_the_labels_spell_them() -> None:
    labels = source(image("a", classes=["Traffic Light", "pottedplant"]))
    joined = join(labels, source(found("a", classes=["traffic_light", "potted plant", "potted plant"])))
    assert predicted(joined) == ["Traffic Light", "pottedplant", "pottedplant"]
    assert told(joined) == [
        "2 classes are spelled as in the labels: traffic_light as Traffic Light, potted plant as pottedplant"
    ]


def test_classes_that_the_labels_keep_apart_stay_apart() -> None:
    joined = join(source(image("a", classes=["Car", "car"])), source(found("a", classes=["Car", "car", "CAR"])))
    assert predicted(joined) == ["Car", "car", "CAR"]
    assert [list(image.labels.classes) for image in joined.images] == [["Car", "car"]]
    assert told(joined) == ["1 classes of the predictions fit several of the labels; spell them alike: CAR: Car or car"]


def test_class_numbers_are_those_of_the_labels() -> None:
    labels = source(image("a", classes=["cat", "dog"]), table={0: "cat", 7: "dog"})
    joined = join(labels, source(found("a", classes=[0, 7, 7, 9])))
    assert predicted(joined) == ["cat", "dog", "dog", "9"]
    assert told(joined) == [
        "2 class numbers of predictions were looked up among the labels' classes; name them if these are others: 0 is "
        "cat, 7 is dog",
        "1 classes of the predictions are not among the labels'; rename them or give their names: 9",
    ]


def test_class_numbers_without_any_names_are_names() -> None:
    joined = join(source(image("a", classes=[3])), source(found("a", classes=[3])))
    assert predicted(joined) == ["3"]
    assert joined.images[0].labels.classes == ("3",)
    assert told(joined) == []


def test_classes_that_only_one_side_has_are_told() -> None:
    joined = join(source(image("a", classes=["cat", "tv"])), source(found("a", classes=["cat", "television"])))
    assert told(joined) == [
        "1 classes of the predictions are not among the labels'; rename them or give their names: television",
        "1 classes of the labels are never predicted; their labels will look wrong: tv",
    ]


def test_predictions_without_scores_count_as_sure() -> None:
    joined = join(source(image("a")), source(found("a", classes=["cat", "cat"], scores=[0.5, None])))
    assert joined.images[0].predictions is not None
    assert joined.images[0].predictions.scores.tolist() == [0.5, 1]
    assert told(joined) == ["1 predictions have no score and count as sure; give one each: a"]


# Annotators.


def test_annotators_are_kept_apart_and_who_drew_nothing_counts() -> None:
    both = image("a", 3, ["cat", "dog", "cat"], annotators=["ann", "bob", "ann"], seen_by=["cyd", "bob"])
    (only,) = by_annotator(source(both))
    assert only.skipped == 0
    assert (only.image_id, only.file_name, only.width, only.height) == (3, "a", 100, 50)
    assert {name: labels.classes for name, labels in only.labels.items()} == {
        "cyd": (),
        "bob": ("dog",),
        "ann": ("cat", "cat"),
    }


def test_labels_of_nobody_known_are_not_lost() -> None:
    (only,) = by_annotator(source(image("a", classes=["cat", 2], annotators=["ann", ""], seen_by=[]), table={2: "dog"}))
    assert {name: labels.classes for name, labels in only.labels.items()} == {"ann": ("cat",), "": ("dog",)}


# The real sets.

LABELS = [
    "pascalvoc_format",
    "imagenet_format",
    "yolo_format",
    "coco_format_v1",
    "coco_format_v2",
    "cvat_format",
    "openimages_format",
]
PREDICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("coco_format", {}),
    ("abs_xyx2y2", {"names": VOC_CLASSES}),
    ("abs_xywh", {"names": VOC_CLASSES, "layout": "xywh"}),
    ("rel_xywh", {"names": VOC_CLASSES, "layout": "cxcywh", "relative": True, "format": "txt"}),
]


def joined_voc(labels: str, predictions: str, options: dict[str, Any]) -> Joined:
    root = folder("voc100_multiformat")
    report: list[Problem] = []
    joined = join(
        read(root / "gts" / labels, "labels", report.append),
        read(root / "dets" / predictions, "predictions", report.append, **options),
    )
    assert report == []
    return joined


def boxes(images: Iterable[Image], stem_of: dict[str, tuple[float, float]]) -> dict[str, list[Any]]:
    """Rounded boxes of the predictions of each image in pixels, by stem."""
    result = {}
    for image in images:
        assert image.file_name is not None
        stem = parts(image.file_name)[-1]
        scale = stem_of[stem] if image.width == 1 else (1, 1)
        if image.predictions is not None:
            numbers = image.predictions.boxes * [*scale, *scale]
            result[stem] = sorted(zip(image.predictions.classes, numbers.round(1).tolist(), strict=True))
    return result


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("predictions", "options"), PREDICTIONS)
def test_seven_formats_join_four_layouts_by_stem_and_class(
    labels: str, predictions: str, options: dict[str, Any]
) -> None:
    joined = joined_voc(labels, predictions, options)
    notes = told(joined)
    if labels in ("yolo_format", "openimages_format") and predictions.startswith("abs"):
        assert [len(image.labels) > 0 and image.predictions is None for image in joined.images] == [True, True]
        assert any(note.startswith("98 images are left out: one side has pixels, the other parts") for note in notes)
        return
    assert len(joined.images) == 100
    assert sum(len(image.labels) for image in joined.images) == 273
    assert sum(pairs(joined).values()) == 452
    assert {parts(str(image.file_name))[-1] for image in joined.images if image.predictions is None} == {
        "2007_000676",
        "2007_001377",
    }
    assert any(note.startswith("2 labeled images have no predictions") for note in notes)
    assert not any("class" in note for note in notes)
    reference = joined_voc("pascalvoc_format", "coco_format", {})
    sizes = {parts(str(image.file_name))[-1]: (image.width or 0, image.height or 0) for image in reference.images}
    mine, theirs = boxes(joined.images, sizes), boxes(reference.images, sizes)
    assert mine.keys() == theirs.keys()
    for stem, expected in theirs.items():
        assert [name for name, _ in mine[stem]] == [name for name, _ in expected]
        np.testing.assert_allclose([box for _, box in mine[stem]], [box for _, box in expected], rtol=0, atol=0.11)


def test_coco_results_join_by_number_of_image_and_class() -> None:
    root = folder("coco_val2014_100")
    report: list[Problem] = []
    joined = join(
        read(root / "instances_val2014_100.json", "labels", report.append),
        read(root / "instances_val2014_fakebbox100_results.json", "predictions", report.append),
        complete=True,
    )
    assert len(joined.images) == 100
    assert sum(pairs(joined).values()) == 734
    assert sum(int(image.labels.crowd.sum()) for image in joined.images) == 9
    assert not any("not among" in note or "no labels" in note for note in told(joined))


def test_the_image_2299_joins_although_its_id_is_a_string() -> None:
    root = folder("fcoco_ignore_fixtures")
    report: list[Problem] = []
    joined = join(
        read(root / "gt_ignore_test.json", "labels", report.append),
        read(root / "dt_ignore_test.json", "predictions", report.append),
    )
    assert pairs(joined) == {"2299": 63}
    assert len(joined.images[0].labels) == 14


def test_cartucho_joins_without_sizes() -> None:
    root = folder("cartucho_map_85")
    report: list[Problem] = []
    joined = join(
        read(root / "ground-truth", "labels", report.append),
        read(root / "detection-results", "predictions", report.append),
    )
    assert len(pairs(joined)) == 85
    assert sum(len(image.labels) for image in joined.images) == 686


def test_three_annotators_have_91_rectangles_between_them() -> None:
    report: list[Problem] = []
    found = list(by_annotator(read(folder("labelstudio_3annotators") / "test_bbox.json", "labels", report.append)))
    assert report == []
    assert [len(image.labels) for image in found] == [3] * 5
    assert sum(len(labels) for image in found for labels in image.labels.values()) == 91
    assert all(labels.annotators == (name,) * len(labels) for image in found for name, labels in image.labels.items())


# Any names.

names = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)


@settings(deadline=None)
@given(st.lists(names, max_size=6), st.lists(names, max_size=6))
def test_no_image_joins_twice_and_none_is_lost(mine: list[str], theirs: list[str]) -> None:
    joined = join(source(*map(image, mine)), source(*map(found, theirs)))
    assert [image.file_name for image in joined.images] == mine
    matched = len(pairs(joined))
    counts = {mismatch.what.split(" images have no ")[0]: mismatch.count for mismatch in joined.mismatches}
    assert counts.get("labeled", 0) == len(mine) - matched
    assert counts.get("predicted", 0) == len(theirs) - matched
    for name in set(mine):
        if mine.count(name) == 1 and theirs.count(name) == 1:
            assert name in pairs(joined)
