"""Label Studio's JSON export, and the predictions in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from boxloss.files.annotations import Annotations, Draft, Source
from boxloss.files.filenames import is_picture
from boxloss.files.formats.document import complaint, load, part
from boxloss.files.formats.request import Request, corners

_SHAPES = frozenset({"brush", "ellipse", "keypoint", "polygon", "rectangle", "vector"})


class _Task(msgspec.Struct):
    data: dict[str, Any]
    id: int | str | None = None
    annotations: list[msgspec.Raw] = []
    predictions: list[msgspec.Raw] = []


class _Person(msgspec.Struct):
    id: int | None = None
    email: str = ""


class _Work(msgspec.Struct):
    """One annotation, which is all that one person drew in a task, or one prediction."""

    result: list[msgspec.Raw]
    id: int | str | None = None
    completed_by: int | str | _Person | None = None
    was_cancelled: bool | None = None
    model_version: str | None = None
    score: float | None = None


class _Region(msgspec.Struct):
    type: str = ""
    id: int | str | None = None
    value: msgspec.Raw = msgspec.Raw(b"{}")
    image_rotation: float | None = None
    original_width: float | None = None
    original_height: float | None = None
    score: float | None = None


class _Rectangle(msgspec.Struct):
    x: float
    y: float
    width: float
    height: float
    rectanglelabels: list[str]
    rotation: float | None = None


def read(request: Request) -> Source:
    """Reads the rectangles of all annotations of each task, with who completed them.

    If predictions are wanted, those of each task's last one are read instead. Rotated rectangles and other regions are
    reported and skipped.

    A box's id is that of the annotation and that of the region, "148/SMiPhTvFAt": regions that were copied from one
    annotator to another share theirs.
    """
    document = load(request)
    if isinstance(document, dict):
        fix = "give Label Studio's JSON export, which is a list of tasks"
        request.problem("", f"holds an object with {', '.join(sorted(document)[:8]) or 'nothing'}", fix, "file")
    return Source(request.path, "labelstudio", _images(request, document) if isinstance(document, list) else ())


def _images(request: Request, tasks: list[msgspec.Raw]) -> Iterator[Annotations]:
    for row, raw in enumerate(tasks):
        try:
            task = part(raw, _Task)
        except msgspec.MsgspecError as error:
            request.problem(f"[{row}]", complaint(error), "give tasks as Label Studio's JSON export has them", "image")
            continue
        place = f"task {task.id}"
        works = _works(request, f"{place}: annotations", task.annotations)
        if request.role == "predictions":
            works = _works(request, f"{place}: predictions", task.predictions)
            for other, prediction in works[:-1]:
                what = f"is one of {len(works)} predictions, of model version {prediction.model_version}"
                request.problem(other, what, "only the last is read; delete the others", "annotation")
            works = works[-1:]
        if works:  # A task that nobody looked at says nothing about its image.
            yield _image(request, task, works)


def _works(request: Request, name: str, rows: list[msgspec.Raw]) -> list[tuple[str, _Work]]:
    works = []
    for row, raw in enumerate(rows):
        place = f"{name}[{row}]"
        try:
            work = part(raw, _Work)
        except msgspec.MsgspecError as error:
            request.problem(place, complaint(error), "export it with its result", "annotation")
            continue
        if work.was_cancelled:
            request.problem(place, "was cancelled by its annotator", "submit it, if it counts", "annotation")
        else:
            works.append((place, work))
    return works


def _image(request: Request, task: _Task, works: list[tuple[str, _Work]]) -> Annotations:
    regions = [(work, *region) for place, work in works for region in _regions(request, place, work)]
    sized = next((region for *_, region in regions if region.original_width and region.original_height), _Region())
    draft = Draft(
        request.path,
        request.report,
        image_id=task.id,
        file_name=_file_name(task.data),
        width=sized.original_width,
        height=sized.original_height,
        relative=True,
    )
    for _, work in works:
        if annotator := _annotator(work):
            draft.seen_by(annotator)
    for work, place, region in regions:
        _add(draft, place, work, region)
    return draft.finish()


def _regions(request: Request, name: str, work: _Work) -> Iterator[tuple[str, _Region]]:
    for row, raw in enumerate(work.result):
        place = f"{name}.result[{row}]"
        try:
            yield place, part(raw, _Region)
        except msgspec.MsgspecError as error:
            request.problem(place, complaint(error), "give regions as Label Studio's JSON export has them", "box")


def _add(draft: Draft, place: str, work: _Work, region: _Region) -> None:
    if region.type != "rectanglelabels":
        fix = "draw rectangles with labels: only boxes are audited"
        is_shape = region.type.removesuffix("labels") in _SHAPES
        draft.problem(place, f"is of type {region.type or 'nothing'}", fix, "box" if is_shape else "annotation")
        return
    try:
        value = part(region.value, _Rectangle)
    except msgspec.MsgspecError as error:
        draft.problem(place, complaint(error), "give x, y, width and height in percent, and rectanglelabels", "box")
        return
    if value.rotation or region.image_rotation:
        turned = f"is rotated by {value.rotation or region.image_rotation:g} degrees"
        draft.problem(place, turned, "only upright boxes are audited", "box")
        return
    if not value.rectanglelabels:
        draft.problem(place, "has no label", "name its class", "box")
        return
    if len(value.rectanglelabels) > 1:
        what = f"has {len(value.rectanglelabels)} labels"
        draft.problem(place, what, f"give one; it is taken as {value.rectanglelabels[0]}")
    x1, y1, x2, y2 = corners("xywh", (value.x, value.y, value.width, value.height))
    ids = [str(found) for found in (work.id, region.id) if found is not None]
    draft.add(
        place,
        (x1 / 100, y1 / 100, x2 / 100, y2 / 100),
        value.rectanglelabels[0],
        box_id="/".join(ids) or None,
        score=region.score if region.score is not None else work.score,
        annotator=_annotator(work),
    )


def _annotator(work: _Work) -> str:
    match work.completed_by:
        case None:
            return ""
        case _Person(id=number, email=email):
            return email or ("" if number is None else str(number))
        case name:
            return str(name)


def _file_name(data: dict[str, Any]) -> str | None:
    """The name of the task's picture, from its URL."""
    texts = [_path(text) for text in [data.get("image"), *data.values()] if isinstance(text, str)]
    return next((text for text in texts if is_picture(text)), texts[0] if "image" in data and texts else None)


def _path(url: str) -> str:
    pieces = urlsplit(url)
    if pieces.path.endswith("/local-files/"):
        return parse_qs(pieces.query).get("d", [url])[0]
    path = unquote(pieces.path)
    # An upload's name is preceded by eight digits that keep it apart from others.
    return re.sub(r"^(.*/upload/.*?)[0-9a-f]{8}-([^/]+)$", r"\1\2", path)
