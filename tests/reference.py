"""The losses once more, in plain Python with dual numbers: nothing here is shared with the code under test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dual:
    """A number and its derivatives with respect to the prediction's and the target's eight coordinates."""

    value: float
    slopes: tuple[float, ...] = (0.0,) * 8

    def __add__(self, other: Any) -> Dual:
        other = dual(other)
        return Dual(self.value + other.value, tuple(a + b for a, b in zip(self.slopes, other.slopes, strict=True)))

    def __mul__(self, other: Any) -> Dual:
        other = dual(other)
        return Dual(
            self.value * other.value,
            tuple(a * other.value + b * self.value for a, b in zip(self.slopes, other.slopes, strict=True)),
        )

    def __neg__(self) -> Dual:
        return self * -1

    def __sub__(self, other: Any) -> Dual:
        return self + -dual(other)

    def __rsub__(self, other: Any) -> Dual:
        return dual(other) - self

    def __truediv__(self, other: Any) -> Dual:
        other = dual(other)
        if other.value == 0:
            return Dual(0.0)
        return self * Dual(1 / other.value, tuple(-slope / other.value**2 for slope in other.slopes))

    __radd__ = __add__
    __rmul__ = __mul__

    def of(self, value: float, slope: float) -> Dual:
        """The chain rule: a function's value and slope at this number."""
        return Dual(value, tuple(slope * each for each in self.slopes))

    def power(self, exponent: float) -> Dual:
        if self.value <= 0:
            return Dual(0.0)
        return self.of(self.value**exponent, exponent * self.value ** (exponent - 1))

    @property
    def constant(self) -> Dual:
        return Dual(self.value)


def dual(value: Any) -> Dual:
    return value if isinstance(value, Dual) else Dual(float(value))


def _larger(a: Dual, b: Dual) -> Dual:
    if a.value == b.value:
        return (a + b) * 0.5
    return a if a.value > b.value else b


def _smaller(a: Dual, b: Dual) -> Dual:
    return -_larger(-a, -b)


def _angle(width: Dual, height: Dual) -> Dual:
    square = width.value**2 + height.value**2
    if square == 0:
        return Dual(0.0)
    return width.of(math.atan2(width.value, height.value), height.value / square) + height.of(
        0.0, -width.value / square
    )


class Pair:
    """The quantities of the papers for one pair of corner boxes."""

    def __init__(self, prediction: Sequence[float], target: Sequence[float]) -> None:
        numbers = [*prediction, *target]
        self.corners = [
            Dual(float(number), tuple(1.0 if i == j else 0.0 for j in range(8))) for i, number in enumerate(numbers)
        ]
        x1, y1, x2, y2, X1, Y1, X2, Y2 = self.corners
        w, h, W, H = x2 - x1, y2 - y1, X2 - X1, Y2 - Y1
        overlap_w, overlap_h = _smaller(x2, X2) - _larger(x1, X1), _smaller(y2, Y2) - _larger(y1, Y1)
        apart = overlap_w.value <= 0 or overlap_h.value <= 0
        intersection = Dual(0.0) if apart else overlap_w * overlap_h
        union = w * h + W * H - intersection
        cw, ch = _larger(x2, X2) - _smaller(x1, X1), _larger(y2, Y2) - _smaller(y1, Y1)
        dx, dy = (x1 + x2 - X1 - X2) * 0.5, (y1 + y2 - Y1 - Y2) * 0.5
        difference = _angle(W, H) - _angle(w, h)
        self.iou = intersection / union
        self.uncovered = (cw * ch - union) / (cw * ch)
        self.distance = (dx * dx + dy * dy) / (cw * cw + ch * ch)
        self.v = difference * difference * (4 / math.pi**2)
        self.alpha = (self.v / (1 - self.iou + self.v)).constant
        self.width = (w - W) * (w - W) / (cw * cw)
        self.height = (h - H) * (h - H) / (ch * ch)

    def penalties(self, base: str) -> list[Dual]:
        return {
            "iou": [],
            "giou": [self.uncovered],
            "diou": [self.distance],
            "ciou": [self.distance, self.alpha * self.v],
            "eiou": [self.distance, self.width, self.height],
        }[base]

    def plain(self, base: str) -> Dual:
        return sum(self.penalties(base), 1 - self.iou)

    def alpha_iou(self, base: str, alpha: float) -> Dual:
        return sum((term.power(alpha) for term in self.penalties(base)), 1 - self.iou.power(alpha))

    def smooth_l1(self, beta: float) -> Dual:
        total = Dual(0.0)
        for a, b in zip(self.corners[:4], self.corners[4:], strict=True):
            d = a - b
            size = abs(d.value)
            if size < beta:
                total += d * d * (0.5 / beta)
            else:
                total += d.of(size - 0.5 * beta, math.copysign(1.0, d.value))
        return total

    def log_iou(self, floor: float) -> Dual:
        if self.iou.value <= floor:
            return Dual(-math.log(floor))
        return self.iou.of(-math.log(self.iou.value), -1 / self.iou.value)

    def focal_eiou(self, gamma: float, detach_weight: bool) -> Dual:
        weight = self.iou.power(gamma)
        return (weight.constant if detach_weight else weight) * self.plain("eiou")


Reference = Callable[[Pair], Dual]
