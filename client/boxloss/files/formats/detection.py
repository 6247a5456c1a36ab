"""Which format a file or folder has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from boxloss.errors import fault
from boxloss.files.formats import openimages
from boxloss.files.formats.document import load, part
from boxloss.files.formats.markup import root_tag
from boxloss.files.formats.names import BESIDE, beside
from boxloss.files.formats.request import Request
from boxloss.files.formats.table import header
from boxloss.files.formats.text import files, number
from boxloss.files.formats.yolo import is_list

Format: TypeAlias = Literal["coco", "yolo", "voc", "cvat", "labelstudio", "openimages", "mot", "csv", "txt"]

_ENDINGS = (".xml", ".json", ".csv", ".txt")
_SAMPLE = 50
"""Files of a folder that are looked into."""


def detect(path: Path) -> tuple[Path, Format]:
    """The format, by ending and content; and the file, where a folder holds just one of its kind.

    Raises:
        InvalidInputError: it is not clear, and the message says between which; or there is nothing to read.
    """
    if path.is_dir():
        return _detect_folder(path)
    match path.suffix.lower():
        case ".json":
            return path, _of_json(path)
        case ".csv":
            return path, "openimages" if set(header(path)) >= openimages.COLUMNS else "csv"
        case ".xml":
            return path, _of_xml(path)
        case ".yaml" | ".yml":
            return path, "yolo"
        case ".txt":
            return path, _of_text(path, [path])
    raise fault(path, f"ends in {path.suffix!r}; give .json, .xml, .csv, .txt, .yaml or a folder, or name the format")


def _detect_folder(folder: Path) -> tuple[Path, Format]:
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (table := folder / name).is_file() and any((folder / under).is_dir() for under in ("images", "train")):
            return table, "yolo"
    for ending in _ENDINGS:
        found = files(folder, ending)
        if ending == ".xml" and found:
            kind = _of_xml(found[0])
            return (found[0], kind) if kind == "cvat" and len(found) == 1 else (folder, kind)
        if ending == ".txt" and found:
            return folder, _of_text(folder, found)
        if len(found) == 1:
            return detect(found[0])
        if found:
            raise fault(folder, f"holds {len(found)} {ending} files; give one of them")
    raise fault(folder, f"holds no {', '.join(_ENDINGS)} files; give labels or predictions")


def _of_xml(path: Path) -> Format:
    match root_tag(path):
        case "annotations":
            return "cvat"
        case "annotation":
            return "voc"
    raise fault(path, "is neither Pascal VOC nor CVAT for images; give one of these, or name the format")


def _of_json(path: Path) -> Format:
    document = load(Request(path, "labels", lambda problem: None))
    match document:
        case dict() if "annotations" in document:
            return "coco"
        case []:
            return "coco"
        case [first, *_]:
            try:
                keys = set(part(first, dict[str, msgspec.Raw]))
            except msgspec.MsgspecError:
                keys = set()
            if {"image_id", "bbox"} <= keys:
                return "coco"
            if "data" in keys and keys & {"annotations", "predictions"}:
                return "labelstudio"
    fix = "give a COCO dataset or results list, or Label Studio's JSON export, or name the format"
    raise fault(path, f"is none that is known; {fix}")


def _of_text(path: Path, found: list[Path]) -> Format:
    words = next(_boxes(found), None)
    if words is None:
        if beside(path):
            return "yolo"
        raise fault(path, "holds no boxes to tell its format by; name it: yolo, txt or mot")
    if words.count(",") >= 5:
        return "mot"
    numbers = [number(word) for word in words.split()]
    relative = all(cell is not None and 0 <= cell <= 1 for cell in numbers[1:])
    if not relative or numbers[0] is None or not numbers[0].is_integer() or len(numbers) < 5:
        return "txt"
    if len(numbers) == 6 and not beside(path):
        fix = "name the format: yolo, with the score last, or txt, with the score after the class"
        raise fault(path, f"holds {words!r}, whose score may be the first or the last; {fix}")
    return "yolo"


def _boxes(found: list[Path]) -> Iterator[str]:
    """The first lines of files of boxes."""
    for path in [path for path in found if path.name not in BESIDE and not is_list(path)][:_SAMPLE]:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            yield from (line.strip() for line in file if line.strip())
