"""OpenImages CSV: boxes as parts of the image, in the order XMin, XMax, YMin, YMax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from boxloss.files.annotations import Annotations, Draft, Source
from boxloss.files.formats.request import Request
from boxloss.files.formats.table import box_of, gathered, header
from boxloss.files.formats.text import number

COLUMNS = frozenset({"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"})


def read(request: Request) -> Source:
    """Reads a file. IsGroupOf becomes crowd, Confidence the score; numbers may have decimal commas. The classes are
    names or, with class-descriptions.csv as names, machine ids.
    """
    return Source(request.path, "openimages", _images(request))


def _images(request: Request) -> Iterator[Annotations]:
    if missing := COLUMNS - set(header(request.path)):
        what = f"lacks the columns {', '.join(sorted(missing))}"
        request.problem("line 1", what, "name them in the first line, as OpenImages does", "file")
        return

    def add(draft: Draft, row: int, place: str, cells: Mapping[str, str]) -> None:
        if (box := box_of(draft, place, [cells[side] for side in ("xmin", "ymin", "xmax", "ymax")])) is None:
            return
        if not (name := cells["labelname"]):
            draft.problem(place, "has no LabelName", "name its class", "box")
            return
        if request.names and name.startswith("/m/") and name not in request.names:
            draft.problem(place, f"the class {name} has no name", "add it to the names")
        draft.add(
            place,
            box,
            (request.names or {}).get(name, name),
            row=row,
            score=number(cells.get("confidence", "")),
            crowd=cells.get("isgroupof") == "1",
        )

    yield from gathered(request, "imageid", add, relative=True)
