"""YOLO, OpenImages, MOTChallenge, CSV and text are read, and nothing that is wrong stops the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.readers import clean, everything, faulty, write

# YOLO.


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


# OpenImages.


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


# MOTChallenge.


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


# CSV.


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


# Text.


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
