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
        value = self.value / other.value
        return Dual(value, tuple((a - value * b) / other.value for a, b in zip(self.slopes, other.slopes, strict=True)))

    __radd__ = __add__
    __rmul__ = __mul__

    def of(self, value: float, slope: float) -> Dual:
        """The chain rule: a function's value and slope at this number."""
        return Dual(value, tuple(slope * each for each in self.slopes))

    def power(self, exponent: float) -> Dual:
        if self.value <= 0:
            return Dual(0.0)
        return self.of(self.value**exponent, exponent * self.value ** (exponent - 1))

    def exp(self) -> Dual:
        return self.of(math.exp(self.value), math.exp(self.value))

    def ln(self) -> Dual:
        return self.of(math.log(self.value), 1 / self.value)

    @property
    def size(self) -> Dual:
        """Its absolute value; of slope 0 at 0."""
        return self.of(abs(self.value), float((self.value > 0) - (self.value < 0)))

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


def _smooth(d: Dual, beta: float) -> Dual:
    """Smooth L1."""
    return d * d * (0.5 / beta) if abs(d.value) < beta else d.size - 0.5 * beta


class Pair:
    """The quantities of the papers for one pair of corner boxes, in an image of 640 x 480, at a running mean of 0.7."""

    image = 640.0**2 + 480.0**2
    running_mean = 0.7

    def __init__(self, prediction: Sequence[float], target: Sequence[float]) -> None:
        numbers = [*prediction, *target]
        self._measure(
            [Dual(float(number), tuple(1.0 if i == j else 0.0 for j in range(8))) for i, number in enumerate(numbers)]
        )

    def _measure(self, corners: list[Dual]) -> None:
        self.corners = corners
        x1, y1, x2, y2, X1, Y1, X2, Y2 = corners
        w, h, W, H = x2 - x1, y2 - y1, X2 - X1, Y2 - Y1
        self.sides = w, h, W, H
        overlap_w, overlap_h = _smaller(x2, X2) - _larger(x1, X1), _smaller(y2, Y2) - _larger(y1, Y1)
        apart = overlap_w.value <= 0 or overlap_h.value <= 0
        intersection = Dual(0.0) if apart else overlap_w * overlap_h
        union = w * h + W * H - intersection
        self.cw, self.ch = _larger(x2, X2) - _smaller(x1, X1), _larger(y2, Y2) - _smaller(y1, Y1)
        self.dx, self.dy = (x1 + x2 - X1 - X2) * 0.5, (y1 + y2 - Y1 - Y2) * 0.5
        difference = _angle(W, H) - _angle(w, h)
        self.iou = intersection / union
        self.uncovered = (self.cw * self.ch - union) / (self.cw * self.ch)
        self.rho2 = self.dx * self.dx + self.dy * self.dy
        self.c2 = self.cw * self.cw + self.ch * self.ch
        self.distance = self.rho2 / self.c2
        self.v = difference * difference * (4 / math.pi**2)
        self.alpha = (self.v / (1 - self.iou + self.v)).constant
        self.width = (w - W) * (w - W) / (self.cw * self.cw)
        self.height = (h - H) * (h - H) / (self.ch * self.ch)

    @property
    def differences(self) -> list[Dual]:
        return [a - b for a, b in zip(self.corners[:4], self.corners[4:], strict=True)]

    @property
    def center_differences(self) -> list[Dual]:
        w, h, W, H = self.sides
        return [self.dx, self.dy, w - W, h - H]

    def scaled(self, factor: float) -> Pair:
        corners: list[Dual] = []
        for x1, y1, x2, y2 in (self.corners[:4], self.corners[4:]):
            x, y, w, h = (x1 + x2) * 0.5, (y1 + y2) * 0.5, (x2 - x1) * (factor / 2), (y2 - y1) * (factor / 2)
            corners += [x - w, y - h, x + w, y + h]
        pair = Pair.__new__(Pair)
        pair._measure(corners)
        return pair

    def penalties(self, base: str) -> list[Dual]:
        return {
            "iou": [],
            "giou": [self.uncovered],
            "diou": [self.distance],
            "ciou": [self.distance, self.alpha * self.v],
            "eiou": [self.distance, self.width, self.height],
        }[base]

    def siou(self, theta: float) -> Dual:
        sharpness = 2 - 2 * (self.dx * self.dy).size / self.rho2
        distance = Dual(0.0)
        for offset, side in ((self.dx, self.cw), (self.dy, self.ch)):
            t = (offset / side) * (offset / side)
            distance += 1 - (-(sharpness * t)).exp()
        return 1 - self.iou + (distance + self.shape((1.0, 1.0), theta)) * 0.5

    def shape(self, weights: tuple[Any, Any], theta: float) -> Dual:
        w, h, W, H = self.sides
        costs = Dual(0.0)
        for a, b, weight in ((w, W, weights[0]), (h, H, weights[1])):
            costs += (1 - (-(weight * (a - b).size / _larger(a, b))).exp()).power(theta)
        return costs

    def shape_iou(self, scale: float) -> Dual:
        _, _, W, H = self.sides
        across, along = Dual(1.0), Dual(1.0)
        if scale:
            across, along = ((2 * side.power(scale) / (W.power(scale) + H.power(scale))) for side in (H, W))
        distance = (across * self.dx * self.dx + along * self.dy * self.dy) / self.c2
        return 1 - self.iou + distance + 0.5 * self.shape((across, along), 4)

    def wiou(self, version: int) -> Dual:
        value = (self.rho2 / self.c2.constant).exp() * (1 - self.iou)
        beta = (1 - self.iou.value) / self.running_mean
        focus: dict[int, float] = {1: 1.0, 2: beta**0.5, 3: beta / (3.0 * 1.9 ** (beta - 3.0))}
        return value * focus[version]

    def mpdiou(self) -> Dual:
        return sum((d * d for d in self.differences), Dual(0.0)) / self.image + 1 - self.iou

    def edge_difference(self) -> Dual:
        _, _, W, H = self.sides
        return sum((d.size / side for d, side in zip(self.differences, (W, H, W, H), strict=True)), Dual(0.0)) * 0.25

    def piou(self) -> Dual:
        p = self.edge_difference()
        return 1 - self.iou + 1 - (-(p * p)).exp()

    def piou_v2(self, attention: float) -> Dual:
        x = attention * (-self.edge_difference()).exp()
        return 3 * x * (-(x * x)).exp() * self.piou()

    def nwd(self, constant: float) -> Dual:
        w, h, W, H = self.sides
        squared = self.rho2 + ((w - W) * (w - W) + (h - H) * (h - H)) * 0.25
        return 1 - (-(squared.power(0.5) / constant)).exp()

    def bounded_iou(self, beta: float) -> Dual:
        w, h, W, H = self.sides
        shares = []
        for offset, side in ((self.dx.size, W), (self.dy.size, H)):
            shares.append(_larger((side - 2 * offset) / (side + 2 * offset), Dual(0.0)))
        for a, b in ((w, W), (h, H)):
            shares.append(_smaller(a / b, b / a))
        return sum((_smooth(1 - share, beta) for share in shares), Dual(0.0))

    def balanced_l1(self, alpha: float, gamma: float, beta: float) -> Dual:
        b = math.exp(gamma / alpha) - 1
        total = Dual(0.0)
        for d in self.differences:
            x = d.size
            if x.value < beta:
                total += (alpha / b) * (b * x + beta) * (b * x * (1 / beta) + 1).ln() - alpha * x
            else:
                total += gamma * x + gamma * beta / b - alpha * beta
        return total

    def focaler(self, iou: Dual, lower: float, upper: float) -> Dual:
        if lower <= iou.value <= upper:
            return (iou - lower) * (1 / (upper - lower))
        return Dual(float(iou.value > upper))

    def plain(self, base: str) -> Dual:
        return sum(self.penalties(base), 1 - self.iou)

    def alpha_iou(self, base: str, alpha: float) -> Dual:
        return sum((term.power(alpha) for term in self.penalties(base)), 1 - self.iou.power(alpha))

    def smooth_l1(self, beta: float) -> Dual:
        return sum((_smooth(d, beta) for d in self.differences), Dual(0.0))

    def log_iou(self, floor: float) -> Dual:
        if self.iou.value <= floor:
            return Dual(-math.log(floor))
        return self.iou.of(-math.log(self.iou.value), -1 / self.iou.value)

    def focal_eiou(self, gamma: float, detach_weight: bool) -> Dual:
        weight = self.iou.power(gamma)
        return (weight.constant if detach_weight else weight) * self.plain("eiou")


Reference = Callable[[Pair], Dual]
