"""COCO: a dataset, or the list of a model's results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from boxloss.audit.image import Id
from boxloss.files.annotations import Annotations, Class, Draft, Source
from boxloss.files.formats.document import complaint, load, part
from boxloss.files.formats.request import Request, corners, named


class _Image(msgspec.Struct):
    id: int | str
    file_name: str | None = None
    width: float | None = None
    height: float | None = None


class _Category(msgspec.Struct):
    id: int | str
    name: str


class _Owner(msgspec.Struct):
    image_id: int | str


class _Annotation(msgspec.Struct):
    category_id: int | str
    bbox: tuple[float, float, float, float]
    id: int | str | None = None
    score: float | None = None
    iscrowd: int | bool | None = None
    ignore: int | bool | None = None
    annotator: int | str | None = None


T = TypeVar("T")


def read(request: Request) -> Source:
    """Reads a dataset with `images`, `categories` and `annotations`, or a results list.

    `iscrowd` becomes crowd, `ignore` difficult; `annotator` of an annotation, which some tools add, is kept. A dataset
    knows all that it lists as images; a results list only the images that it has results for.
    """
    document = load(request)
    if document is None:
        return Source(request.path, "coco")
    if isinstance(document, list):
        return Source(request.path, "coco", _images(request, None, document, request.names or {}))
    if "annotations" not in document:
        keys = ", ".join(sorted(document)[:8]) or "nothing"
        fix = "give a COCO dataset, which has annotations, or a results list"
        request.problem("", f"holds an object with {keys}", fix, "file")
        return Source(request.path, "coco")
    categories = request.names or _categories(request, _rows(request, document, "categories"))
    images = _rows(request, document, "images")
    annotations = _rows(request, document, "annotations")
    return Source(request.path, "coco", _images(request, images, annotations, categories), categories)


def _rows(request: Request, document: Mapping[str, msgspec.Raw], key: str) -> list[msgspec.Raw]:
    try:
        return part(document[key], list[msgspec.Raw]) if key in document else []
    except msgspec.MsgspecError as error:
        request.problem(key, complaint(error), f"give the {key} as a list", "file")
        return []


def _parts(request: Request, rows: Sequence[msgspec.Raw], key: str, kind: type[T]) -> Iterator[tuple[str, T]]:
    for row, raw in enumerate(rows):
        try:
            yield f"{key}[{row}]", part(raw, kind)
        except msgspec.MsgspecError as error:
            request.problem(f"{key}[{row}]", complaint(error), f"write it as COCO's {key} are", "line")


def _categories(request: Request, rows: Sequence[msgspec.Raw]) -> dict[Class, str]:
    names: dict[Class, str] = {}
    for place, category in _parts(request, rows, "categories", _Category):
        number = _number(category.id)
        if number in names and names[number] != category.name:
            request.problem(place, f"the id {category.id!r} is used twice", "give each category its own", "line")
        names.setdefault(number, category.name)
    return names


def _images(
    request: Request,
    images: Sequence[msgspec.Raw] | None,
    annotations: Sequence[msgspec.Raw],
    categories: Mapping[Class, str],
) -> Iterator[Annotations]:
    """Each image with its annotations, which come in any order; `images` is None for a results list, which has none."""
    name = "" if images is None else "annotations"
    rows: dict[str, list[int]] = {}
    owners: dict[str, Id] = {}
    for row, raw in enumerate(annotations):
        try:
            owner = part(raw, _Owner).image_id
        except msgspec.MsgspecError as error:
            request.problem(f"{name}[{row}]", complaint(error), "name its image", "box")
            continue
        rows.setdefault(str(owner), []).append(row)
        owners.setdefault(str(owner), owner)
    ids: set[str] = set()

    def filled(draft: Draft, rows: Sequence[int]) -> Annotations:
        for row in rows:
            _add(draft, f"{name}[{row}]", row, annotations[row], categories)
        return draft.finish()

    known: set[str] = set()
    for place, image in _parts(request, images or [], "images", _Image):
        if (key := str(image.id)) in known:
            request.problem(place, f"the id {image.id!r} is used twice", "give each image its own", "image")
            continue
        known.add(key)
        draft = Draft(
            request.path,
            request.report,
            image_id=image.id,
            file_name=image.file_name,
            width=image.width,
            height=image.height,
            ids=ids,
        )
        yield filled(draft, rows.pop(key, ()))
    for key, orphans in rows.items():
        if images is not None:
            what = f"the image {owners[key]!r} of {len(orphans)} annotations is not among images"
            request.problem(f"{name}[{orphans[0]}]", what, "list it, with its size")
        yield filled(Draft(request.path, request.report, image_id=owners[key], ids=ids), orphans)


def _add(draft: Draft, place: str, row: int, raw: msgspec.Raw, categories: Mapping[Class, str]) -> None:
    try:
        annotation = part(raw, _Annotation)
    except msgspec.MsgspecError as error:
        draft.problem(place, complaint(error), "write it as COCO does: category_id and bbox [x, y, w, h]", "box")
        return
    number = _number(annotation.category_id)
    draft.add(
        place,
        corners("xywh", annotation.bbox),
        named(categories, number, lambda what, fix: draft.problem(place, what, fix)),
        box_id=annotation.id,
        row=row,
        score=annotation.score,
        crowd=bool(annotation.iscrowd),
        difficult=bool(annotation.ignore),
        annotator="" if annotation.annotator is None else str(annotation.annotator),
    )


def _number(category: int | str) -> Class:
    """Ids are numbers; some tools write them as strings."""
    try:
        return int(category)
    except ValueError:
        return category
