"""Text files of `class [score]` and four numbers, one for each image: Cartucho's mAP, Object-Detection-Metrics."""

from __future__ import annotations

from collections.abc import Iterator

from boxloss.files.annotations import Annotations, Draft, Source
from boxloss.files.formats.names import BESIDE
from boxloss.files.formats.request import Request, corners
from boxloss.files.formats.table import class_of
from boxloss.files.formats.text import lines, name_under, number, wanted


def read(request: Request) -> Source:
    """Reads a file or a folder, with subfolders; an empty file says that its image has no boxes.

    Nothing in these files says which layout the numbers have: the request must. The names of classes may have spaces,
    but must not end in a number.
    """
    return Source(request.path, "txt", _images(request), request.names or {})


def _images(request: Request) -> Iterator[Annotations]:
    for path in wanted(request, ".txt"):
        if path.name in BESIDE or (found := lines(path, request)) is None:
            continue
        draft = Draft(path, request.report, file_name=name_under(request.path, path), relative=request.relative)
        for line, text in found:
            _add(draft, f"line {line}", text.split(), request)
        yield draft.finish()


def _add(draft: Draft, place: str, words: list[str], request: Request) -> None:
    numbers = [found for word in words[-4:] if (found := number(word)) is not None]
    first, score = words[:-4], None
    if len(first) > 1 and (score := number(first[-1])) is not None:
        first.pop()
    if not first or len(numbers) < 4 or (len(first) > 1 and number(first[-1]) is not None):
        shown = " ".join(words)
        draft.problem(place, f"{shown!r:.60} is no box", "give a class, perhaps a score, and four numbers", "line")
        return
    a, b, c, d = numbers
    category = class_of(request.names, " ".join(first), draft, place)
    draft.add(place, corners(request.layout, (a, b, c, d)), category, score=score)
