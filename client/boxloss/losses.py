"""The loss specifications: what to compute, as plain data.

A specification is a frozen dataclass named as the literature names the loss. Its parameters carry their meaning and
range, which the constructor checks and which the catalogue shows. The server computes; boxes are always compared as
corners (left, top, right, bottom), whatever format they come in, so a pair has one loss in every format.

In the formulas, I and U are the areas of intersection and union, C is the area of the smallest enclosing box, cw, ch
and c its sides and diagonal, rho the distance of the centres; w, h are the prediction's sides and W, H the target's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from boxloss.errors import InvalidInputError, Violation
from boxloss.parameters import Choice, Number, Switch


@dataclass(frozen=True)
class Loss:
    """Base of all specifications. Raises `InvalidInputError` for a parameter out of range."""

    name: ClassVar[str]
    """Name in the contract, the command line and the metrics."""
    title: ClassVar[str]
    """Name in the literature."""
    summary: ClassVar[str]
    formula: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of the request, besides the boxes, without which the loss cannot be computed."""

    @property
    def modifiable(self) -> bool:
        """Whether the loss has the form 1 - IoU + penalties, which a modifier such as `AlphaIoU` acts on."""
        return False

    def __post_init__(self) -> None:
        violations = []
        for each in fields(self):
            try:
                object.__setattr__(self, each.name, each.metadata["kind"].check(getattr(self, each.name)))
            except ValueError as error:
                violations.append(Violation(each.name, str(error)))
        if violations:
            raise InvalidInputError(violations)


@dataclass(frozen=True)
class PenaltyLoss(Loss):
    """Base of the losses of the form 1 - IoU + penalties."""

    @property
    def modifiable(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Base:
    """A parameter that is itself a loss, of the form 1 - IoU + penalties."""

    summary: str

    def check(self, value: object) -> Loss:
        """Returns the value; raises ValueError where a modifier cannot act on it."""
        if not isinstance(value, Loss) or not value.modifiable:
            raise ValueError(f"{value!r} cannot be modified; take a linear {', '.join(self.names)}")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses that can be modified."""
        return tuple(loss.name for loss in CATALOGUE.values() if issubclass(loss, PenaltyLoss))


def _parameter(kind: Number | Switch | Choice | Base, **default: Any) -> Any:
    return field(metadata={"kind": kind}, **default)


@dataclass(frozen=True)
class SmoothL1(Loss):
    """Smooth L1 over the four corner coordinates: their sum, not their mean."""

    name = "smooth_l1"
    title = "Smooth L1"
    summary = "Parabola for small differences of the corner coordinates, line for large ones; summed over the four."
    formula = "sum over left, top, right, bottom of: d^2 / (2 beta) if |d| < beta, else |d| - beta / 2"
    paper = "Girshick, Fast R-CNN, ICCV 2015, arXiv:1504.08083"

    beta: float = _parameter(
        Number(summary="Where the parabola meets the line, in the boxes' unit.", above=0), default=1.0
    )


@dataclass(frozen=True)
class IoU(PenaltyLoss):
    """IoU loss, linear or logarithmic."""

    name = "iou"
    title = "IoU"
    summary = "Share of the union that the boxes do not share; no gradient for boxes apart."
    formula = "linear: 1 - I / U; log: -ln max(I / U, floor)"
    paper = "Yu et al., UnitBox, ACM MM 2016, arXiv:1608.01471"

    form: Literal["linear", "log"] = _parameter(
        Choice(summary="1 - IoU or -ln IoU.", choices=("linear", "log")), default="linear"
    )
    floor: float = _parameter(
        Number(summary="Least IoU that the logarithm sees; below it the gradient is 0.", above=0, below=1),
        default=1e-6,
    )

    @property
    def modifiable(self) -> bool:
        return self.form == "linear"


@dataclass(frozen=True)
class GIoU(PenaltyLoss):
    """Generalized IoU loss."""

    name = "giou"
    title = "GIoU"
    summary = "IoU loss with the share of the enclosing box that neither box covers; pulls boxes apart together."
    formula = "1 - IoU + (C - U) / C"
    paper = "Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, arXiv:1902.09630"


@dataclass(frozen=True)
class DIoU(PenaltyLoss):
    """Distance IoU loss."""

    name = "diou"
    title = "DIoU"
    summary = "IoU loss with the distance of the centres, relative to the enclosing diagonal."
    formula = "1 - IoU + rho^2 / c^2"
    paper = "Zheng et al., Distance-IoU Loss, AAAI 2020, arXiv:1911.08287"


@dataclass(frozen=True)
class CIoU(PenaltyLoss):
    """Complete IoU loss. Its trade-off alpha is a constant in the gradient."""

    name = "ciou"
    title = "CIoU"
    summary = "DIoU with the difference of the aspect ratios."
    formula = "DIoU + alpha v; v = 4 / pi^2 (atan(W / H) - atan(w / h))^2; alpha = v / (1 - IoU + v), 0 if IoU < gate"
    paper = "Zheng et al., Distance-IoU Loss, AAAI 2020, arXiv:1911.08287; gated at 0.5: arXiv:2005.03572"

    gate: float = _parameter(
        Number(summary="Pairs with less IoU than this get no aspect term; 0 gates none.", minimum=0, maximum=1),
        default=0.0,
    )


@dataclass(frozen=True)
class EIoU(PenaltyLoss):
    """Efficient IoU loss."""

    name = "eiou"
    title = "EIoU"
    summary = "DIoU with the differences of width and height themselves, each relative to the enclosing box."
    formula = "DIoU + (w - W)^2 / cw^2 + (h - H)^2 / ch^2"
    paper = "Zhang et al., Focal and Efficient IOU Loss, Neurocomputing 2022, arXiv:2101.08158"


@dataclass(frozen=True)
class FocalEIoU(Loss):
    """Focal-EIoU loss: Efficient IoU, weighted towards pairs that already overlap."""

    name = "focal_eiou"
    title = "Focal-EIoU"
    summary = "EIoU weighted by a power of the IoU, so that good pairs count more; 0 for boxes apart."
    formula = "IoU^gamma EIoU"
    paper = "Zhang et al., Focal and Efficient IOU Loss, Neurocomputing 2022, arXiv:2101.08158"

    gamma: float = _parameter(Number(summary="Exponent of the weight.", above=0, maximum=10), default=0.5)
    detach_weight: bool = _parameter(Switch(summary="Whether the weight is a constant in the gradient."), default=True)


@dataclass(frozen=True)
class AlphaIoU(Loss):
    """Alpha-IoU: the terms of another loss, each raised to alpha."""

    name = "alpha_iou"
    title = "Alpha-IoU"
    summary = "A power of the IoU and of each penalty of the base; above 1, good pairs count more."
    formula = "1 - IoU^alpha + sum of penalty^alpha; in CIoU's, the trade-off keeps the plain IoU"
    paper = "He et al., Alpha-IoU, NeurIPS 2021, arXiv:2110.13675"

    base: Loss = _parameter(Base(summary="The loss whose terms are raised."))
    alpha: float = _parameter(Number(summary="The exponent.", above=0, maximum=10), default=3.0)


CATALOGUE: dict[str, type[Loss]] = {
    loss.name: loss for loss in (SmoothL1, IoU, GIoU, DIoU, CIoU, EIoU, FocalEIoU, AlphaIoU)
}
"""Every loss by its name, in the order of the literature."""
