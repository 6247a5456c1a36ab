"""Pascal VOC and CVAT are read, and nothing that is wrong stops the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxloss.files.formats.markup import elements
from tests.readers import clean, faulty, voc, write

# Pascal VOC.


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


# XML.


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


# CVAT.


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
