"""Files of findings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from boxloss.audit.finding import Finding
from boxloss.audit.summary import Summary
from boxloss.errors import fault
from boxloss.files.problems import Problem

_TEXT = ("kind", "image_id", "file_name", "label_id", "annotator", "class", "message", "proposed_class")
_WHOLE = ("label", "prediction_index")
_NUMBER = ("score", "iou")
_BOXES = {"box": ("x", "y", "width", "height"), "proposed_box": tuple(f"proposed_{side}" for side in "xywh")}


def write_json(
    path: Path, rows: Sequence[Mapping[str, Any]], summary: Summary, problems: Sequence[Problem], notes: Sequence[str]
) -> None:
    """Writes findings, their summary, what is wrong with the files and what did not join.

    Raises:
        OSError: it cannot be written.
    """
    listed = [
        {
            "source": str(problem.source),
            "place": problem.place,
            "what": problem.what,
            "fix": problem.fix,
            "skipped": problem.skipped,
        }
        for problem in problems
    ]
    parts = {"summary": _summary(summary), "problems": listed, "mismatches": list(notes), "findings": rows}
    path.write_text(json.dumps(parts, indent=1) + "\n")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a .csv or .parquet file with a row for each finding; what a finding lacks is null.

    Raises:
        OSError: it cannot be written.
    """
    columns: dict[str, Any] = {}
    for names, kind in ((_TEXT, pa.string()), (_WHOLE, pa.int64()), (_NUMBER, pa.float64())):
        for name in names:
            columns[name] = pa.array((_cell(row[name], kind) for row in rows), kind)
    for name, sides in _BOXES.items():
        for index, side in enumerate(sides):
            columns[side] = pa.array((None if row[name] is None else row[name][index] for row in rows), pa.float64())
    table = pa.table(columns)
    if path.suffix.lower() == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pa.parquet.write_table(table, path)


def read_findings(path: Path) -> list[Finding]:
    """Findings as an audit's JSON file or its report's download has them.

    Raises:
        InvalidInputError: it holds none; the message says where it is wrong.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise fault(path, f"is not JSON: {error}") from None
    rows = content.get("findings") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise fault(path, 'has no "findings"; give the download of a report, or what audit --output wrote')
    findings = []
    for number, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise fault("finding", f"{row!r:.40} is none; give findings as they came")
            findings.append(Finding.from_dict(row))
        except ValueError as error:
            raise fault(path, f"findings[{number}]: {error}") from None
    return findings


def _cell(value: Any, kind: Any) -> Any:
    """Ids are numbers or texts; in a column they are texts."""
    return str(value) if value is not None and kind == pa.string() else value


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "images": summary.images,
        "labels": summary.labels,
        "predictions": summary.predictions,
        "findings": dict(summary.findings),
        "classes": {
            name: {
                "labels": each.labels,
                "matched": each.matched,
                "mean_iou": each.mean_iou if each.matched else None,
                "findings": dict(each.findings),
            }
            for name, each in summary.classes.items()
        },
        "iou_histogram": summary.iou_histogram.tolist(),
        "confusion": [
            {"label": label, "prediction": prediction, "count": count}
            for (label, prediction), count in summary.confusion.items()
        ],
        "worst_images": [{"image_id": image_id, "score": score} for image_id, score in summary.worst_images],
    }
