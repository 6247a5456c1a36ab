"""Pascal VOC XML, one file for each image; ImageNet's is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from boxloss.files.annotations import Annotations, Draft, Source
from boxloss.files.filenames import parts
from boxloss.files.formats.markup import reported, tree
from boxloss.files.formats.request import Request
from boxloss.files.formats.text import name_under, wanted

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read(request: Request) -> Source:
    """Reads a file or a folder, with subfolders. The boxes are taken as they stand, although VOC counts from 1."""
    return Source(request.path, "voc", _images(request))


def _images(request: Request) -> Iterator[Annotations]:
    for path in wanted(request, ".xml"):
        with reported(path, request):
            root = tree(path)
            if root.tag == "annotation":
                yield _image(request, path, root)
            else:
                fix = "give files of Pascal VOC, whose root is annotation"
                request.problem("", f"has the root {root.tag}", fix, "file", path)


def _image(request: Request, path: Path, root: Element) -> Annotations:
    size = root.find("size")
    width, height = (None, None) if size is None else (_number(size, "width"), _number(size, "height"))
    name = name_under(request.path, path)
    picture = PurePosixPath((root.findtext("filename") or "").strip().replace("\\", "/")).name
    same = not picture or parts(picture)[-1:] == parts(name)[-1:]
    draft = Draft(
        path,
        request.report,
        file_name=str(PurePosixPath(name).with_name(picture)) if picture and same else name,
        width=width,
        height=height,
    )
    if not same:
        what = f"names the picture {picture}, but is itself called {path.name}"
        draft.problem("filename", what, f"call both the same; it is taken as {path.stem}")
    for index, element in enumerate(root.iterfind("object")):
        _add(draft, f"object[{index}]", element)
    return draft.finish()


def _add(draft: Draft, place: str, element: Element) -> None:
    name = (element.findtext("name") or "").strip()
    if not name:
        draft.problem(place, "has no name", "name its class", "box")
        return
    if (box := element.find("bndbox")) is None:
        shapes = ", ".join(sorted({child.tag for child in element} & {"polygon", "robndbox"}))
        draft.problem(place, f"has {shapes or 'nothing'} for a bndbox", "give one, with axis-aligned sides", "box")
        return
    x1, y1, x2, y2 = (_number(box, side) for side in _SIDES)
    if x1 is None or y1 is None or x2 is None or y2 is None:
        draft.problem(place, "has a bndbox without four numbers", f"give {', '.join(_SIDES)}", "box")
        return
    difficult = (element.findtext("difficult") or "").strip() == "1"
    draft.add(place, (x1, y1, x2, y2), name, difficult=difficult)


def _number(element: Element, tag: str) -> float | None:
    try:
        return float(element.findtext(tag) or "")
    except ValueError:
        return None
