"""Losses that modify other losses. They nest: Focal(AlphaIoU(Inner(CIoU())))."""

from __future__ import annotations

from dataclasses import dataclass

from boxloss.errors import InvalidInputError, Violation
from boxloss.losses.loss import Base, Loss, PenaltyLoss, parameter
from boxloss.losses.parameters import Number, Switch

__all__ = ["AlphaIoU", "Focal", "FocalEIoU", "Focaler", "Inner"]

_ZERO_APART = (
    "0, with gradient 0, for boxes apart: it scores them like identical ones and cannot pull them together. Attached, "
    "the weight pushes pairs of little overlap apart."
)

_NARROWEST = 1e-6
"""Range that IoUs may be stretched over: single precision still tells its ends apart."""


class Modifier(Loss):
    """Base of the losses that modify another: what that needs and is defined for, they are."""

    base: Loss

    @property
    def oriented(self) -> bool:
        return self.base.oriented

    @property
    def needed(self) -> tuple[str, ...]:
        return self.base.needed


@dataclass(frozen=True)
class AlphaIoU(Modifier):
    """Alpha-IoU loss: the terms of another loss, each raised to alpha."""

    name = "alpha_iou"
    title = "Alpha-IoU"
    summary = "A power of the IoU and of each penalty of the base; above 1, good pairs count more."
    formula = "1 - IoU^alpha + sum of penalty^alpha; CIoU's trade-off keeps the plain IoU"
    paper = "He et al., Alpha-IoU, NeurIPS 2021, arXiv:2110.13675"
    blind_spots = "Above 1, its gradient fades for pairs of little overlap."
    aliases = "Jacobi93/Alpha-IoU; there is no factor 1 / alpha"

    base: Loss = parameter(Base(summary="The loss whose terms are raised."))
    alpha: float = parameter(Number(summary="The exponent.", above=0, maximum=10), default=3.0)

    @property
    def weighable(self) -> bool:
        return True

    @property
    def has_similarity(self) -> bool:
        return True


@dataclass(frozen=True)
class Focal(Modifier):
    """A loss weighted towards pairs that already overlap."""

    name = "focal"
    title = "Focal"
    summary = "Another loss weighted by a power of the IoU, so that good pairs count more."
    formula = "IoU^gamma base"
    paper = "Zhang et al., Focal and Efficient IOU Loss, Neurocomputing 2022, arXiv:2101.08158"
    blind_spots = _ZERO_APART

    base: Loss = parameter(Base(summary="The loss that is weighted.", weighted=True))
    gamma: float = parameter(Number(summary="Exponent of the weight.", above=0, maximum=10), default=0.5)
    detach_weight: bool = parameter(Switch(summary="Whether the weight is a constant in the gradient."), default=True)


@dataclass(frozen=True)
class FocalEIoU(Loss):
    """Focal-EIoU loss: Efficient IoU, weighted towards pairs that already overlap."""

    name = "focal_eiou"
    title = "Focal-EIoU"
    summary = "EIoU weighted by a power of the IoU, so that good pairs count more."
    formula = "IoU^gamma EIoU"
    paper = "Zhang et al., Focal and Efficient IOU Loss, Neurocomputing 2022, arXiv:2101.08158"
    blind_spots = _ZERO_APART
    aliases = "The same as Focal over EIoU"

    gamma: float = parameter(Number(summary="Exponent of the weight.", above=0, maximum=10), default=0.5)
    detach_weight: bool = parameter(Switch(summary="Whether the weight is a constant in the gradient."), default=True)


@dataclass(frozen=True)
class Inner(Modifier, PenaltyLoss):
    """A loss with the IoU of boxes scaled about their own centers; its penalties stay."""

    name = "inner"
    title = "Inner-IoU"
    summary = "Smaller boxes sharpen the IoU for good pairs; larger ones let boxes apart overlap."
    formula = "base + IoU - IoU of the scaled boxes"
    paper = "Zhang et al., Inner-IoU, 2023, arXiv:2311.02877"
    blind_spots = "With a ratio below 1, boxes whose inner parts are apart have no IoU gradient."

    base: Loss = parameter(Base(summary="The loss that is changed."))
    ratio: float = parameter(Number(summary="Factor of the sides.", minimum=0.1, maximum=10), default=0.7)

    @property
    def oriented(self) -> bool:
        return False


@dataclass(frozen=True)
class Focaler(Modifier, PenaltyLoss):
    """A loss with the IoU stretched over a range; its penalties stay."""

    name = "focaler"
    title = "Focaler-IoU"
    summary = "Spends the IoU's gradient on a range: low for hard pairs, high for easy ones."
    formula = "base + IoU - min(max((IoU - lower) / (upper - lower), 0), 1)"
    paper = "Zhang and Zhang, Focaler-IoU, 2024, arXiv:2401.10525"
    blind_spots = "Outside the range the IoU has no gradient: with the defaults, above 0.95."

    base: Loss = parameter(Base(summary="The loss that is changed."))
    lower: float = parameter(Number(summary="IoU that becomes 0.", minimum=0, below=1), default=0.0)
    upper: float = parameter(
        Number(summary="IoU that becomes 1; above lower by 1e-6 or more.", above=0, maximum=1), default=0.95
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.upper - self.lower < _NARROWEST:
            fault = f"{self.upper:g} is not above lower, {self.lower:g}, by {_NARROWEST:g} or more"
            raise InvalidInputError([Violation("upper", fault)])
