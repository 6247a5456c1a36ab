"""Comparisons as tables and documents."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from boxloss.compare.comparison import Comparison


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes a comparison: to a .json file all of it, to a .csv or .parquet file a row for each loss.

    Raises:
        OSError: it cannot be written.
        ValueError: no format has that ending.
    """
    match path.suffix.lower():
        case ".csv":
            pa.csv.write_csv(pa.Table.from_pylist(rows(comparison)), path)
        case ".json":
            path.write_text(json.dumps(document(comparison), indent=1, allow_nan=False) + "\n", "utf-8")
        case ".parquet":
            pa.parquet.write_table(pa.Table.from_pylist(rows(comparison)), path)
        case suffix:
            raise ValueError(f"no format is known for {suffix!r}")


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each loss, with columns for its correlations with all; what is not defined is None."""
    names = list(comparison.losses)
    return [
        _plain(_measured(comparison, name))
        | {
            f"{kind}_{other}": _plain(value)
            for kind, matrix in comparison.agreement._asdict().items()
            for other, value in zip(names, matrix[index].tolist(), strict=True)
        }
        for index, name in enumerate(names)
    ]


def document(comparison: Comparison) -> dict[str, Any]:
    """All of a comparison; what is not defined is None."""
    names, pairs = list(comparison.losses), comparison.pairs
    found: dict[str, Any] = _plain(
        {
            "facts": comparison.facts._asdict() | {"iou": comparison.facts.iou._asdict()},
            "losses": [
                _measured(comparison, name) | {"path": each.descent.path.tolist()}
                for name, each in comparison.losses.items()
            ],
            "correlations": {"losses": names}
            | {kind: matrix.tolist() for kind, matrix in comparison.agreement._asdict().items()},
            "disagreements": [
                {
                    "losses": [names[each.first], names[each.second]],
                    "ranks": [each.first_rank, each.second_rank],
                    **pairs.names[each.row]._asdict(),
                    "iou": float(comparison.iou[each.row]),
                }
                for each in comparison.disagreements
            ],
            "recommendation": comparison.recommendation._asdict(),
            "left_out": comparison.left_out,
        }
    )
    return found


def _measured(comparison: Comparison, name: str) -> dict[str, Any]:
    each = comparison.losses[name]
    return {
        "loss": name,
        **each.distribution._asdict(),
        **each.slopes._asdict(),
        "like_iou": each.like_iou,
        "rate": each.descent.rate,
        "iou_on_the_way": each.descent.on_the_way,
        "iou_at_the_end": each.descent.end,
        "recommended": name == comparison.recommendation.loss,
    }


def _plain(value: Any) -> Any:
    """JSON knows no NaN."""
    match value:
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case float() if math.isnan(value):
            return None
        case _:
            return value
