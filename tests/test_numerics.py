"""Every loss on every kind of degenerate pair, in every precision: finite, with the documented value and gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import boxloss
from boxloss import Loss
from boxloss_server.losses import OrientedGeometry, evaluate
from boxloss_server.losses.polygons import rectangle_corners
from tests.catalogue import LOSSES
from tests.reference import Pair
from tests.test_losses import value_and_gradients

BOX = [2.0, 3.0, 10.0, 7.0]
PAIRS: dict[str, tuple[list[float], list[float]]] = {
    "identical": (BOX, BOX),
    "two points": ([3, 3, 3, 3], [3, 3, 3, 3]),
    "a point in a box": ([3, 4, 3, 4], BOX),
    "a box around a point": (BOX, [3, 4, 3, 4]),
    "a point apart": ([30, 40, 30, 40], BOX),
    "a line in a box": ([3, 4, 9, 4], BOX),
    "two lines": ([2, 3, 10, 3], [2, 3, 10, 3]),
    "crossing lines": ([0, 5, 10, 5], [5, 0, 5, 10]),
    "touching edges": (BOX, [10, 3, 14, 7]),
    "touching corners": (BOX, [10, 7, 12, 9]),
    "nested": ([4, 4, 6, 5], BOX),
    "nested with a common edge": ([2, 4, 6, 5], BOX),
    "same center and aspect": ([4, 4, 8, 6], BOX),
    "tiny": ([1e-6, 1e-6, 3e-6, 2e-6], [1.5e-6, 1e-6, 4e-6, 4e-6]),
    "tiny and large": ([1e-6, 1e-6, 3e-6, 2e-6], [0, 0, 1e6, 1e6]),
    "large": ([1e6, 1e6, 3e6, 2e6], [2e6, 1e6, 4e6, 4e6]),
    "far apart": ([0, 0, 1, 1], [1e6, 1e6, 1e6 + 16, 1e6 + 16]),
    "overflowing half precision": ([0, 0, 512, 512], [256, 0, 768, 1024]),
}

losses = pytest.mark.parametrize("loss", LOSSES, ids=repr)
pairs = pytest.mark.parametrize("case", PAIRS)


def tensors(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    prediction, target = PAIRS[case]
    return torch.tensor([prediction], dtype=dtype), torch.tensor([target], dtype=dtype)


@losses
@pairs
def test_value_and_gradients_are_the_documented_ones(loss: Loss, case: str) -> None:
    value, gradient, target_gradient = value_and_gradients(loss, *tensors(case, torch.float64))
    expected = LOSSES[loss](Pair(*PAIRS[case]))
    slopes = np.array(expected.slopes)
    assert value.item() == pytest.approx(expected.value, rel=1e-9, abs=1e-12)
    tolerance = 1e-9 * max(1.0, float(np.abs(slopes).max()))
    np.testing.assert_allclose(torch.cat([gradient, target_gradient], 1)[0], slopes, rtol=1e-7, atol=tolerance)


FITTING = [
    (case, dtype)
    for case in PAIRS
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    if all(box.isfinite().all() for box in tensors(case, dtype))
]


@losses
@pytest.mark.parametrize(("case", "dtype"), FITTING, ids=str)
def test_lower_precision_is_finite_and_near(loss: Loss, case: str, dtype: torch.dtype) -> None:
    boxes = tensors(case, dtype)
    # As the service does: the numbers are those of the type, the computation that of float32.
    results = value_and_gradients(loss, *(box.float() for box in boxes))
    assert all(result.isfinite().all() for result in results)
    expected, _, _ = value_and_gradients(loss, *(box.double() for box in boxes))
    assert results[0].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)


ORIENTED: list[Loss] = [
    boxloss.IoU(),
    boxloss.IoU(form="log"),
    boxloss.IoU(form="square"),
    boxloss.GIoU(),
    boxloss.DIoU(),
    boxloss.AlphaIoU(boxloss.GIoU(), alpha=0.5),
    boxloss.Focal(boxloss.DIoU(), detach_weight=False),
    boxloss.Focaler(boxloss.IoU()),
    *(boxloss.ProbIoU(form=form) for form in ("hellinger", "bhattacharyya")),
    *(boxloss.GWD(transform=transform) for transform in ("log", "sqrt", "identity")),
    *(boxloss.KLD(form=form) for form in ("prediction_target", "target_prediction", "minimum", "maximum", "jeffreys")),
    *(boxloss.KLD(transform=transform) for transform in ("sqrt", "identity")),
    *(boxloss.BCD(transform=transform) for transform in ("log", "sqrt", "identity")),
    boxloss.KFIoU(),
]
ROTATED: dict[str, tuple[list[float], list[float]]] = {
    "identical": ([5, 5, 8, 4, 0.3], [5, 5, 8, 4, 0.3]),
    "identical squares, another angle": ([5, 5, 4, 4, 0], [5, 5, 4, 4, math.pi / 2]),
    "upright and identical": ([5, 5, 8, 4, 0], [5, 5, 8, 4, 0]),
    "nested": ([5, 5, 2, 1, 0.3], [5, 5, 8, 4, 0.3]),
    "touching": ([0, 0, 2, 2, 0], [2, 0, 2, 2, 0]),
    "crossing": ([0, 0, 10, 1, 0], [0, 0, 10, 1, math.pi / 2]),
    "nearly parallel": ([5, 5, 8, 4, 0.3], [5, 5, 8, 4, 0.3 + 1e-7]),
    "tiny": ([0, 0, 1e-6, 2e-6, 0.1], [1e-6, 0, 1e-6, 1e-6, 0.4]),
    "large": ([1e6, 1e6, 3e5, 2e5, 0.1], [1.1e6, 1e6, 3e5, 2e5, 0.7]),
    "long and thin": ([0, 0, 1000, 1, 0.1], [0, 0, 1000, 1, 0.12]),
    "far apart": ([0, 0, 1, 1, 0.1], [1e6, 1e6, 16, 16, 0.5]),
}


@pytest.mark.parametrize("loss", ORIENTED, ids=repr)
@pytest.mark.parametrize("case", ROTATED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_oriented_losses_are_finite_and_0_for_identical_boxes(loss: Loss, case: str, dtype: torch.dtype) -> None:
    boxes: list[Any] = [torch.tensor(box, dtype=dtype)[:, None].requires_grad_() for box in ROTATED[case]]
    value = evaluate(OrientedGeometry(*map(rectangle_corners, boxes)), loss)
    gradients = torch.autograd.grad(value.sum(), boxes)
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    if "identical" in case:
        assert value.item() == pytest.approx(0, abs=1e-6 if dtype == torch.float64 else 2e-3)
