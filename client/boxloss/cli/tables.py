"""Results as tables: in memory, in files and on a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from boxloss.compare.matching import NONE, Matching
from boxloss.contract.arrays import Array
from boxloss.files.boxes import BoxFile

ENDINGS = (".csv", ".json", ".parquet")
"""Of the files that `write` writes."""

_ROWS_SHOWN = 40
_HEADER_WIDTH = 12
"""Longer names are broken."""
_DISPENSABLE = ("score", "category_id", "prediction", "image_id")
"""Columns that a narrow terminal leaves out before it leaves out a loss, in this order."""


def assemble(predictions: BoxFile, targets: BoxFile, matching: Matching, scores: Mapping[str, Array]) -> pa.Table:
    """Puts together a row for each pair and for each box without one. What a row lacks is null.

    Args:
        predictions: the file.
        targets: the file.
        matching: of the two.
        scores: columns with a number for each pair.
    """
    prediction, target = (pa.array(rows, mask=rows == NONE) for rows in (matching.predictions, matching.targets))
    pair = pa.array(np.cumsum(matching.paired) - 1, mask=~matching.paired)
    columns: dict[str, Any] = {}
    if predictions.coco and targets.coco:
        for name in ("image_id", "category_id"):
            columns[name] = pa.compute.coalesce(
                _take(getattr(targets.coco, f"{name}s"), target),
                _take(getattr(predictions.coco, f"{name}s"), prediction),
            )
        columns["label_id"] = _take(targets.coco.ids, target)
        columns["prediction"] = prediction
        columns["score"] = _take(predictions.coco.scores, prediction)
    else:
        columns["row"] = target
    columns["status"] = pa.array(matching.status)
    return pa.table(columns | {name: _take(values, pair) for name, values in scores.items()})


def write(table: pa.Table, path: Path) -> None:
    """Writes a .csv, .json (a list of objects, one a line) or .parquet file.

    Raises:
        OSError: it cannot be written.
        ValueError: no format has that ending.
    """
    match path.suffix.lower():
        case ".csv":
            with path.open("wb") as file:
                write_csv(table, file)
        case ".json":
            path.write_text("[\n" + ",\n".join(map(json.dumps, table.to_pylist())) + "\n]\n")
        case ".parquet":
            pa.parquet.write_table(table, path)
        case suffix:
            raise ValueError(f"no format is known for {suffix!r}")


def write_csv(table: pa.Table, file: BinaryIO) -> None:
    """Writes a header and a line for each row; nulls are empty."""
    pa.csv.write_csv(table, file, pa.csv.WriteOptions(quoting_style="none"))


def summary(table: pa.Table, names: Sequence[str]) -> str:
    """One line: how many rows have which status, and the means of the columns `names` over the pairs."""
    kinds = ["paired", "invalid"] if "row" in table.column_names else ["paired", "missed", "spurious", "invalid"]
    counts = dict.fromkeys(kinds, 0) | {
        each["values"]: each["counts"] for each in table["status"].value_counts().to_pylist()
    }
    means = [f"{name} {_text(_mean(table, name)) or 'none'}" for name in names]
    return f"{', '.join(f'{count} {kind}' for kind, count in counts.items())}; means: {', '.join(means)}"


def show(table: pa.Table, names: Sequence[str], console: Console) -> None:
    """Prints the first rows and as many columns as fit, with the means of the columns `names` below."""
    cells = {name: list(map(_text, table[name][:_ROWS_SHOWN].to_pylist())) for name in table.column_names}
    feet = (
        dict.fromkeys(cells, "") | {table.column_names[0]: "mean"} | {name: _text(_mean(table, name)) for name in names}
    )
    widths = {}
    for name, column in cells.items():
        header = [line[:_HEADER_WIDTH] for line in _header(name).splitlines()]
        widths[name] = max(map(len, [*header, feet[name], *column])) + 2
    gradients = [name for name in table.column_names[table.column_names.index("iou") :] if name not in names]
    for name in [*reversed(gradients), *_DISPENSABLE, *reversed(names)]:
        if name in widths and sum(widths.values()) > console.width:
            del widths[name]
    view = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in widths:
        view.add_column(_header(name), feet[name], justify="right", overflow="fold")
    for row in zip(*(cells[name] for name in widths), strict=True):
        view.add_row(*row)
    console.print(view)
    shown = [(min(_ROWS_SHOWN, table.num_rows), table.num_rows, "rows"), (len(widths), table.num_columns, "columns")]
    if omitted := [f"{part} of {whole} {things}" for part, whole, things in shown if part < whole]:
        console.print(f"{' and '.join(omitted)} shown; --output FILE writes them all", style="dim")


def _header(name: str) -> str:
    """A column's name in several lines, as most are long and their numbers short."""
    return name.replace("_", "\n", 1).replace(":", ":\n")


def _mean(table: pa.Table, name: str) -> float | None:
    """Over the pairs; None where there are none."""
    mean: float | None = pa.compute.mean(table[name]).as_py()
    return mean


def _take(values: NDArray[Any], rows: Any) -> Any:
    """The values at the rows; null where a row or its value is missing."""
    return pa.array(values, from_pandas=True).take(rows)


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:z.4f}"
        case _:
            return str(value)
