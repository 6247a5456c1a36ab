"""The losses as pure functions: golden values, published values, an independent reference, and their properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from boxloss import (
    L1,
    L2,
    NWD,
    BalancedL1,
    CIoU,
    DIoU,
    EIoU,
    Focal,
    FocalEIoU,
    GIoU,
    Huber,
    IoU,
    Loss,
    MPDIoU,
    SmoothL1,
    WIoU,
)
from boxloss.losses import CATALOGUE
from boxloss.losses.oriented import GaussianLoss
from boxloss_server.losses import Geometry, box_loss, box_similarity, evaluate
from tests.boxes import random_boxes
from tests.catalogue import LOSSES
from tests.reference import Pair

GOLDEN = Path(__file__).parent / "golden"
AXIS_ALIGNED = json.loads((GOLDEN / "axis_aligned.json").read_text())
PUBLISHED = json.loads((GOLDEN / "published.json").read_text())
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
PRECISIONS = [torch.float64, torch.float32]

names = pytest.mark.parametrize("loss", LOSSES, ids=repr)
precisions = pytest.mark.parametrize("dtype", PRECISIONS, ids=str)


def golden_cases() -> list[Any]:
    cases = []
    for case in AXIS_ALIGNED["cases"]:
        for entry in case["losses"]:
            if entry["loss"] in CATALOGUE:
                parameters = dict(entry["params"])
                if base := parameters.get("base"):
                    parameters["base"] = CATALOGUE[base]()
                loss = CATALOGUE[entry["loss"]](**parameters)
                cases.append(pytest.param(case, loss, entry, id=f"{case['name']} {loss}"))
    return cases


def in_context(prediction: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """The loss in the image and at the running mean of the reference."""
    return box_loss(prediction, target, loss, image_size=(640, 480), running_mean=Pair.running_mean)


def value_and_gradients(loss: Loss, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    prediction, target = prediction.clone().requires_grad_(), target.clone().requires_grad_()
    value = in_context(prediction, target, loss)
    torch.autograd.backward(value.sum())
    assert prediction.grad is not None
    assert target.grad is not None
    return value.detach(), prediction.grad, target.grad


@precisions
@pytest.mark.parametrize(("case", "loss", "entry"), golden_cases())
def test_agrees_with_the_golden_values(
    case: dict[str, Any], loss: Loss, entry: dict[str, Any], dtype: torch.dtype
) -> None:
    prediction = torch.tensor([case["prediction"]], dtype=dtype)
    target = torch.tensor([case["target"]], dtype=dtype)
    value, gradient, _ = value_and_gradients(loss, prediction, target)
    assert value.item() == pytest.approx(entry["value"], abs=TOLERANCE[dtype])
    assert gradient[0].tolist() == pytest.approx(entry["gradient"], abs=TOLERANCE[dtype])


def test_golden_values_cover_every_loss() -> None:
    covered = {entry["loss"] for case in AXIS_ALIGNED["cases"] for entry in case["losses"]}
    assert covered >= {"iou", "giou", "diou", "ciou", "eiou", "focal_eiou", "alpha_iou", "siou", "wiou", "piou", "nwd"}


def test_every_loss_has_a_reference() -> None:
    def with_bases(loss: Loss) -> set[str]:
        base = getattr(loss, "base", None)
        return {loss.name} | (with_bases(base) if base else set())

    oriented = {name for name, loss in CATALOGUE.items() if issubclass(loss, GaussianLoss)}
    assert set().union(*map(with_bases, LOSSES)) == set(CATALOGUE) - oriented


@pytest.mark.parametrize(("metric", "loss"), [("iou", IoU()), ("giou", GIoU()), ("diou", DIoU()), ("ciou", CIoU())])
def test_matrices_agree_with_torchvisions_published_values(metric: str, loss: Loss) -> None:
    published = PUBLISHED["torchvision_pairwise"]
    rows, columns = torch.tensor(published["A"], dtype=torch.float64), torch.tensor(published["B"], dtype=torch.float64)
    matrix = box_similarity(rows, columns, loss)
    torch.testing.assert_close(
        matrix, torch.tensor(published[metric], dtype=torch.float64), atol=published["atol"], rtol=0
    )


@pytest.mark.parametrize("loss", [IoU(), GIoU(), DIoU(), CIoU()], ids=repr)
def test_float_matrices_agree_with_torchvisions_published_values(loss: Loss) -> None:
    published = PUBLISHED["torchvision_pairwise_float"]
    boxes = torch.tensor(published["A"])
    expected = torch.tensor(published["iou_giou_diou_ciou"])
    torch.testing.assert_close(box_similarity(boxes, boxes, loss), expected, atol=published["atol"], rtol=0)


@pytest.mark.parametrize(("name", "loss"), [("giou_loss", GIoU()), ("diou_loss", DIoU()), ("ciou_loss", CIoU())])
def test_losses_agree_with_torchvisions_published_values(name: str, loss: Loss) -> None:
    published = PUBLISHED["torchvision_losses"]
    for pair, expected in published[name].items():
        if "," in pair:
            first, second = (torch.tensor([published[f"box{i}"]], dtype=torch.float64) for i in pair.split(","))
            assert box_loss(first, second, loss).item() == pytest.approx(expected, abs=1e-4)
    firsts = torch.tensor([published["box2"], published["box2"]], dtype=torch.float64)
    seconds = torch.tensor([published["box3"], published["box4"]], dtype=torch.float64)
    assert box_loss(firsts, seconds, loss).sum().item() == pytest.approx(published[name]["batch_sum"], abs=1e-2)


@pytest.mark.parametrize(("name", "loss"), [("diou_loss", DIoU()), ("ciou_loss", CIoU())])
def test_losses_agree_with_detectron2s_published_values(name: str, loss: Loss) -> None:
    published = PUBLISHED["detectron2_losses"]
    for pair in ("box,box", "box,box2", "box3,box4"):
        first, second = (torch.tensor([published[each]], dtype=torch.float64) for each in pair.split(","))
        assert box_loss(first, second, loss).item() == pytest.approx(published[name][pair], abs=5e-5)


@names
def test_agrees_with_dual_numbers(loss: Loss) -> None:
    rng = np.random.default_rng(20)
    predictions, targets = random_boxes(rng, 200), random_boxes(rng, 200)
    expected = [LOSSES[loss](Pair(p, t)) for p, t in zip(predictions.tolist(), targets.tolist(), strict=True)]
    value, gradient, target_gradient = value_and_gradients(loss, torch.tensor(predictions), torch.tensor(targets))
    slopes = np.array([each.slopes for each in expected])
    np.testing.assert_allclose(value, [each.value for each in expected], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(gradient, slopes[:, :4], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(target_gradient, slopes[:, 4:], rtol=1e-9, atol=1e-12)


def has_constant_factor(loss: Loss) -> bool:
    """Whether part of the loss is constant in the gradient, so that finite differences see another one."""
    base = getattr(loss, "base", None)
    return (
        isinstance(loss, CIoU | WIoU)
        or (isinstance(loss, Focal | FocalEIoU) and loss.detach_weight)
        or (base is not None and has_constant_factor(base))
    )


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if not has_constant_factor(loss)], ids=repr)
def test_gradients_agree_with_finite_differences(loss: Loss) -> None:
    rng = np.random.default_rng(21)
    prediction = torch.tensor(random_boxes(rng, 50)).requires_grad_()
    target = torch.tensor(random_boxes(rng, 50)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: in_context(p, t, loss), (prediction, target), eps=1e-6, atol=1e-7)


def test_the_constant_factor_of_ciou_is_all_that_finite_differences_miss() -> None:
    rng = np.random.default_rng(22)
    prediction = torch.tensor(random_boxes(rng, 50)).requires_grad_()
    target = torch.tensor(random_boxes(rng, 50))
    geometry = Geometry(prediction.T, target.T)
    alpha = (geometry.aspect_difference / (1 - geometry.iou + geometry.aspect_difference)).detach()

    def with_constant_alpha(p: Tensor) -> Tensor:
        pairs = Geometry(p.T, target.T)
        return evaluate(pairs, DIoU()) + alpha * pairs.aspect_difference

    (expected,) = torch.autograd.grad(with_constant_alpha(prediction).sum(), prediction)
    (gradient,) = torch.autograd.grad(box_loss(prediction, target, CIoU()).sum(), prediction)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(with_constant_alpha, prediction, eps=1e-6, atol=1e-7)


coordinates = st.integers(-20, 20)
sides = st.integers(0, 12)


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    """Boxes on a small grid, so that touching, nested, identical and degenerate ones are common."""
    left, top = draw(coordinates), draw(coordinates)
    return [float(left), float(top), float(left + draw(sides)), float(top + draw(sides))]


scales = st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6, 1e12])


@given(boxes(), boxes(), scales, st.sampled_from(list(LOSSES)), st.sampled_from(PRECISIONS))
def test_everything_is_finite(
    prediction: list[float], target: list[float], scale: float, loss: Loss, dtype: torch.dtype
) -> None:
    value, gradient, target_gradient = value_and_gradients(
        loss, torch.tensor([prediction], dtype=dtype) * scale, torch.tensor([target], dtype=dtype) * scale
    )
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert target_gradient.isfinite().all()


@given(boxes(), boxes(), st.sampled_from(list(LOSSES)))
def test_moving_both_boxes_changes_nothing(prediction: list[float], target: list[float], loss: Loss) -> None:
    _, gradient, target_gradient = value_and_gradients(
        loss, torch.tensor([prediction], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    )
    together = (gradient + target_gradient)[0]
    assert together[[0, 2]].sum().item() == pytest.approx(0, abs=1e-9)
    assert together[[1, 3]].sum().item() == pytest.approx(0, abs=1e-9)


IN_UNITS = (SmoothL1, L1, L2, Huber, BalancedL1, NWD, MPDIoU)


@given(boxes(), boxes(), st.sampled_from([loss for loss in LOSSES if not isinstance(loss, IN_UNITS)]))
def test_iou_losses_do_not_depend_on_the_unit(prediction: list[float], target: list[float], loss: Loss) -> None:
    first, second = torch.tensor([prediction], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    expected, gradient, _ = value_and_gradients(loss, first, second)
    value, scaled_gradient, _ = value_and_gradients(loss, first * 1024, second * 1024)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scaled_gradient * 1024, gradient, rtol=1e-9, atol=1e-9)


@given(boxes(), boxes(), st.sampled_from([IoU(), GIoU(), DIoU(), CIoU(), EIoU(), SmoothL1()]))
def test_the_order_of_the_boxes_does_not_matter(prediction: list[float], target: list[float], loss: Loss) -> None:
    first, second = torch.tensor([prediction], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    value, gradient, target_gradient = value_and_gradients(loss, first, second)
    swapped, swapped_gradient, swapped_target_gradient = value_and_gradients(loss, second, first)
    torch.testing.assert_close(value, swapped)
    torch.testing.assert_close(gradient, swapped_target_gradient)
    torch.testing.assert_close(target_gradient, swapped_gradient)


@precisions
@names
@pytest.mark.parametrize("side", [1e-6, 1e-3, 1.0, 300.0, 1e6, 1e14])
def test_identical_boxes_score_exactly_0_at_any_scale(loss: Loss, dtype: torch.dtype, side: float) -> None:
    box = torch.tensor([[side, 2 * side, 3 * side, 7 * side]], dtype=dtype)
    value, gradient, _ = value_and_gradients(loss, box, box.clone())
    assert value.item() == 0
    assert gradient.abs().max().item() * side < TOLERANCE[dtype]


@names
@pytest.mark.parametrize(
    ("prediction", "target"),
    [([3, 3, 3, 3], [3, 3, 3, 3]), ([3, 3, 3, 3], [0, 0, 8, 8]), ([0, 3, 9, 3], [0, 3, 9, 3])],
    ids=["two points", "a point within a box", "two lines"],
)
def test_a_box_without_area_has_iou_0_and_finite_gradients(
    loss: Loss, prediction: list[float], target: list[float]
) -> None:
    first, second = torch.tensor([prediction], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    assert box_similarity(first, second, IoU()).item() == 0
    value, gradient, _ = value_and_gradients(loss, first, second)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_boxes_that_only_touch_do_not_overlap() -> None:
    _, gradient, _ = value_and_gradients(
        IoU(), torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[4.0, 1.0, 7.0, 5.0]])
    )
    assert gradient.abs().sum().item() == 0


def test_log_iou_is_finite_and_flat_below_its_floor() -> None:
    apart = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64), torch.tensor([[5.0, 5.0, 6.0, 6.0]]).double()
    value, gradient, _ = value_and_gradients(IoU(form="log"), *apart)
    assert value.item() == pytest.approx(-np.log(1e-6))
    assert gradient.abs().sum().item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_raised_before_it_can_overflow(dtype: torch.dtype) -> None:
    prediction, target = torch.tensor([[0.0, 0.0, 512.0, 512.0]]), torch.tensor([[0.0, 0.0, 512.0, 1024.0]])
    value = box_loss(prediction.to(dtype), target.to(dtype), IoU())
    assert value.dtype == torch.float32
    assert value.item() == 0.5


def test_similarity_and_loss_add_up_to_1() -> None:
    rng = np.random.default_rng(23)
    rows, columns = torch.tensor(random_boxes(rng, 30)), torch.tensor(random_boxes(rng, 30))
    for loss in (IoU(), GIoU(), DIoU(), CIoU(), EIoU()):
        torch.testing.assert_close(
            box_similarity(rows, columns, loss).diagonal(), 1 - box_loss(rows, columns, loss), rtol=1e-12, atol=1e-12
        )
