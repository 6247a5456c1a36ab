"""Where boxloss agrees with other libraries, and where and why it does not.

torchvision's and torch's functions are run; other libraries' are in tests.public_formulas, written down from their
definitions. `AGREEMENTS` and `DIFFERENCES` are meant to be read.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from boxloss import (
    L1,
    L2,
    NWD,
    AlphaIoU,
    BalancedL1,
    BoundedIoU,
    CIoU,
    DIoU,
    EIoU,
    Focal,
    FocalEIoU,
    Focaler,
    GIoU,
    Huber,
    Inner,
    IoU,
    Loss,
    MPDIoU,
    PIoU,
    PIoUv2,
    ShapeIoU,
    SIoU,
    SmoothL1,
    WIoU,
)
from boxloss_server.losses import box_loss, box_similarity
from tests import public_formulas as public
from tests.boxes import random_boxes
from tests.catalogue import LOSSES
from tests.public_formulas import Formula, elementwise

_DECLARED: list[torch.library.Library] = []


@cache
def torchvision_ops() -> Any:
    """torchvision.ops, whose losses are plain Python; skips where torchvision is not installed.

    Beside a CPU build of torch its compiled part does not load. Then the import fails for want of two operators, which
    no loss uses: they are declared.
    """
    try:
        return importlib.import_module("torchvision.ops")
    except ModuleNotFoundError:
        pytest.skip("torchvision is not installed")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _DECLARED.append(library)  # It takes its operators along.
    return importlib.import_module("torchvision.ops")


def torchvision(name: str) -> Formula:
    """One of its losses, which are those of fvcore and detectron2 too."""

    def formula(prediction: Tensor, target: Tensor, eps: float = 1e-7) -> Tensor:
        result: Tensor = getattr(torchvision_ops(), name)(prediction, target, eps=eps)
        return result

    return formula


@dataclass(frozen=True)
class Agreement:
    """That a library's loss and ours agree on boxes with sides of 1 to 100."""

    name: str
    formula: Formula
    loss: Loss
    tolerance: float
    """Relative and absolute, of value and gradient in float64; the library's epsilons make up for all of it."""
    eps: bool = False
    """Whether the library has an epsilon; without it, they agree to 1e-12."""
    context: dict[str, Any] = field(default_factory=dict)


EXACT = 1e-12

AGREEMENTS = [
    Agreement("torch l1_loss, sum", elementwise(functional.l1_loss), L1(), EXACT),
    Agreement("DETR loss_bbox", elementwise(functional.l1_loss, center=True), L1(coordinates="center"), EXACT),
    Agreement("torch mse_loss, sum", elementwise(functional.mse_loss), L2(), EXACT),
    Agreement("torch smooth_l1_loss, sum", elementwise(functional.smooth_l1_loss, beta=9.0), SmoothL1(beta=9), EXACT),
    Agreement("torch huber_loss, sum", elementwise(functional.huber_loss, delta=9.0), Huber(delta=9), EXACT),
    Agreement("torchvision GIoU", torchvision("generalized_box_iou_loss"), GIoU(), 1e-7, eps=True),
    Agreement("torchvision DIoU", torchvision("distance_box_iou_loss"), DIoU(), 1e-7, eps=True),
    Agreement("torchvision CIoU", torchvision("complete_box_iou_loss"), CIoU(), 1e-7),  # Its DIoU part keeps 1e-7.
    Agreement("mmdetection IoULoss, linear", partial(public.mmdet_iou, form="linear"), IoU(), 1e-6),
    Agreement("mmdetection IoULoss, square", partial(public.mmdet_iou, form="square"), IoU(form="square"), EXACT),
    Agreement("mmdetection IoULoss, log", public.mmdet_iou, IoU(form="log"), EXACT),
    Agreement("mmdetection GIoULoss", public.mmdet_giou, GIoU(), EXACT),
    Agreement("mmdetection DIoULoss", public.mmdet_diou, DIoU(), 1e-6, eps=True),
    Agreement("mmdetection CIoULoss", public.mmdet_ciou, CIoU(gate=0.5), 1e-6, eps=True),
    Agreement("mmdetection SIoULoss, neg_gamma", partial(public.mmdet_siou, neg_gamma=True), SIoU(), 1e-6, eps=True),
    Agreement("mmdetection BoundedIoULoss", public.mmdet_bounded_iou, BoundedIoU(), 5e-3, eps=True),
    Agreement("mmdetection BalancedL1Loss", public.mmdet_balanced_l1, BalancedL1(), EXACT),
    Agreement("Ultralytics IoU", partial(public.ultralytics, form="iou"), IoU(), 1e-6, eps=True),
    Agreement("Ultralytics GIoU", partial(public.ultralytics, form="giou"), GIoU(), 1e-6, eps=True),
    Agreement("Ultralytics DIoU", partial(public.ultralytics, form="diou"), DIoU(), 1e-6, eps=True),
    Agreement("Ultralytics CIoU", partial(public.ultralytics, form="ciou"), CIoU(), 1e-6, eps=True),
    Agreement("YOLOv6 SIoU", public.yolov6_siou, SIoU(), 1e-7, eps=True),
    Agreement("PaddleDetection IouLoss", public.paddle_iou, IoU(form="square"), 1e-10, eps=True),
    Agreement("PaddleDetection GIoULoss", public.paddle_giou, GIoU(), 1e-10, eps=True),
    Agreement("PaddleDetection DIouLoss, a CIoU", public.paddle_diou, CIoU(), 1e-10, eps=True),
    Agreement("PaddleDetection DIouLoss, a DIoU", partial(public.paddle_diou, complete=False), DIoU(), 1e-10, eps=True),
    Agreement("PaddleDetection SIoULoss", public.paddle_siou, SIoU(), EXACT),
    Agreement("PaddlePaddle smooth_l1_loss", partial(public.paddle_smooth_l1, delta=9.0), Huber(delta=9), EXACT),
    Agreement("KerasCV SmoothL1Loss", public.kerascv_smooth_l1, SmoothL1(), EXACT),
    Agreement("Alpha-IoU", partial(public.alpha_iou, form="iou"), AlphaIoU(IoU()), 1e-8, eps=True),
    Agreement("Alpha-GIoU", partial(public.alpha_iou, form="giou"), AlphaIoU(GIoU()), 1e-8, eps=True),
    Agreement("Alpha-DIoU", partial(public.alpha_iou, form="diou"), AlphaIoU(DIoU()), 1e-8, eps=True),
    Agreement("Alpha-CIoU", partial(public.alpha_iou, form="ciou"), AlphaIoU(CIoU()), 1e-8, eps=True),
    Agreement("EIoU, as copied around", public.collected_eiou, EIoU(), 1e-7, eps=True),
    Agreement(
        "Focal-EIoU, as copied around",
        partial(public.collected_focal, base=public.collected_eiou),
        FocalEIoU(),
        1e-7,
        eps=True,
    ),
    Agreement(
        "Focal-CIoU, as copied around",
        partial(public.collected_focal, base=partial(public.ultralytics, form="ciou")),
        Focal(CIoU()),
        1e-6,
        eps=True,
    ),
    Agreement(
        "MPDIoU, as copied around",
        partial(public.collected_mpdiou, image_size=(640.0, 480.0)),
        MPDIoU(),
        1e-7,
        eps=True,
        context={"image_size": (640.0, 480.0)},
    ),
    Agreement("WIoU v1", public.wiou, WIoU(), EXACT),
    Agreement(
        "WIoU v2",
        partial(public.wiou, version=2, running_mean=0.7),
        WIoU(version=2),
        EXACT,
        context={"running_mean": 0.7},
    ),
    Agreement(
        "WIoU v3, branch v1",
        partial(public.wiou, version=3, running_mean=0.7),
        WIoU(version=3),
        EXACT,
        context={"running_mean": 0.7},
    ),
    Agreement(
        "WIoU v3, branch v2",
        partial(public.wiou, version=3, running_mean=0.7, alpha=1.7, delta=2.7),
        WIoU(version=3, alpha=1.7, delta=2.7),
        EXACT,
        context={"running_mean": 0.7},
    ),
    Agreement("wiou CIoU", public.wiou_ciou, CIoU(), 1e-6, eps=True),
    Agreement("wiou SIoU", public.wiou_siou, SIoU(), 1e-5, eps=True),
    Agreement(
        "Inner-CIoU",
        partial(public.inner, base=partial(public.ultralytics, form="ciou"), ratio=0.7),
        Inner(CIoU(), ratio=0.7),
        1e-6,
        eps=True,
    ),
    Agreement(
        "Inner-SIoU", partial(public.inner, base=public.siou, ratio=1.2), Inner(SIoU(), ratio=1.2), 1e-7, eps=True
    ),
    Agreement(
        "Focaler-CIoU",
        partial(public.focaler, base=partial(public.ultralytics, form="ciou")),
        Focaler(CIoU()),
        1e-6,
        eps=True,
    ),
    Agreement("Shape-IoU", public.shape_iou, ShapeIoU(), 1e-7, eps=True),
    Agreement("Shape-IoU, scaled", partial(public.shape_iou, scale=0.5), ShapeIoU(scale=0.5), 1e-7, eps=True),
    Agreement("NWD", public.nwd, NWD(), 1e-7, eps=True),
    Agreement("PIoU", public.piou, PIoU(), EXACT),
    Agreement("PIoU v2", partial(public.piou, attention=1.3), PIoUv2(), EXACT),
]


def random_pairs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Half of them anywhere, so that many are apart; half of them close."""
    rng = np.random.default_rng(40)
    predictions, targets = random_boxes(rng, 400), random_boxes(rng, 400)
    sides = np.tile(targets[:, 2:] - targets[:, :2], 2)
    predictions[::2] = (targets + rng.uniform(-0.15, 0.15, targets.shape) * sides)[::2]
    return torch.tensor(predictions, dtype=dtype), torch.tensor(targets, dtype=dtype)


def value_and_gradient(formula: Formula, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    prediction = prediction.clone().requires_grad_()
    value = formula(prediction, target)
    (gradient,) = torch.autograd.grad(value.sum(), prediction)
    return value.detach(), gradient


@pytest.mark.parametrize("agreement", AGREEMENTS, ids=lambda agreement: agreement.name)
def test_agrees_on_boxes_of_ordinary_size(agreement: Agreement) -> None:
    prediction, target = random_pairs()
    ours = value_and_gradient(partial(box_loss, loss=agreement.loss, **agreement.context), prediction, target)
    theirs = value_and_gradient(agreement.formula, prediction, target)
    torch.testing.assert_close(ours, theirs, rtol=agreement.tolerance, atol=agreement.tolerance)
    if agreement.eps:
        theirs = value_and_gradient(partial(agreement.formula, eps=0), prediction, target)
        torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=EXACT)


PAIRS = {
    "partial overlap": ([0, 0, 4, 4], [1, 2, 5, 8]),
    "nested": ([2, 2, 6, 5], [0, 0, 10, 8]),
    "identical": ([0, 0, 40, 40], [0, 0, 40, 40]),
    "identical, side 1e-3": ([0, 0, 1e-3, 1e-3], [0, 0, 1e-3, 1e-3]),
    "identical, side 1e-4": ([0, 0, 1e-4, 1e-4], [0, 0, 1e-4, 1e-4]),
    "apart": ([0, 0, 2, 2], [5, 6, 8, 10]),
    "far apart": ([0, 0, 4, 4], [16, 0, 20, 4]),
    "same center": ([0, 2, 8, 4], [3, 0, 5, 6]),
    "IoU of exactly 0.5": ([0, 0, 8, 4], [0, 0, 4, 4]),
    "2.5 off in x": ([2.5, 0, 14.5, 10], [0, 0, 12, 10]),
    "two points": ([3, 3, 3, 3], [3, 3, 3, 3]),
}
NAN = math.nan


@dataclass(frozen=True)
class Difference:
    """That a library's loss is another one on a pair."""

    name: str
    """The library's, and why."""
    formula: Formula
    loss: Loss
    pair: str
    theirs: float
    ours: float
    dtype: torch.dtype = torch.float64


DIFFERENCES = [
    Difference(
        "torch smooth_l1_loss averages over the four coordinates unless told otherwise",
        elementwise(functional.smooth_l1_loss, reduction="mean"),
        SmoothL1(),
        "partial overlap",
        theirs=1.5,
        ours=6.0,
    ),
    Difference(
        "torchvision adds eps to the union",
        torchvision("generalized_box_iou_loss"),
        GIoU(),
        "identical, side 1e-3",
        theirs=0.0909091,
        ours=0.0,
    ),
    Difference(
        "torchvision adds eps to the union, and CIoU has it from DIoU",
        torchvision("complete_box_iou_loss"),
        CIoU(),
        "identical, side 1e-3",
        theirs=0.0909091,
        ours=0.0,
    ),
    Difference(
        "torchvision has no angle for a point",
        torchvision("complete_box_iou_loss"),
        CIoU(),
        "two points",
        theirs=NAN,
        ours=1.0,
    ),
    Difference(
        "mmdetection IoULoss is logarithmic unless told otherwise",
        public.mmdet_iou,
        IoU(),
        "partial overlap",
        theirs=1.7346010554,
        ours=0.8235294118,
    ),
    Difference(
        "mmdetection GIoULoss takes max(union, eps)",
        public.mmdet_giou,
        GIoU(),
        "identical, side 1e-4",
        theirs=0.99,
        ours=0.0,
    ),
    Difference(
        "mmdetection DIoULoss adds eps to the union",
        public.mmdet_diou,
        DIoU(),
        "identical, side 1e-3",
        theirs=0.5,
        ours=0.0,
    ),
    Difference(
        "mmdetection CIoULoss has no aspect term below IoU 0.5",
        public.mmdet_ciou,
        CIoU(),
        "same center",
        theirs=0.8333333333,
        ours=0.9677574925,
    ),
    Difference(
        "mmdetection CIoULoss has none at IoU 0.5 either",
        partial(public.mmdet_ciou, eps=0),
        CIoU(gate=0.5),
        "IoU of exactly 0.5",
        theirs=0.55,
        ours=0.5532481293,
    ),
    Difference(
        "mmdetection CIoULoss divides 0 by 0 for identical boxes in float32",
        public.mmdet_ciou,
        CIoU(),
        "identical",
        theirs=NAN,
        ours=0.0,
        dtype=torch.float32,
    ),
    Difference(
        "mmdetection SIoULoss rewards distance unless neg_gamma=True",
        public.mmdet_siou,
        SIoU(),
        "far apart",
        theirs=0.0,
        ours=1.3609813498,
    ),
    Difference(
        "mmdetection EIoULoss is Extended-IoU",
        public.mmdet_eiou,
        EIoU(),
        "apart",
        theirs=1.7147058824,
        ours=1.5388567073,
    ),
    Difference(
        "Ultralytics adds eps to the union, and to the heights",
        partial(public.ultralytics, form="ciou"),
        CIoU(),
        "identical, side 1e-3",
        theirs=0.0910743501,
        ours=0.0,
    ),
    Difference(
        "PaddleDetection IouLoss squares the IoU unless told otherwise",
        public.paddle_iou,
        IoU(),
        "partial overlap",
        theirs=0.9688581315,
        ours=0.8235294118,
    ),
    Difference(
        "PaddleDetection IouLoss squares a negative CIoU, and falls with the distance",
        partial(public.paddle_iou, ciou=True),
        CIoU(),
        "apart",
        theirs=0.7664232756,
        ours=1.4832977591,
    ),
    Difference(
        "PaddleDetection DIouLoss is CIoU unless told otherwise",
        public.paddle_diou,
        DIoU(),
        "same center",
        theirs=0.9677574925,
        ours=0.8333333333,
    ),
    Difference(
        "PaddleDetection SIoULoss divides 0 by 0 where the centers meet",
        public.paddle_siou,
        SIoU(),
        "same center",
        theirs=NAN,
        ours=0.9001141288,
    ),
    Difference(
        "KerasCV CIoULoss squares 4 / pi^2",
        public.kerascv_ciou,
        CIoU(),
        "same center",
        theirs=0.8607843114,
        ours=0.9677574925,
    ),
    Difference(
        "KerasCV SmoothL1Loss has the parabola of cutoff 1 below any cutoff",
        partial(public.kerascv_smooth_l1, cutoff=3.0),
        SmoothL1(beta=3.0),
        "2.5 off in x",
        theirs=6.25,
        ours=2.0833333333,
    ),
    Difference(
        "KerasCV SmoothL1Loss has the line of cutoff 1 above any cutoff",
        partial(public.kerascv_smooth_l1, cutoff=2.0),
        SmoothL1(beta=2.0),
        "2.5 off in x",
        theirs=4.0,
        ours=3.0,
    ),
    Difference(
        "Alpha-IoU's code divides 0 by 0 for identical boxes in float32",
        partial(public.alpha_iou, form="ciou"),
        AlphaIoU(CIoU()),
        "identical",
        theirs=NAN,
        ours=0.0,
        dtype=torch.float32,
    ),
    Difference(
        "Alpha-IoU as copied around: CIoU's trade-off of the powered IoU",
        public.collected_alpha_ciou,
        AlphaIoU(CIoU()),
        "same center",
        theirs=0.9970516950,
        ours=0.9977993954,
    ),
    Difference(
        "Alpha-IoU as copied around: EIoU's size terms not raised",
        public.collected_alpha_eiou,
        AlphaIoU(EIoU()),
        "partial overlap",
        theirs=1.0584228782,
        ours=0.9961670188,
    ),
    Difference(
        "Focal-SIoU as copied around: the weight's exponent is that of the distance cost",
        public.collected_focal_siou,
        Focal(SIoU()),
        "partial overlap",
        theirs=10.6986192093,
        ours=0.3962827458,
    ),
    Difference(
        "wiou EIoU takes the centers' offsets for the differences of the sizes",
        public.wiou_eiou,
        EIoU(),
        "same center",
        theirs=0.8333333333,
        ours=1.8402777778,
    ),
    Difference(
        "wiou CIoU divides 0 by 0 for identical boxes",
        public.wiou_ciou,
        CIoU(),
        "identical",
        theirs=NAN,
        ours=0.0,
    ),
    Difference(
        "NWD has eps under the root",
        public.nwd,
        NWD(),
        "identical",
        theirs=2.4705e-5,
        ours=0.0,
    ),
]


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.name)
def test_differs_as_documented(difference: Difference) -> None:
    prediction, target = (torch.tensor([box], dtype=difference.dtype) for box in PAIRS[difference.pair])
    theirs, ours = difference.formula(prediction, target), box_loss(prediction, target, difference.loss)
    assert theirs.item() == pytest.approx(difference.theirs, rel=1e-6, nan_ok=True)
    assert ours.item() == pytest.approx(difference.ours, rel=1e-6)
    assert not math.isclose(difference.theirs, difference.ours, rel_tol=5e-4)


METRICS = [
    ("box_iou", IoU()),
    ("generalized_box_iou", GIoU()),
    ("distance_box_iou", DIoU()),
    ("complete_box_iou", CIoU()),
]


@pytest.mark.parametrize(("name", "loss"), METRICS)
def test_similarities_agree_with_torchvisions_metrics(name: str, loss: Loss) -> None:
    rows, columns = random_pairs()
    theirs = getattr(torchvision_ops(), name)(rows[:60], columns)
    torch.testing.assert_close(box_similarity(rows[:60], columns, loss), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "loss"), METRICS[:2])
def test_torchvisions_metrics_without_eps_are_not_defined_for_two_points(name: str, loss: Loss) -> None:
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert getattr(torchvision_ops(), name)(point, point).isnan().all()
    assert box_similarity(point, point, loss).item() == 0


@pytest.mark.parametrize("name", ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"])
def test_agrees_with_torchvision_in_float32(name: str) -> None:
    loss = {"generalized": GIoU(), "distance": DIoU(), "complete": CIoU()}[name.partition("_")[0]]
    prediction, target = random_pairs(torch.float32)
    ours, theirs = partial(box_loss, loss=loss), torchvision(name)
    torch.testing.assert_close(
        value_and_gradient(ours, prediction, target),
        value_and_gradient(theirs, prediction, target),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("box", [[3.0, 3.0, 3.0, 3.0], [0.0, 3.0, 9.0, 3.0]], ids=["point", "line"])
def test_boxes_without_area_have_a_gradient_that_torchvision_lacks(box: list[float]) -> None:
    prediction, target = torch.tensor([box]), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    _, theirs = value_and_gradient(torchvision("complete_box_iou_loss"), prediction, target)
    _, ours = value_and_gradient(partial(box_loss, loss=CIoU()), prediction, target)
    assert theirs.isnan().any()
    assert ours.isfinite().all()


def test_touching_boxes_have_the_gradient_of_overlapping_ones_where_the_overlap_is_clamped() -> None:
    pair = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[4.0, 1.0, 7.0, 5.0]])
    _, ours = value_and_gradient(partial(box_loss, loss=IoU()), *pair)
    _, clamped = value_and_gradient(partial(public.ultralytics, form="iou"), *pair)
    assert ours.abs().sum() == 0
    # torch after 2.13 makes clamp's gradient at its bound 0.
    assert clamped[0, 2].item() in (pytest.approx(-3 / 28), 0)


def test_touching_boxes_have_torchvisions_gradient() -> None:
    pair = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[4.0, 1.0, 7.0, 5.0]])
    theirs = value_and_gradient(torchvision("generalized_box_iou_loss"), *pair)
    torch.testing.assert_close(value_and_gradient(partial(box_loss, loss=GIoU()), *pair), theirs)


def test_the_aspect_term_of_darknet_leaves_out_the_squared_diagonal() -> None:
    prediction, target = random_pairs()
    pair = public.Pair(prediction, target)
    alpha = pair.v() / (1 - pair.I / pair.U + pair.v())
    _, ciou = value_and_gradient(partial(box_loss, loss=CIoU()), prediction, target)
    _, diou = value_and_gradient(partial(box_loss, loss=DIoU()), prediction, target)
    ours = (ciou - diou)[:, 2:].T  # By the right and bottom edges, that is by width and height.
    torch.testing.assert_close(
        ours * (pair.w**2 + pair.h**2), alpha * public.darknet_aspect_gradient(prediction, target), rtol=1e-6, atol=1e-9
    )


def test_wiou_as_copied_around_lets_the_enclosing_box_have_a_gradient() -> None:
    prediction, target = random_pairs()
    ours = value_and_gradient(partial(box_loss, loss=WIoU()), prediction, target)
    theirs = value_and_gradient(public.collected_wiou, prediction, target)
    torch.testing.assert_close(ours[0], theirs[0], rtol=EXACT, atol=EXACT)
    assert (ours[1] - theirs[1]).abs().max() > 1e-3


def test_wiou_in_training_takes_the_batch_into_its_mean_before_it_uses_it() -> None:
    prediction, target = random_pairs()
    theirs = public.wiou_in_training(prediction, target, running_mean=1.0)
    before = box_loss(prediction, target, WIoU(version=3), running_mean=1.0)
    batch = box_loss(prediction, target, IoU()).mean().item()
    after = box_loss(prediction, target, WIoU(version=3), running_mean=0.99 + 0.01 * batch)
    assert (before - theirs).abs().max() > 1e-3
    torch.testing.assert_close(after, theirs, rtol=EXACT, atol=EXACT)


def test_focal_eiou_with_its_weight_attached_points_away_from_the_target() -> None:
    prediction, target = (torch.tensor([box], dtype=torch.float64) for box in PAIRS["partial overlap"])
    attached = FocalEIoU(detach_weight=False)
    _, detached_gradient = value_and_gradient(partial(box_loss, loss=FocalEIoU()), prediction, target)
    _, attached_gradient = value_and_gradient(partial(box_loss, loss=attached), prediction, target)
    assert detached_gradient[0, 3] < 0 < attached_gradient[0, 3]  # The bottom edge has yet to move down.


def test_every_loss_is_compared_with_a_library() -> None:
    compared = {type(agreement.loss) for agreement in AGREEMENTS}
    assert compared >= {type(loss) for loss in LOSSES if loss.axis_aligned}
