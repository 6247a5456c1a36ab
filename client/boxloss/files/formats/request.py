"""What a reader is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from boxloss.files.annotations import Class, Corners
from boxloss.files.problems import Problem, Report, Skipped

Role: TypeAlias = Literal["labels", "predictions"]
Layout: TypeAlias = Literal["xyxy", "xywh", "cxcywh"]


@dataclass(frozen=True)
class Request:
    """What to read, and how.

    Attributes:
        path: of the file or folder.
        role: what is wanted of it, where it may hold both.
        report: takes the problems.
        names: of classes by number; None to use what lies beside the boxes.
        layout: of a box's numbers, for formats that leave it open.
        relative: whether they are parts of the image, for formats that leave it open.
    """

    path: Path
    role: Role
    report: Report
    names: Mapping[Class, str] | None = None
    layout: Layout = "xyxy"
    relative: bool = False

    def problem(
        self, place: str, what: str, fix: str, skipped: Skipped | None = None, source: Path | None = None
    ) -> None:
        """Reports what is wrong in a file, by default in that of the request."""
        self.report(Problem(source or self.path, place, what, fix, skipped))


def corners(layout: Layout, box: Corners) -> Corners:
    """The corners of a box given in another layout."""
    a, b, c, d = box
    match layout:
        case "xyxy":
            return box
        case "xywh":
            return a, b, a + c, b + d
        case "cxcywh":
            return a - c / 2, b - d / 2, a + c / 2, b + d / 2


def named(names: Mapping[Class, str], number: Class, complain: Callable[[str, str], None]) -> Class:
    """The class with this number.

    One that the names lack is kept under its number, after a complaint; where there are no names at all it stays a
    number, for the join to resolve.
    """
    if not names:
        return number
    if number not in names:
        complain(f"the class {number} has no name", f"name it; there are {len(names)} names")
        return str(number)
    return names[number]
