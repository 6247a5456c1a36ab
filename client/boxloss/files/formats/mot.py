"""MOTChallenge text: one file for each sequence, `frame, id, x, y, w, h, confidence, class, visibility`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path

from boxloss.files.annotations import Annotations, Class, Draft, Source
from boxloss.files.formats.request import Request, corners, named
from boxloss.files.formats.text import lines, number, wanted

NAMES = (
    "pedestrian",
    "person on vehicle",
    "car",
    "bicycle",
    "motorbike",
    "non motorized vehicle",
    "static person",
    "distractor",
    "occluder",
    "occluder on the ground",
    "occluder full",
    "reflection",
    "crowd",
)
"""Of MOTChallenge's classes, from 1; what has no class is a pedestrian there."""


def read(request: Request) -> Source:
    """Reads a sequence, or a folder of them, whose images are then called SEQUENCE/FRAME.

    In labels the seventh number is a flag: boxes with 0, which the challenge leaves out, become difficult. In
    predictions it is the score. Boxes are taken as they stand, although the format counts from 1.
    """
    return Source(request.path, "mot", _images(request))


def _images(request: Request) -> Iterator[Annotations]:
    name = "gt.txt" if request.role == "labels" else "det.txt"
    found = [path for path in wanted(request, ".txt") if path.name != "labels.txt"]
    found = [path for path in found if path.name == name] or found
    for path in found:
        yield from _sequence(request, path, "" if path == request.path else f"{_sequence_name(path)}/")


def _sequence_name(path: Path) -> str:
    return path.parent.parent.name if path.parent.name in ("gt", "det") else path.stem


def _sequence(request: Request, path: Path, prefix: str) -> Iterator[Annotations]:
    beside = path.with_name("labels.txt")
    names = request.names
    if names is None:  # CVAT names the classes of its MOT export beside them, from 1.
        listed = lines(beside, request) if beside.is_file() else None
        names = dict(enumerate([name.strip() for _, name in listed] if listed else NAMES, 1))
    drafts: dict[int, Draft] = {}
    for row, (line, text) in enumerate(lines(path, request) or ()):
        place = f"line {line}"
        cells = [found for cell in text.split(",") if (found := number(cell)) is not None and isfinite(found)]
        if len(cells) < 6 or len(cells) <= text.strip().rstrip(",").count(",") or not cells[0].is_integer():
            what = f"{text.strip()!r:.60} is no box"
            request.problem(place, what, "give frame, id, x, y, w, h, confidence, class as numbers", "line", path)
            continue
        frame = int(cells[0])
        if frame not in drafts:
            drafts[frame] = Draft(path, request.report, image_id=f"{prefix}{frame}" if prefix else frame)
        _add(drafts[frame], place, row, cells, names, is_label=request.role == "labels")
    for draft in drafts.values():
        yield draft.finish()


def _add(draft: Draft, place: str, row: int, cells: list[float], names: Mapping[Class, str], *, is_label: bool) -> None:
    _, track, x, y, w, h, flag, category = (cells + [1, -1][len(cells) - 6 :])[:8] if len(cells) < 8 else cells[:8]
    if category < 0:
        category = 1
    draft.add(
        place,
        corners("xywh", (x, y, w, h)),
        named(names, int(category), lambda what, fix: draft.problem(place, what, fix)),
        box_id=int(track) if track >= 0 else None,
        row=row,
        score=None if is_label else flag,
        difficult=is_label and flag == 0,
    )
