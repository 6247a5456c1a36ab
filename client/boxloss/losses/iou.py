"""Losses of axis-aligned boxes that are built on the IoU; the first three are defined for oriented boxes too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from boxloss.losses.loss import Loss, PenaltyLoss, parameter
from boxloss.losses.parameters import Choice, Integer, Number

__all__ = ["CIoU", "DIoU", "EIoU", "GIoU", "IoU", "MPDIoU", "PIoU", "PIoUv2", "SIoU", "ShapeIoU", "WIoU"]


@dataclass(frozen=True)
class IoU(PenaltyLoss):
    """IoU loss: linear, logarithmic or squared."""

    name = "iou"
    title = "IoU"
    summary = "Share of the union that the boxes do not share: the measure that detectors are judged by."
    formula = "linear: 1 - I / U; log: -ln max(I / U, floor); square: 1 - (I / U)^2"
    paper = "Yu et al., UnitBox, ACM MM 2016, arXiv:1608.01471"
    blind_spots = "No gradient for boxes apart or touching, in any form; of nested boxes it sees only the areas."
    aliases = "mmdetection IoULoss (log unless told otherwise); PaddleDetection IouLoss (square); UnitBox's is log"

    form: Literal["linear", "log", "square"] = parameter(
        Choice(summary="1 - IoU, -ln IoU or 1 - IoU^2.", choices=("linear", "log", "square")), default="linear"
    )
    floor: float = parameter(
        Number(summary="Least IoU that the logarithm sees; below it the gradient is 0.", above=0, below=1),
        default=1e-6,
    )

    @property
    def modifiable(self) -> bool:
        return self.form == "linear"

    @property
    def oriented(self) -> bool:
        return True


@dataclass(frozen=True)
class GIoU(PenaltyLoss):
    """Generalized IoU loss."""

    name = "giou"
    title = "GIoU"
    summary = "IoU loss with the share of the enclosing box that neither box covers; pulls boxes apart together."
    formula = "1 - IoU + (C - U) / C"
    paper = "Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, arXiv:1902.09630"
    blind_spots = (
        "Equal to the IoU loss where one box contains the other, or the two fill their enclosing box; boxes apart grow "
        "towards and away from each other before they move."
    )
    aliases = "torchvision generalized_box_iou_loss; mmdetection GIoULoss"

    @property
    def oriented(self) -> bool:
        return True


@dataclass(frozen=True)
class DIoU(PenaltyLoss):
    """Distance IoU loss."""

    name = "diou"
    title = "DIoU"
    summary = "IoU loss with the distance of the centers, relative to the enclosing diagonal; pulls nested boxes too."
    formula = "1 - IoU + rho^2 / c^2"
    paper = "Zheng et al., Distance-IoU Loss, AAAI 2020, arXiv:1911.08287"
    blind_spots = (
        "Once the centers meet, equal to the IoU loss: sizes and aspect ratios are compared by the overlap alone. Far "
        "along one axis, it leads outwards along the other, as that lengthens the diagonal."
    )
    aliases = "torchvision distance_box_iou_loss; mmdetection DIoULoss"

    @property
    def oriented(self) -> bool:
        return True


@dataclass(frozen=True)
class CIoU(PenaltyLoss):
    """Complete IoU loss. Its trade-off alpha is a constant in the gradient."""

    name = "ciou"
    title = "CIoU"
    summary = "DIoU with the difference of the aspect ratios."
    formula = "DIoU + alpha v; v = 4 / pi^2 (atan(W / H) - atan(w / h))^2; alpha = v / (1 - IoU + v), 0 if IoU < gate"
    paper = "Zheng et al., Distance-IoU Loss, AAAI 2020, arXiv:1911.08287; gated at 0.5: arXiv:2005.03572"
    blind_spots = "v is 0 for proportional boxes, whatever their sizes; it never grows both sides at once."
    aliases = "torchvision complete_box_iou_loss; mmdetection CIoULoss (gated above 0.5)"

    gate: float = parameter(
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
    blind_spots = "Nearly flat for a prediction far too large: the enclosing box grows with it."
    aliases = "Not mmdetection EIoULoss, which is Extended-IoU"


@dataclass(frozen=True)
class SIoU(PenaltyLoss):
    """SCYLLA-IoU loss."""

    name = "siou"
    title = "SIoU"
    summary = (
        "IoU loss with distance, shape and angle, meant to steer the prediction to the target's nearest axis first."
    )
    formula = (
        "1 - IoU + (sum of 1 - e^(-(2 - A) t) + sum of (1 - e^(-s))^theta) / 2; A = 2 |dx dy| / rho^2; "
        "t = (dx / cw)^2 and (dy / ch)^2; s = |w - W| / max(w, W) and |h - H| / max(h, H)"
    )
    paper = "Gevorgyan, SIoU Loss: More Powerful Learning for Bounding Box Regression, 2022, arXiv:2205.12740"
    blind_spots = (
        "Its pull on boxes far apart is a fraction of DIoU's; small differences of shape cost next to nothing, being "
        "raised to theta."
    )
    aliases = "mmdetection SIoULoss with neg_gamma=True (its default rewards distance); YOLOv6's"

    theta: float = parameter(Number(summary="Exponent of the shape cost.", minimum=1, maximum=10), default=4.0)


@dataclass(frozen=True)
class WIoU(Loss):
    """Wise-IoU loss. The focusing factors of versions 2 and 3 compare a pair with a running mean of 1 - IoU."""

    name = "wiou"
    title = "WIoU"
    summary = "IoU loss amplified by the distance, and focused on hard pairs (version 2) or ordinary ones (version 3)."
    formula = (
        "r exp(rho^2 / c^2) (1 - IoU), c constant in the gradient; r = 1, beta^gamma or "
        "beta / (delta alpha^(beta - delta)); beta = (1 - IoU) / running mean, constant too"
    )
    paper = "Tong et al., Wise-IoU, 2023, arXiv:2301.10051"
    blind_spots = (
        "Boxes apart only move: their sizes have no gradient; about one center, it sees what the IoU sees. Version 3 "
        "has little gradient for the worst pairs where the running mean is low, on purpose."
    )
    aliases = "Instinct323/wiou; other copies let c^2 have a gradient"
    needs = ("running_mean",)

    version: int = parameter(Integer(summary="1, 2 or 3.", minimum=1, maximum=3), default=1)
    gamma: float = parameter(Number(summary="Version 2: exponent of the factor.", above=0, maximum=10), default=0.5)
    alpha: float = parameter(Number(summary="Version 3: base of the factor.", above=1, maximum=10), default=1.9)
    delta: float = parameter(Number(summary="Version 3: where the factor is 1.", above=0, maximum=10), default=3.0)
    momentum: float = parameter(
        Number(summary="Weight of this request in the running mean handed back.", minimum=0, maximum=1), default=0.01
    )

    @property
    def needed(self) -> tuple[str, ...]:
        return self.needs if self.version > 1 else ()


@dataclass(frozen=True)
class MPDIoU(PenaltyLoss):
    """Minimum point distance IoU loss."""

    name = "mpdiou"
    title = "MPDIoU"
    summary = "IoU loss with the distances of two corners, relative to the image; sees sizes where aspect ratios agree."
    formula = "1 - IoU + (d1^2 + d2^2) / (image width^2 + image height^2); d1, d2: left top and right bottom corners"
    paper = "Ma and Xu, MPDIoU, 2023, arXiv:2307.07662"
    blind_spots = "Small boxes have small penalties, as the image is large."
    needs = ("image_size",)


@dataclass(frozen=True)
class PIoU(PenaltyLoss):
    """Powerful-IoU loss."""

    name = "piou"
    title = "PIoU"
    summary = "IoU loss with the distances of the edges relative to the target alone, so that growing never helps."
    formula = "1 - IoU + 1 - e^(-P^2); P = mean of the edges' differences, over W or H"
    paper = "Liu et al., Powerful-IoU, Neural Networks 170, 2024"
    blind_spots = (
        "Nearly flat where P exceeds 2: boxes four of the target's sides apart along one axis, or two along both. "
        "A box inside the target is not pulled to the center."
    )


@dataclass(frozen=True)
class PIoUv2(Loss):
    """Powerful-IoU v2 loss: focused on pairs of medium quality."""

    name = "piou_v2"
    title = "PIoU v2"
    summary = "PIoU with an attention that is largest for pairs of medium quality."
    formula = "3 x e^(-x^2) PIoU; x = attention e^(-P)"
    paper = "Liu et al., Powerful-IoU, Neural Networks 170, 2024"
    blind_spots = (
        "Pushes boxes apart that are about two of the target's sides away or more: the attention, which is part of the "
        "gradient, fades faster than PIoU grows, so that the loss falls."
    )

    attention: float = parameter(Number(summary="Where the attention lies.", above=0, maximum=10), default=1.3)


@dataclass(frozen=True)
class ShapeIoU(PenaltyLoss):
    """Shape-IoU loss."""

    name = "shape_iou"
    title = "Shape-IoU"
    summary = "IoU loss whose distance and shape terms are weighted by the target's own shape."
    formula = (
        "1 - IoU + (hh dx^2 + ww dy^2) / c^2 + (sum of (1 - e^(-s))^4) / 2; ww = 2 W^scale / (W^scale + H^scale), "
        "hh likewise; s = hh |w - W| / max(w, W) and ww |h - H| / max(h, H)"
    )
    paper = "Zhang and Zhang, Shape-IoU, 2023, arXiv:2312.17663"
    blind_spots = (
        "With a scale above 0, a distance or a difference of size along the target's long side counts little; small "
        "differences of shape cost next to nothing, being raised to the fourth power."
    )

    scale: float = parameter(
        Number(summary="Exponent of the target's sides in the weights; 0 weights nothing.", minimum=0, maximum=10),
        default=0.0,
    )
