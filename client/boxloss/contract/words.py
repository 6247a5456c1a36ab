"""The words that a call is made with."""

from __future__ import annotations

from typing import Literal, TypeAlias

BoxFormat: TypeAlias = Literal["xyxy", "xywh", "cxcywh", "cxcywha_degrees", "cxcywha_radians", "quad"]
Reduction: TypeAlias = Literal["none", "mean", "sum"]
Invalid: TypeAlias = Literal["reject", "mask"]
Metric: TypeAlias = Literal["iou", "giou", "diou", "ciou", "eiou"]

COLUMNS: dict[str, int] = {
    "xyxy": 4,
    "xywh": 4,
    "cxcywh": 4,
    "cxcywha_degrees": 5,
    "cxcywha_radians": 5,
    "quad": 8,
}
"""Numbers of a box in each format."""
