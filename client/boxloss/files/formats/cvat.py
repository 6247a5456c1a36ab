"""CVAT XML 1.1 for images: one file for all."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from boxloss.files.annotations import Annotations, Draft, Source
from boxloss.files.formats.markup import elements, reported
from boxloss.files.formats.request import Request
from boxloss.files.formats.text import wanted

_SIDES = ("xtl", "ytl", "xbr", "ybr")
_SHAPES = frozenset({"polygon", "polyline", "points", "ellipse", "cuboid", "mask", "skeleton"})


def read(request: Request) -> Source:
    """Reads a file, image by image. Boxes with a rotation, and shapes other than boxes, are reported and skipped."""
    return Source(request.path, "cvat", _images(request))


def _images(request: Request) -> Iterator[Annotations]:
    for path in wanted(request, ".xml"):
        with reported(path, request):
            for root, element in elements(path):
                if root.tag != "annotations":
                    fix = "give a file of CVAT for images 1.1, whose root is annotations"
                    request.problem("", f"has the root {root.tag}", fix, "file", path)
                    break
                if element.tag == "image":
                    yield _image(request, element)
                elif element.tag == "track":
                    place, fix = f"track {element.get('id')}", "export it as CVAT for images 1.1"
                    request.problem(place, "is of CVAT for video, which is not read", fix, "annotation", path)


def _image(request: Request, element: Element) -> Annotations:
    draft = Draft(
        request.path,
        request.report,
        image_id=element.get("id"),
        file_name=element.get("name"),
        width=_number(element, "width"),
        height=_number(element, "height"),
    )
    for index, shape in enumerate(element):
        place = f"image {element.get('id')} {element.get('name')}: {shape.tag}[{index}]"
        if shape.tag == "box":
            _add(draft, place, shape)
        elif shape.tag in _SHAPES:
            draft.problem(place, f"is a {shape.tag}", "draw a box: only boxes are audited", "box")
    return draft.finish()


def _add(draft: Draft, place: str, shape: Element) -> None:
    x1, y1, x2, y2 = (_number(shape, side) for side in _SIDES)
    if x1 is None or y1 is None or x2 is None or y2 is None:
        draft.problem(place, "is a box without four numbers", f"give {', '.join(_SIDES)}", "box")
        return
    if not (label := shape.get("label")):
        draft.problem(place, "has no label", "name its class", "box")
        return
    if _number(shape, "rotation"):
        draft.problem(place, f"is rotated by {shape.get('rotation')} degrees", "only upright boxes are audited", "box")
        return
    draft.add(place, (x1, y1, x2, y2), label)


def _number(element: Element, name: str) -> float | None:
    try:
        return float(element.get(name, ""))
    except ValueError:
        return None
