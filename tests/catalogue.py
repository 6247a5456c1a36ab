"""Every loss of the catalogue under several settings, each with its reference."""

from __future__ import annotations

from boxloss import AlphaIoU, CIoU, DIoU, EIoU, FocalEIoU, GIoU, IoU, Loss, SmoothL1
from tests.reference import Reference

LOSSES: dict[Loss, Reference] = {
    SmoothL1(): lambda pair: pair.smooth_l1(1.0),
    SmoothL1(beta=0.3): lambda pair: pair.smooth_l1(0.3),
    IoU(): lambda pair: pair.plain("iou"),
    IoU(form="log"): lambda pair: pair.log_iou(1e-6),
    IoU(form="log", floor=0.1): lambda pair: pair.log_iou(0.1),
    GIoU(): lambda pair: pair.plain("giou"),
    DIoU(): lambda pair: pair.plain("diou"),
    CIoU(): lambda pair: pair.plain("ciou"),
    CIoU(gate=0.5): lambda pair: pair.plain("ciou" if pair.iou.value >= 0.5 else "diou"),
    EIoU(): lambda pair: pair.plain("eiou"),
    FocalEIoU(): lambda pair: pair.focal_eiou(0.5, detach_weight=True),
    FocalEIoU(gamma=2.0, detach_weight=False): lambda pair: pair.focal_eiou(2.0, detach_weight=False),
    AlphaIoU(IoU()): lambda pair: pair.alpha_iou("iou", 3.0),
    AlphaIoU(GIoU()): lambda pair: pair.alpha_iou("giou", 3.0),
    AlphaIoU(DIoU(), alpha=0.5): lambda pair: pair.alpha_iou("diou", 0.5),
    AlphaIoU(CIoU()): lambda pair: pair.alpha_iou("ciou", 3.0),
    AlphaIoU(EIoU(), alpha=2.0): lambda pair: pair.alpha_iou("eiou", 2.0),
}
