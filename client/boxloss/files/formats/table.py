"""CSV with a header: `image,class,x1,y1,x2,y2[,score]` and its like.

The csv module counts lines and goes on after a broken one; pyarrow stops there, and counts rows.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from boxloss.files.annotations import Annotations, Class, Corners, Draft, Source
from boxloss.files.filenames import is_picture
from boxloss.files.formats.request import Layout, Request, corners, named
from boxloss.files.formats.text import number

_BOXES: tuple[tuple[Layout, tuple[str, str, str, str]], ...] = (
    ("xyxy", ("x1", "y1", "x2", "y2")),
    ("xyxy", ("xmin", "ymin", "xmax", "ymax")),
    ("xywh", ("x", "y", "w", "h")),
    ("xywh", ("x", "y", "width", "height")),
    ("cxcywh", ("cx", "cy", "w", "h")),
    ("cxcywh", ("cx", "cy", "width", "height")),
)
_IMAGE = ("image", "filename", "file_name", "image_id")
_CLASS = ("class", "label", "category")
_SCORE = ("score", "confidence")

Row: TypeAlias = tuple[int, str, Mapping[str, str]]
"""Its number, from 0 below the header, its place, and its cells by the names of their columns, in small letters."""


def read(request: Request) -> Source:
    """Reads a file. The header says which layout the boxes have; the columns score, id and annotator may be left out.

    A row with an image and empty cells says that the image has no boxes.
    """
    return Source(request.path, "csv", _images(request))


def _images(request: Request) -> Iterator[Annotations]:
    columns = header(request.path)
    found = next(((layout, names) for layout, names in _BOXES if set(names) <= set(columns)), None)
    image, category = _among(_IMAGE, columns), _among(_CLASS, columns)
    if found is None or not image or not category:
        what = f"has the columns {', '.join(columns) or 'of an empty file'}"
        request.problem("line 1", what, "name image, class, x1, y1, x2, y2 and perhaps score in the first line", "file")
        return
    layout, sides = found
    score = _among(_SCORE, columns)

    def add(draft: Draft, row: int, place: str, cells: Mapping[str, str]) -> None:
        if not any(cells[name] for name in (*sides, category)):
            return
        if (box := box_of(draft, place, [cells[name] for name in sides])) is None:
            return
        surety = number(cells[score]) if score and cells[score] else None
        if score and cells[score] and surety is None:
            draft.problem(place, f"has the score {cells[score]!r:.40}", "give a number", "box")
            return
        if not (name := cells[category]):
            draft.problem(place, "has no class", "name it", "box")
            return
        draft.add(
            place,
            corners(layout, box),
            class_of(request.names, name, draft, place),
            box_id=cells.get("id") or None,
            row=row,
            score=surety,
            annotator=cells.get("annotator", ""),
        )

    yield from gathered(request, image, add, relative=request.relative)


def gathered(
    request: Request, image: str, add: Callable[[Draft, int, str, Mapping[str, str]], None], *, relative: bool
) -> Iterator[Annotations]:
    """The images of a file whose rows come in any order; `image` is the column that names a row's."""
    drafts: dict[str, Draft] = {}
    for row, place, cells in _rows(request):
        if not (name := cells[image]):
            request.problem(place, "names no image", f"fill the column {image}", "line")
            continue
        if name not in drafts:
            is_file = is_picture(name) or "/" in name or "\\" in name
            drafts[name] = Draft(
                request.path,
                request.report,
                image_id=None if is_file else name,
                file_name=name if is_file else None,
                relative=relative,
            )
        add(drafts[name], row, place, cells)
    for draft in drafts.values():
        yield draft.finish()


def header(path: Path) -> list[str]:
    """The names of the columns, in small letters; empty where the file has none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline()
    except (OSError, UnicodeDecodeError):
        return []
    return [cell.strip().lower() for cell in next(csv.reader([line], delimiter=_delimiter(line)), [])]


def box_of(draft: Draft, place: str, cells: list[str]) -> Corners | None:
    """The four numbers of a box; None, after a report, if they are none."""
    a, b, c, d = map(number, cells)
    if a is None or b is None or c is None or d is None:
        draft.problem(place, f"the box ({', '.join(cells):.60}) is not four numbers", "give numbers", "box")
        return None
    return a, b, c, d


def class_of(names: Mapping[Class, str] | None, text: str, draft: Draft, place: str) -> Class:
    """The class that a cell or a word names. Whole numbers are looked up in the names."""
    if names and text in names:
        return names[text]
    try:
        category = int(text)
    except ValueError:
        return text
    return named(names or {}, category, lambda what, fix: draft.problem(place, what, fix))


def _rows(request: Request) -> Iterator[Row]:
    columns = header(request.path)
    try:
        with request.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_delimiter(file.readline()))
            file.seek(0)
            rows = ((reader.line_num, cells) for cells in reader if cells and reader.line_num > 1)
            for row, (line, cells) in enumerate(rows):
                place = f"line {line}"
                if len(cells) != len(columns):
                    what = f"has {len(cells)} cells for {len(columns)} columns"
                    request.problem(place, what, "give one for each; quote those with a comma", "line")
                    continue
                yield row, place, dict(zip(columns, map(str.strip, cells), strict=True))
    except UnicodeDecodeError:
        request.problem("", "is not text in UTF-8 from there on", "save it as UTF-8", "file")
    except csv.Error as error:
        request.problem("", f"is not CSV from there on: {error}", "correct that", "file")
    except OSError as error:
        request.problem("", f"cannot be read: {error.strerror}", "correct that", "file")


def _delimiter(line: str) -> str:
    return ";" if ";" in line else ","


def _among(names: tuple[str, ...], columns: list[str]) -> str:
    return next((name for name in names if name in columns), "")
