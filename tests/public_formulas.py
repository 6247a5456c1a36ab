"""The losses as other libraries define them, epsilons and quirks included, for corner boxes of shape (N, 4).

Each is written down from the library's definition; `eps` has the library's default. They share nothing with the code
under test. Nothing here is advice: some of these are known to be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Formula = Callable[..., Tensor]


class Pair:
    """The quantities of the papers. Overlaps are clamped at 0, as most libraries do."""

    def __init__(self, prediction: Tensor, target: Tensor) -> None:
        self.larger, self.smaller = torch.max(prediction, target).unbind(-1), torch.min(prediction, target).unbind(-1)
        x1, y1, x2, y2 = prediction.unbind(-1)
        u1, v1, u2, v2 = target.unbind(-1)
        self.w, self.h, self.W, self.H = x2 - x1, y2 - y1, u2 - u1, v2 - v1
        self.dx, self.dy = (u1 + u2 - x1 - x2) / 2, (v1 + v2 - y1 - y2) / 2
        self.edges = tuple((prediction - target).abs().unbind(-1))
        self.overlap = (self.smaller[2] - self.larger[0]).clamp(min=0), (self.smaller[3] - self.larger[1]).clamp(min=0)
        self.cw, self.ch = self.larger[2] - self.smaller[0], self.larger[3] - self.smaller[1]
        self.I = self.overlap[0] * self.overlap[1]
        self.U = self.w * self.h + self.W * self.H - self.I
        self.C = self.cw * self.ch
        self.c2 = self.cw**2 + self.ch**2
        self.rho2 = self.dx**2 + self.dy**2

    def v(self, eps: float = 0.0) -> Tensor:
        """CIoU's difference of the aspect ratios."""
        angles = torch.atan(self.W / (self.H + eps)) - torch.atan(self.w / (self.h + eps))
        return 4 / math.pi**2 * angles**2


# torch


def elementwise(loss: Formula, reduction: str = "sum", center: bool = False, **more: Any) -> Formula:
    """A loss of torch.nn.functional over corner coordinates, or over center, width and height."""

    def formula(prediction: Tensor, target: Tensor) -> Tensor:
        if center:
            prediction, target = (
                torch.cat([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], -1) for box in (prediction, target)
            )
        values = loss(prediction, target, reduction="none", **more)
        return values.sum(-1) if reduction == "sum" else values.mean(-1)

    return formula


# mmdetection 3.3


def mmdet_iou(prediction: Tensor, target: Tensor, form: str = "log", eps: float = 1e-6) -> Tensor:
    """IoULoss: the IoU is at least eps in every form."""
    pair = Pair(prediction, target)
    iou = (pair.I / pair.U.clamp(min=eps)).clamp(min=eps)
    return {"linear": 1 - iou, "square": 1 - iou**2, "log": -iou.log()}[form]


def mmdet_giou(prediction: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    pair = Pair(prediction, target)
    return 1 - pair.I / pair.U.clamp(min=eps) + (pair.C - pair.U) / pair.C.clamp(min=eps)


def mmdet_diou(prediction: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    pair = Pair(prediction, target)
    return 1 - pair.I / (pair.U + eps) + pair.rho2 / (pair.c2 + eps)


def mmdet_ciou(prediction: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """CIoULoss: no aspect term unless IoU > 0.5, and nothing that keeps alpha from being 0 / 0."""
    pair = Pair(prediction, target)
    iou, v = pair.I / (pair.U + eps), pair.v(eps)
    alpha = ((iou > 0.5) * v / (1 - iou + v)).detach()
    return 1 - (iou - pair.rho2 / (pair.c2 + eps) - alpha * v).clamp(-1, 1)


def mmdet_siou(prediction: Tensor, target: Tensor, neg_gamma: bool = False, eps: float = 1e-6) -> Tensor:
    """SIoULoss: the sign of the distance cost's exponent is wrong unless neg_gamma; the loss is clamped at 0."""
    return 1 - (1 - siou(prediction, target, sign=-1 if neg_gamma else 1, eps=eps)).clamp(-1, 1)


def mmdet_eiou(prediction: Tensor, target: Tensor, smooth: float = 0.1, eps: float = 1e-6) -> Tensor:
    """EIoULoss: Extended-IoU, whose intersection is negative for boxes apart."""
    pair = Pair(prediction, target)
    # From the enclosing box's left and top to the overlap's; below, x1 > x2 where there is none.
    x1, y1 = pair.larger[0] - pair.smaller[0], pair.larger[1] - pair.smaller[1]
    x2, y2 = pair.smaller[2] - pair.smaller[0], pair.smaller[3] - pair.smaller[1]
    intersection = x2 * y2 + torch.min(x1, x2) * torch.min(y1, y2) - x1 * torch.max(y1, y2) - torch.max(x1, x2) * y1
    loss = 1 - intersection / (pair.w * pair.h + pair.W * pair.H - intersection + eps)
    return torch.where(loss < smooth, loss**2 / (2 * smooth), loss - smooth / 2)


def mmdet_bounded_iou(prediction: Tensor, target: Tensor, beta: float = 0.2, eps: float = 1e-3) -> Tensor:
    """BoundedIoULoss, its four terms summed."""
    pair = Pair(prediction, target)
    terms = []
    for offset, side in ((pair.dx.abs(), pair.W), (pair.dy.abs(), pair.H)):
        terms.append(1 - ((side - 2 * offset) / (side + 2 * offset + eps)).clamp(min=0))
    for a, b in ((pair.w, pair.W), (pair.h, pair.H)):
        terms.append(1 - torch.min(b / (a + eps), a / (b + eps)))
    shortfall = torch.stack(terms)
    return torch.where(shortfall < beta, shortfall**2 / (2 * beta), shortfall - beta / 2).sum(0)


def mmdet_balanced_l1(
    prediction: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0
) -> Tensor:
    """BalancedL1Loss, its four terms summed."""
    d, b = (prediction - target).abs(), math.exp(gamma / alpha) - 1
    near = alpha / b * (b * d + 1) * (b * d / beta + 1).log() - alpha * d
    return torch.where(d < beta, near, gamma * d + gamma / b - alpha * beta).sum(-1)


# Ultralytics, YOLOv6


def ultralytics(prediction: Tensor, target: Tensor, form: str, eps: float = 1e-7) -> Tensor:
    """1 - bbox_iou(xywh=False, GIoU=, DIoU= or CIoU=True): the heights grow by eps."""
    pair = Pair(prediction, target)
    h, H = pair.h + eps, pair.H + eps  # noqa: N806
    union = pair.w * h + pair.W * H - pair.I + eps
    iou = pair.I / union
    if form == "iou":
        return 1 - iou
    if form == "giou":
        return 1 - iou + (pair.C + eps - union) / (pair.C + eps)
    loss = 1 - iou + pair.rho2 / (pair.c2 + eps)
    if form == "diou":
        return loss
    v = pair.v(eps)
    return loss + (v / (v - iou + (1 + eps))).detach() * v


def yolov6_siou(prediction: Tensor, target: Tensor, eps: float = 1e-7) -> Tensor:
    return siou(prediction, target, eps=eps)


def siou(prediction: Tensor, target: Tensor, sign: int = -1, eps: float = 1e-7) -> Tensor:
    """SIoU by its angle's sine and arcsine."""
    pair = Pair(prediction, target)
    dx, dy = pair.dx + eps, pair.dy + eps
    sines = torch.stack([dx.abs(), dy.abs()]) / (dx**2 + dy**2).sqrt()
    angle = torch.sin(2 * torch.asin(sines.amin(0)))
    distance = 2 - sum(torch.exp(sign * (2 - angle) * t**2) for t in (dx / (pair.cw + eps), dy / (pair.ch + eps)))
    shape = sum((1 - torch.exp(-(a - b).abs() / torch.max(a, b))) ** 4 for a, b in ((pair.w, pair.W), (pair.h, pair.H)))
    return 1 - pair.I / (pair.U + eps) + (distance + shape) / 2


# PaddleDetection


def paddle_iou(prediction: Tensor, target: Tensor, ciou: bool = False, eps: float = 1e-10) -> Tensor:
    """IouLoss, loss_square=True as by default: squares whatever it is, a negative similarity too."""
    pair = Pair(prediction, target)
    similarity = 1 - paddle_diou(prediction, target, eps=eps) if ciou else pair.I / (pair.U + eps)
    return 1 - similarity**2


def paddle_giou(prediction: Tensor, target: Tensor, eps: float = 1e-10) -> Tensor:
    pair = Pair(prediction, target)
    return 1 - pair.I / (pair.U + eps) + (pair.C + eps - pair.U) / (pair.C + eps)


def paddle_diou(prediction: Tensor, target: Tensor, complete: bool = True, eps: float = 1e-10) -> Tensor:
    """DIouLoss, before its mean: CIoU unless use_complete_iou_loss=False."""
    pair = Pair(prediction, target)
    iou = pair.I / (pair.U + eps)
    loss = 1 - iou + (pair.rho2 + eps) / (pair.c2 + eps)
    if not complete:
        return loss
    v = pair.v()
    return loss + (v / (1 - iou + v + eps)).detach() * v


def paddle_siou(prediction: Tensor, target: Tensor) -> Tensor:
    """SIoULoss: nothing keeps its sine from being 0 / 0 where the centers meet."""
    return siou(prediction, target, eps=0)


def paddle_smooth_l1(prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """paddle.nn.functional.smooth_l1_loss, summed: documented as Huber."""
    d = (prediction - target).abs()
    return torch.where(d < delta, d**2 / 2, delta * (d - delta / 2)).sum(-1)


# KerasCV


def kerascv_smooth_l1(prediction: Tensor, target: Tensor, cutoff: float = 1.0) -> Tensor:
    """SmoothL1Loss, summed: jumps at the cutoff unless that is 1."""
    d = (prediction - target).abs()
    return torch.where(d < cutoff, d**2 / 2, d - 0.5).sum(-1)


def kerascv_ciou(prediction: Tensor, target: Tensor) -> Tensor:
    """CIoULoss: 4 / pi^2 is squared too; alpha has a gradient."""
    pair = Pair(prediction, target)
    iou, v = pair.I / pair.U, pair.v() * (4 / math.pi**2)
    return 1 - iou + pair.rho2 / pair.c2 + v / (1 - iou + v) * v


# The losses' own repositories, and a collection much copied from


def alpha_iou(prediction: Tensor, target: Tensor, form: str, alpha: float = 3.0, eps: float = 1e-9) -> Tensor:
    """1 - bbox_alpha_iou of Jacobi93/Alpha-IoU."""
    pair = Pair(prediction, target)
    loss = 1 - (pair.I / pair.U + eps) ** alpha
    if form == "giou":
        enclosing = torch.max(pair.C + eps, pair.U)
        return loss + ((enclosing - pair.U) / enclosing + eps) ** alpha
    if form in ("diou", "ciou"):
        loss = loss + pair.rho2**alpha / (pair.c2**alpha + eps)
    if form == "ciou":
        v = pair.v()
        trade_off = (v / ((1 + eps) - pair.I / pair.U + v)).detach()
        loss = loss + (trade_off * v + eps) ** alpha
    return loss


def collected_alpha_ciou(prediction: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """The collection's: CIoU's trade-off is computed from the IoU's power."""
    pair = Pair(prediction, target)
    powered, v = (pair.I / pair.U) ** alpha, pair.v()
    return 1 - powered + (pair.rho2 / pair.c2) ** alpha + ((v / (1 - powered + v)).detach() * v) ** alpha


def collected_alpha_eiou(prediction: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """The collection's: the differences of the sizes are not raised."""
    pair = Pair(prediction, target)
    sizes = ((pair.w - pair.W) / pair.cw) ** 2 + ((pair.h - pair.H) / pair.ch) ** 2
    return 1 - (pair.I / pair.U) ** alpha + (pair.rho2 / pair.c2) ** alpha + sizes


def collected_focal(prediction: Tensor, target: Tensor, base: Formula, gamma: float = 0.5, eps: float = 1e-7) -> Tensor:
    """The collection's Focal losses: the weight is detached."""
    pair = Pair(prediction, target)
    return (pair.I / (pair.U + eps)).detach() ** gamma * base(prediction, target, eps=eps)


def collected_focal_siou(prediction: Tensor, target: Tensor) -> Tensor:
    """The collection's: the weight's exponent has the name of the distance cost's, and is that."""
    pair = Pair(prediction, target)
    exponent = 2 * (pair.dx * pair.dy).abs() / pair.rho2 - 2
    return (pair.I / pair.U).detach() ** exponent.detach() * siou(prediction, target, eps=0)


def collected_eiou(prediction: Tensor, target: Tensor, eps: float = 1e-7) -> Tensor:
    pair = Pair(prediction, target)
    iou = pair.I / (pair.U + eps)
    loss = 1 - iou + pair.rho2 / (pair.c2 + eps)
    for a, b, enclosing in ((pair.w, pair.W, pair.cw), (pair.h, pair.H, pair.ch)):
        loss = loss + (a - b) ** 2 / (enclosing**2 + eps)
    return loss


def collected_wiou(prediction: Tensor, target: Tensor) -> Tensor:
    """The collection's WIoU v1: the enclosing box has a gradient."""
    pair = Pair(prediction, target)
    return torch.exp(pair.rho2 / pair.c2) * (1 - pair.I / pair.U)


def collected_mpdiou(prediction: Tensor, target: Tensor, image_size: tuple[float, float], eps: float = 1e-7) -> Tensor:
    pair = Pair(prediction, target)
    diagonal = image_size[0] ** 2 + image_size[1] ** 2
    left, top, right, bottom = pair.edges
    return 1 - pair.I / (pair.U + eps) + (left**2 + top**2) / diagonal + (right**2 + bottom**2) / diagonal


def wiou(
    prediction: Tensor,
    target: Tensor,
    version: int = 1,
    running_mean: float = 1.0,
    alpha: float = 1.9,
    delta: float = 3.0,
) -> Tensor:
    """Instinct323/wiou at a running mean; branch v1 has alpha 1.9 and delta 3, branch v2 1.7 and 2.7."""
    pair = Pair(prediction, target)
    distance = 1 - pair.I / pair.U
    loss = torch.exp(pair.rho2 / pair.c2.detach()) * distance
    beta = distance.detach() / running_mean
    return loss * {1: torch.ones_like(beta), 2: beta.sqrt(), 3: beta / (delta * alpha ** (beta - delta))}[version]


def wiou_in_training(prediction: Tensor, target: Tensor, running_mean: float, momentum: float = 0.01) -> Tensor:
    """WIoU v3 as it is trained: the mean takes this batch in before it is used."""
    pair = Pair(prediction, target)
    batch = float((1 - pair.I / pair.U).mean())
    return wiou(prediction, target, version=3, running_mean=(1 - momentum) * running_mean + momentum * batch)


def wiou_ciou(prediction: Tensor, target: Tensor, eps: float = 1e-4) -> Tensor:
    """CIoU of Instinct323/wiou: nothing keeps alpha from being 0 / 0."""
    pair = Pair(prediction, target)
    distance, v = 1 - pair.I / pair.U, pair.v(eps)
    return distance + pair.rho2 / pair.c2 + (v / (distance + v)).detach() * v


def wiou_eiou(prediction: Tensor, target: Tensor) -> Tensor:
    """EIoU of Instinct323/wiou: takes the centers' offsets for the differences of the sizes."""
    pair = Pair(prediction, target)
    return 1 - pair.I / pair.U + pair.rho2 / pair.c2 + (pair.dx / pair.cw) ** 2 + (pair.dy / pair.ch) ** 2


def wiou_siou(prediction: Tensor, target: Tensor, eps: float = 1e-4) -> Tensor:
    """SIoU of Instinct323/wiou: eps in the angle's sine alone."""
    pair = Pair(prediction, target)
    sine = torch.min(pair.dx.abs(), pair.dy.abs()) / (pair.rho2.sqrt() + eps)
    sharpness = 2 - torch.sin(2 * torch.asin(sine))
    loss = 1 - pair.I / pair.U
    for offset, enclosing in ((pair.dx, pair.cw), (pair.dy, pair.ch)):
        loss = loss + (1 - torch.exp(-sharpness * (offset / enclosing) ** 2)) / 2
    for a, b in ((pair.w, pair.W), (pair.h, pair.H)):
        loss = loss + (1 - torch.exp(-(a - b).abs() / torch.max(a, b))) ** 4 / 2
    return loss


def inner(prediction: Tensor, target: Tensor, base: Formula, ratio: float, eps: float = 1e-7) -> Tensor:
    """malagoutou/Inner-IoU: the IoU of the scaled boxes in place of the IoU, except in CIoU's trade-off."""

    def scale(boxes: Tensor) -> Tensor:
        center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        return torch.cat([center - ratio * half, center + ratio * half], -1)

    pair, scaled = Pair(prediction, target), Pair(scale(prediction), scale(target))
    return base(prediction, target, eps=eps) + pair.I / (pair.U + eps) - scaled.I / (scaled.U + eps)


def focaler(
    prediction: Tensor, target: Tensor, base: Formula, lower: float = 0.0, upper: float = 0.95, eps: float = 1e-7
) -> Tensor:
    """malagoutou/Focaler-IoU: the IoU stretched over a range in place of the IoU."""
    pair = Pair(prediction, target)
    iou = pair.I / (pair.U + eps)
    return base(prediction, target, eps=eps) + iou - ((iou - lower) / (upper - lower)).clamp(0, 1)


def shape_iou(prediction: Tensor, target: Tensor, scale: float = 0.0, eps: float = 1e-7) -> Tensor:
    """malagoutou/Shape-IoU."""
    pair = Pair(prediction, target)
    total = pair.W**scale + pair.H**scale
    ww, hh = 2 * pair.W**scale / total, 2 * pair.H**scale / total
    loss = 1 - pair.I / (pair.U + eps) + (hh * pair.dx**2 + ww * pair.dy**2) / (pair.c2 + eps)
    for weight, a, b in ((hh, pair.w, pair.W), (ww, pair.h, pair.H)):
        loss = loss + (1 - torch.exp(-weight * (a - b).abs() / torch.max(a, b))) ** 4 / 2
    return loss


def nwd(prediction: Tensor, target: Tensor, constant: float = 12.8, eps: float = 1e-7) -> Tensor:
    """jwwangchn/NWD: eps in each side and in the distance, so that identical boxes do not score 0."""
    pair = Pair(prediction, target)
    sizes = ((pair.w - pair.W) ** 2 + (pair.h - pair.H) ** 2) / 4
    return 1 - torch.exp(-(pair.rho2 + eps + sizes).sqrt() / constant)


def piou(prediction: Tensor, target: Tensor, attention: float | None = None) -> Tensor:
    """fppccc/Powerful-IoU; version 2 has an attention."""
    pair = Pair(prediction, target)
    left, top, right, bottom = pair.edges
    p = (left / pair.W + right / pair.W + top / pair.H + bottom / pair.H) / 4
    loss = 2 - pair.I / pair.U - torch.exp(-(p**2))
    if attention is None:
        return loss
    x = attention * torch.exp(-p)
    return 3 * x * torch.exp(-(x**2)) * loss


def darknet_aspect_gradient(prediction: Tensor, target: Tensor) -> Tensor:
    """The gradient of v in the prediction's width and height as darknet has it, shape (2, N)."""
    pair = Pair(prediction, target)
    angles = torch.atan(pair.W / pair.H) - torch.atan(pair.w / pair.h)
    return 8 / math.pi**2 * angles * torch.stack([-pair.h, pair.w])
