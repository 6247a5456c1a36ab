"""What a source says of its images, before labels and predictions are joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TypeAlias

import numpy as np

from boxloss.audit.image import Flags, Id
from boxloss.contract.arrays import Array
from boxloss.files.problems import Problem, Report, Skipped

Class: TypeAlias = str | int
"""The name of a class, or its number where the source does not name it."""
Corners: TypeAlias = tuple[float, float, float, float]

OUTSIDE = 1.0
"""Pixels that a box may lie outside its image before that is a problem: tools round, and count from 0 or from 1."""
OUTSIDE_RELATIVE = 1 / 500
"""The same where sizes are not known, as part of the image."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """What one source says of one image. A source that knows an image without boxes says so with no boxes.

    Attributes:
        source: the file.
        boxes: (x1, y1, x2, y2) of shape (N, 4), float64, in pixels.
        classes: of each box.
        image_id: where the source has one; it may be 0 or a string.
        file_name: of the picture, as given; without its ending where only the boxes' own file tells it.
        width: in pixels; None where it is not known.
        height: in pixels; None where it is not known.
        relative: whether the boxes are parts of the image, 0 to 1, because its size is not known.
        ids: of each box; None where it has none.
        rows: of each box: its place, from 0, in the list or table that it comes from, or among those of its image's
            file; what was skipped counts.
        scores: of each box, NaN where it has none; None where no box has one.
        crowd: boxes that stand for many objects.
        difficult: boxes that may be overlooked.
        annotators: who drew each box; empty where that is not known.
        seen_by: who looked at the image, those who drew nothing too.
        skipped: number of boxes that the source has and that could not be used.
    """

    source: Path
    boxes: Array
    classes: tuple[Class, ...]
    image_id: Id | None
    file_name: str | None
    width: float | None
    height: float | None
    relative: bool
    ids: tuple[Id | None, ...]
    rows: tuple[int, ...]
    scores: Array | None
    crowd: Flags
    difficult: Flags
    annotators: tuple[str, ...]
    seen_by: tuple[str, ...]
    skipped: int

    def __len__(self) -> int:
        return len(self.boxes)

    def __str__(self) -> str:
        return self.file_name if self.file_name is not None else str(self.image_id)


@dataclass(frozen=True)
class Source:
    """The images of a file or folder; they are read while one iterates, once.

    Attributes:
        path: of the file or folder.
        format: its name.
        images: what is said of each.
        categories: names of classes by number, where the source has such a table.
    """

    path: Path
    format: str
    images: Iterable[Annotations] = ()
    categories: Mapping[Class, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Annotations]:
        return iter(self.images)


class Draft:
    """The annotations of one image while they are read.

    It checks each box: what cannot be used is reported and skipped, what is odd is reported and kept.

    Args:
        source: the file.
        report: takes the problems.
        image_id: of the image.
        file_name: of the picture.
        width: in pixels, where known.
        height: in pixels, where known.
        relative: whether boxes come as parts of the image, 0 to 1.
        ids: ids of boxes that are used already; by default, only those of this image must differ.
    """

    def __init__(
        self,
        source: Path,
        report: Report,
        *,
        image_id: Id | None = None,
        file_name: str | None = None,
        width: float | None = None,
        height: float | None = None,
        relative: bool = False,
        ids: set[str] | None = None,
    ) -> None:
        self._source, self._report = source, report
        self._image_id, self._file_name = image_id, file_name
        self._relative = relative
        self._used = set() if ids is None else ids
        self._width: float | None = None
        self._height: float | None = None
        self._boxes: list[Corners] = []
        self._classes: list[Class] = []
        self._ids: list[Id | None] = []
        self._rows: list[int] = []
        self._scores: list[float] = []
        self._crowd: list[bool] = []
        self._difficult: list[bool] = []
        self._annotators: list[str] = []
        self._seen_by: dict[str, None] = {}
        self._skipped = 0
        self._size(width, height)

    def add(
        self,
        place: str,
        box: Corners,
        category: Class,
        *,
        box_id: Id | None = None,
        row: int | None = None,
        score: float | None = None,
        crowd: bool = False,
        difficult: bool = False,
        annotator: str = "",
    ) -> None:
        """Adds a box by its corners (x1, y1, x2, y2).

        `place` says where in the source it is, `row` as which of a list; by default the next of this image.
        """
        row = len(self._boxes) + self._skipped if row is None else row
        x1, y1, x2, y2 = box
        if not all(map(isfinite, box)):
            self.problem(place, f"the box {_shown(box)} is not finite", "give finite numbers", "box")
            return
        if x2 < x1 or y2 < y1:
            fix = "give x1 <= x2 and y1 <= y2, or say which layout its numbers have"
            self.problem(place, f"the box {_shown(box)} ends before it begins", fix, "box")
            return
        if score is not None and not 0 <= score <= 1:
            self.problem(place, f"the score {score:g} is not within 0 and 1", "give a probability", "box")
            return
        if x1 == x2 or y1 == y2:
            self.problem(place, f"the box {_shown(box)} has no area", "draw it again, or delete it")
        if extent := self._exceeded(box):
            self.problem(place, f"the box {_shown(box)} is not within its image, {extent}", "draw it again, or clip it")
        if box_id is not None:
            if str(box_id) in self._used:
                self.problem(place, f"the id {box_id!r} is used twice", "give each box its own")
            self._used.add(str(box_id))
        self._boxes.append(box)
        self._classes.append(category)
        self._ids.append(box_id)
        self._rows.append(row)
        self._scores.append(np.nan if score is None else score)
        self._crowd.append(crowd)
        self._difficult.append(difficult)
        self._annotators.append(annotator)

    def seen_by(self, annotator: str) -> None:
        """Notes that someone looked at the image, with or without drawing."""
        self._seen_by[annotator] = None

    def problem(self, place: str, what: str, fix: str, skipped: Skipped | None = None) -> None:
        """Reports what is wrong at a place of the source."""
        self._skipped += skipped in ("box", "line")
        self._report(Problem(self._source, place, what, fix, skipped))

    def finish(self) -> Annotations:
        """What was gathered; relative boxes become pixels where the size is known."""
        scores = np.array(self._scores)
        drawn = [annotator for annotator in self._annotators if annotator]
        found = Annotations(
            self._source,
            np.array(self._boxes, np.float64).reshape(-1, 4),
            tuple(self._classes),
            self._image_id,
            self._file_name,
            self._width,
            self._height,
            self._relative,
            tuple(self._ids),
            tuple(self._rows),
            None if np.isnan(scores).all() else scores,
            np.array(self._crowd, bool),
            np.array(self._difficult, bool),
            tuple(self._annotators),
            tuple(dict.fromkeys([*self._seen_by, *drawn])),
            self._skipped,
        )
        return placed(found, self._width, self._height)

    def _size(self, width: float | None, height: float | None) -> None:
        if width is None and height is None:
            return
        if width and height and isfinite(width) and isfinite(height) and width > 0 and height > 0:
            self._width, self._height = float(width), float(height)
            return
        name = self._file_name if self._file_name is not None else f"image {self._image_id}"
        self.problem(str(name), f"its size {width} x {height} is none", "give its width and height in pixels")

    def _exceeded(self, box: Corners) -> str:
        """The extent that the box exceeds; empty where it does not."""
        if self._relative:
            width, height = 1.0, 1.0
            slack_x = OUTSIDE / self._width if self._width else OUTSIDE_RELATIVE
            slack_y = OUTSIDE / self._height if self._height else OUTSIDE_RELATIVE
        elif self._width is not None and self._height is not None:
            width, height, slack_x, slack_y = self._width, self._height, OUTSIDE, OUTSIDE
        else:
            return ""
        x1, y1, x2, y2 = box
        within = x1 >= -slack_x and y1 >= -slack_y and x2 <= width + slack_x and y2 <= height + slack_y
        return "" if within else f"0 to {width:g} by 0 to {height:g}"


def placed(annotations: Annotations, width: float | None, height: float | None) -> Annotations:
    """The same with its relative boxes in pixels, if the size is given."""
    if not annotations.relative or width is None or height is None:
        return annotations
    pixels = annotations.boxes * [width, height, width, height]
    return replace(annotations, boxes=pixels, width=width, height=height, relative=False)


def _shown(box: Sequence[float]) -> str:
    return f"({', '.join(f'{number:g}' for number in box)})"
