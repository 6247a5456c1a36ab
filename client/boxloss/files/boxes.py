"""Files of boxes to arrays."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from boxloss.contract.arrays import Array
from boxloss.contract.words import BoxFormat
from boxloss.errors import fault

NAMES: dict[BoxFormat, tuple[tuple[str, ...], ...]] = {
    "xyxy": (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom")),
    "xywh": (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height")),
    "cxcywh": (("cx", "cy", "w", "h"), ("cx", "cy", "width", "height")),
    "cxcywha_degrees": (("cx", "cy", "w", "h", "angle"), ("cx", "cy", "width", "height", "angle")),
    "cxcywha_radians": (("cx", "cy", "w", "h", "angle"), ("cx", "cy", "width", "height", "angle")),
    "quad": (("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"),),
}
"""What the numbers of a box are called, in a CSV header or in JSON."""


@dataclass(frozen=True)
class Coco:
    """What COCO says of each box besides its place."""

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    ids: NDArray[np.int64]
    """Of the annotation; where it has none, its position."""
    scores: NDArray[np.float64]
    """NaN where there is none."""
    crowd: NDArray[np.bool_]
    """Whether the box surrounds a crowd instead of an object."""


@dataclass(frozen=True)
class BoxFile:
    """The boxes of a file.

    Attributes:
        path: of the file.
        boxes: of shape (N, 4), (N, 5) or (N, 8), as the format says.
        box_format: of the boxes.
        place: says where in the file a row is, for example "line 3".
        coco: for COCO files only.
    """

    path: Path
    boxes: Array
    box_format: BoxFormat
    place: Callable[[int], str]
    coco: Coco | None = None

    def __len__(self) -> int:
        return len(self.boxes)


def read(path: Path, box_format: BoxFormat | None = None) -> BoxFile:
    """Reads a .csv, .json or .npy file of boxes. A .json file may be COCO: a results list, or a dataset.

    Args:
        path: of the file.
        box_format: of its boxes; by default "xyxy", and "xywh" for COCO, which knows no other.

    Raises:
        InvalidInputError: it does not hold boxes; the message names file and line.
        OSError: it cannot be read.
    """
    readers = {".csv": _read_csv, ".json": _read_json, ".npy": _read_npy}
    if path.suffix.lower() not in readers:
        raise fault(path, f"ends in {path.suffix!r}; give a .csv, .json or .npy file")
    try:
        return readers[path.suffix.lower()](path, box_format)
    except UnicodeDecodeError:
        raise fault(path, "is not text in UTF-8") from None


def _read_csv(path: Path, box_format: BoxFormat | None) -> BoxFile:
    box_format = box_format or "xyxy"
    with path.open(encoding="utf-8-sig") as lines:
        number, line = next(((number, line) for number, line in enumerate(lines, 1) if line.strip()), (0, ""))
    if not number:
        raise fault(path, "is empty")
    columns = [cell.strip().lower() for cell in next(csv.reader([line]))]
    names = NAMES[box_format][0]
    if has_header := not all(map(_is_number, columns)):
        names = _names_among(columns, box_format, path)
    elif len(columns) != len(names):
        raise fault(
            path,
            f"has {len(columns)} columns; give {len(names)}, or a first line that names {', '.join(names)} among them",
        )
    above = number if has_header else 0
    try:
        table = pa.csv.read_csv(
            path,
            # Only a single thread counts the rows that it complains of.
            pa.csv.ReadOptions(column_names=columns if has_header else names, skip_rows=above, use_threads=False),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.float64()), include_columns=names, null_values=[]
            ),
        )
    except pa.ArrowInvalid as error:
        row = re.search(r"Row #(\d+): (.*)", str(error), re.DOTALL)
        if not row:
            raise fault(path, str(error)) from None
        problem = row[2].replace("CSV conversion error to double: invalid value", "not a number:")
        raise fault(path, f"line {_line(path, above, int(row[1]) - above - 1)}: {problem}") from None
    boxes = np.column_stack([table[name].to_numpy() for name in names])
    return BoxFile(path, boxes, box_format, lambda row: f"line {_line(path, above, row)}")


def _line(path: Path, above: int, row: int) -> int:
    """The number of the line that holds a row of numbers, of those below `above`; empty lines hold none."""
    with path.open(encoding="utf-8-sig") as lines:
        filled = [number for number, line in enumerate(lines, 1) if number > above and line.strip("\r\n")]
    return filled[row]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _names_among(columns: Sequence[str], box_format: BoxFormat, place: object) -> tuple[str, ...]:
    """Those of the columns that make a box."""
    fitting = {form: names for form, spellings in NAMES.items() for names in spellings if set(names) <= set(columns)}
    if box_format not in fitting:
        hint = f", or --box-format {next(iter(fitting))}" if fitting else ""
        spellings = " or ".join(", ".join(names) for names in NAMES[box_format])
        raise fault(place, f"names {', '.join(columns)}; {box_format} boxes need {spellings}{hint}")
    return fitting[box_format]


def _read_npy(path: Path, box_format: BoxFormat | None) -> BoxFile:
    try:
        with path.open("rb") as file:
            boxes = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise fault(path, f"cannot be read as a numpy array: {error}") from None
    box_format = box_format or "xyxy"
    numbers = len(NAMES[box_format][0])
    if boxes.ndim != 2 or boxes.shape[1] != numbers or boxes.dtype.kind not in "iuf":
        raise fault(path, f"holds {boxes.dtype} of shape {boxes.shape}; give numbers of shape (N, {numbers})")
    return BoxFile(path, boxes, box_format, _row)


def _read_json(path: Path, box_format: BoxFormat | None) -> BoxFile:
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise fault(path, f"line {error.lineno}: is not JSON: {error.msg}") from None
    match content:
        case {"annotations": list(items)}:
            return _coco(path, items, lambda row: f"annotations[{row}]", box_format)
        case [] | [{"bbox": _}, *_]:
            return _coco(path, content, _row, box_format)
        case list():
            box_format = box_format or "xyxy"
            rows = [_box(item, box_format, f"{path}: {_row(row)}") for row, item in enumerate(content)]
            boxes = _array(path, rows, len(NAMES[box_format][0]))
            return BoxFile(path, boxes, box_format, _row)
    keys = f"an object with {', '.join(content) or 'nothing'}" if isinstance(content, dict) else type(content).__name__
    raise fault(path, f"holds {keys}; give a list of boxes, a COCO results list or a COCO dataset with `annotations`")


def _coco(path: Path, items: list[Any], place: Callable[[int], str], box_format: BoxFormat | None) -> BoxFile:
    if items and box_format not in (None, "xywh"):
        raise fault(path, f"is COCO, whose boxes are xywh; leave out --box-format {box_format}")
    boxes, keys = [], []
    for row, item in enumerate(items):
        where = f"{path}: {place(row)}"
        for key in ("image_id", "category_id", "bbox"):
            if not isinstance(item, dict) or key not in item:
                raise fault(where, f"has no {key}; COCO needs one")
        boxes.append(_numbers(item["bbox"], 4, where))
        keys.append(
            [
                _whole(item.get(key, default), key, where)
                for key, default in (("image_id", 0), ("category_id", 0), ("id", row), ("iscrowd", 0))
            ]
        )
        score = item.get("score")
        if score is not None and not _plain(score):
            raise fault(where, f"has the score {score!r}; give a number")
    scores = np.array([item.get("score") for item in items], np.float64)
    image_ids, category_ids, ids, crowd = np.array(keys, np.int64).reshape(-1, 4).T
    coco = Coco(image_ids, category_ids, ids, scores, crowd.astype(bool))
    return BoxFile(path, _array(path, boxes, 4), "xywh", place, coco)


def _box(item: Any, box_format: BoxFormat, where: str) -> list[float]:
    """A row of numbers, or an object that names them."""
    if isinstance(item, dict):
        item = [item[name] for name in _names_among(list(item), box_format, where)]
    return _numbers(item, len(NAMES[box_format][0]), where)


def _numbers(value: Any, count: int, where: str) -> list[float]:
    if not isinstance(value, list) or len(value) != count or not all(map(_plain, value)):
        raise fault(where, f"{value!r:.60} is no box; give {count} numbers")
    return value


def _whole(value: Any, key: str, where: str) -> int:
    if not isinstance(value, int) or abs(value) >= 2**63:
        raise fault(where, f"has the {key} {value!r:.60}; COCO's are whole numbers")
    return value


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _array(path: Path, rows: list[list[float]], columns: int) -> Array:
    try:
        return np.array(rows, np.float64).reshape(-1, columns)
    except OverflowError:
        raise fault(path, "holds a whole number too large for a float") from None


def _row(row: int) -> str:
    return f"row {row}"
