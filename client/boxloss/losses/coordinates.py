"""Losses that compare the coordinates of axis-aligned boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from boxloss.errors import InvalidInputError, Violation
from boxloss.losses.loss import Loss, parameter
from boxloss.losses.parameters import Choice, Number

__all__ = ["L1", "L2", "BalancedL1", "BoundedIoU", "Huber", "NWD", "SmoothL1"]

Coordinates = Literal["corners", "center"]

_STEEPEST = 80.0
"""Most that Balanced L1's gamma is over its alpha; e to this is less than single precision holds."""
_FLAT_SCALE = "Ranks by the boxes' unit: a large box a little off scores as a small one far off."


def _coordinates() -> Any:
    return parameter(
        Choice(
            summary="Compares left, top, right, bottom (corners) or center x, center y, width, height (center).",
            choices=("corners", "center"),
        ),
        default="corners",
    )


@dataclass(frozen=True)
class L1(Loss):
    """L1 over four coordinates: their sum, not their mean."""

    name = "l1"
    title = "L1"
    summary = "Absolute differences of the four coordinates; robust, with a gradient that does not fade."
    formula = "sum of |d|"
    paper = "Carion et al., End-to-End Object Detection with Transformers (DETR), ECCV 2020, arXiv:2005.12872"
    blind_spots = f"{_FLAT_SCALE} Its gradient jumps at 0."
    aliases = "torch l1_loss with reduction sum; mmdetection L1Loss; DETR's, over center coordinates"

    coordinates: Coordinates = _coordinates()


@dataclass(frozen=True)
class L2(Loss):
    """L2 over four coordinates: the sum of their squares, without a half."""

    name = "l2"
    title = "L2"
    summary = "Squared differences of the four coordinates; smooth, but ruled by outliers."
    formula = "sum of d^2"
    paper = "Redmon et al., You Only Look Once, CVPR 2016, arXiv:1506.02640"
    blind_spots = f"{_FLAT_SCALE} Its gradient fades near 0 and has no bound far away."
    aliases = "torch mse_loss with reduction sum; mmdetection MSELoss"

    coordinates: Coordinates = _coordinates()


@dataclass(frozen=True)
class SmoothL1(Loss):
    """Smooth L1 over four coordinates: their sum, not their mean."""

    name = "smooth_l1"
    title = "Smooth L1"
    summary = "Parabola for small differences of the coordinates, line for large ones: L1 without its jump at 0."
    formula = "sum of: d^2 / (2 beta) if |d| < beta, else |d| - beta / 2"
    paper = "Girshick, Fast R-CNN, ICCV 2015, arXiv:1504.08083"
    blind_spots = _FLAT_SCALE
    aliases = "torch smooth_l1_loss with reduction sum; Huber is beta times it"

    beta: float = parameter(
        Number(summary="Where the parabola meets the line, in the boxes' unit.", above=0), default=1.0
    )
    coordinates: Coordinates = _coordinates()


@dataclass(frozen=True)
class Huber(Loss):
    """Huber over four coordinates: their sum, not their mean."""

    name = "huber"
    title = "Huber"
    summary = "L2 for small differences of the coordinates, L1 for large ones."
    formula = "sum of: d^2 / 2 if |d| < delta, else delta (|d| - delta / 2)"
    paper = "Huber, Robust Estimation of a Location Parameter, Annals of Mathematical Statistics 1964"
    blind_spots = _FLAT_SCALE
    aliases = "torch huber_loss with reduction sum; PaddlePaddle calls it smooth_l1_loss"

    delta: float = parameter(
        Number(summary="Where the parabola meets the line, in the boxes' unit.", above=0), default=1.0
    )
    coordinates: Coordinates = _coordinates()


@dataclass(frozen=True)
class BalancedL1(Loss):
    """Balanced L1 over four coordinates."""

    name = "balanced_l1"
    title = "Balanced L1"
    summary = "Smooth L1 with more gradient for small differences, so that accurate boxes count as much as outliers."
    formula = (
        "sum of: (alpha / b) (b |d| + beta) ln(b |d| / beta + 1) - alpha |d| if |d| < beta, "
        "else gamma |d| + gamma beta / b - alpha beta; b = e^(gamma / alpha) - 1"
    )
    paper = "Pang et al., Libra R-CNN, CVPR 2019, arXiv:1904.02701"
    blind_spots = _FLAT_SCALE
    aliases = "mmdetection BalancedL1Loss, which is another function unless beta is 1"

    alpha: float = parameter(Number(summary="Lifts the gradient of small differences.", above=0), default=0.5)
    gamma: float = parameter(Number(summary="Bound of the gradient.", above=0), default=1.5)
    beta: float = parameter(Number(summary="Where the two parts meet, in the boxes' unit.", above=0), default=1.0)
    coordinates: Coordinates = _coordinates()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma > _STEEPEST * self.alpha:  # Single precision does not hold b.
            fault = f"{self.gamma:g} is more than {_STEEPEST:g} times alpha, {self.alpha:g}"
            raise InvalidInputError([Violation("gamma", fault)])


@dataclass(frozen=True)
class BoundedIoU(Loss):
    """Bounded IoU loss."""

    name = "bounded_iou"
    title = "Bounded IoU"
    summary = "Smooth L1 of what each of x, y, width and height alone takes from the best possible IoU."
    formula = (
        "sum of Smooth L1 of: 1 - max(0, (W - 2 |dx|) / (W + 2 |dx|)), likewise in y, "
        "1 - min(w / W, W / w), likewise of the heights"
    )
    paper = "Tychsen-Smith and Petersson, Fitness NMS and Bounded IoU Loss, CVPR 2018, arXiv:1711.00164"
    blind_spots = "No gradient in x once the center lies beyond the target's edges; likewise in y."
    aliases = "mmdetection BoundedIoULoss, summed over its four terms"

    beta: float = parameter(Number(summary="Where the parabola meets the line.", above=0), default=0.2)


@dataclass(frozen=True)
class NWD(Loss):
    """Normalized Wasserstein distance."""

    name = "nwd"
    title = "NWD"
    summary = "Wasserstein distance of the boxes as Gaussians, for tiny objects whose IoU jumps with every pixel."
    formula = "1 - e^(-d / constant); d^2 = rho^2 + ((w - W)^2 + (h - H)^2) / 4"
    paper = "Wang et al., A Normalized Gaussian Wasserstein Distance, 2021, arXiv:2110.13389"
    blind_spots = "Its gradient fades far away, in units of the constant, and is 0 for identical boxes, where it jumps."
    aliases = "mmdet-aitod NWDLoss"

    constant: float = parameter(
        Number(summary="Typical size of the objects, in the boxes' unit.", above=0), default=12.8
    )

    @property
    def has_similarity(self) -> bool:
        return True
