"""Readers of labels and predictions, one module for each format. They need the extra: pip install 'boxloss[audit]'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from boxloss.errors import fault
from boxloss.files.annotations import Source
from boxloss.files.formats import coco, cvat, labelstudio, mot, openimages, table, txt, voc, yolo
from boxloss.files.formats.detection import Format, detect
from boxloss.files.formats.names import names_of
from boxloss.files.formats.request import Layout, Request, Role
from boxloss.files.problems import Report

__all__ = ["Format", "Layout", "Role", "read"]

_READERS: dict[Format, Callable[[Request], Source]] = {
    "coco": coco.read,
    "yolo": yolo.read,
    "voc": voc.read,
    "cvat": cvat.read,
    "labelstudio": labelstudio.read,
    "openimages": openimages.read,
    "mot": mot.read,
    "csv": table.read,
    "txt": txt.read,
}
_WITHOUT_NAMES = ("voc", "cvat", "labelstudio")


def read(
    path: Path,
    role: Role,
    report: Report,
    *,
    format: Format | None = None,  # noqa: A002
    names: Mapping[int, str] | Sequence[str] | Path | None = None,
    layout: Layout | None = None,
    relative: bool = False,
) -> Source:
    """Reads labels or predictions. What is wrong in them goes to `report`, the rest goes on.

    Args:
        path: of a file or a folder.
        role: whether labels or predictions are wanted of it, where it may hold both.
        report: takes the problems, while the source is iterated.
        format: by default it is detected.
        names: of classes by number: a mapping, a sequence from 0, or a file (lines, data.yaml, class-descriptions.csv).
        layout: of the boxes of txt; by default "xyxy".
        relative: whether the boxes of txt and csv are parts of the image; by default they are in pixels.

    Raises:
        InvalidInputError: the path does not exist, its format is unknown or not clear, the names cannot be read, or an
            option does not go with the format.
        OSError: the file of names cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise fault(path, "does not exist; give a file or a folder")
    if format is None:
        path, format = detect(path)  # noqa: A001
    if format not in _READERS:
        raise fault("format", f"{format!r} is unknown; give one of {', '.join(get_args(Format))}")
    if layout is not None and format != "txt":
        raise fault("layout", f"does not go with {format}, which has its own; leave it out")
    if relative and format not in ("txt", "csv"):
        raise fault("relative", f"does not go with {format}, which knows; leave it out")
    if names is not None and format in _WITHOUT_NAMES:
        raise fault("names", f"do not go with {format}, which names its classes; leave them out")
    table_of_names = None if names is None else names_of(names)
    return _READERS[format](Request(path, role, report, table_of_names, layout or "xyxy", relative))
