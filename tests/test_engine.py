"""The engine: requests of one batch stay apart, in every format, reduction and weighting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from boxloss import CIoU, GIoU, InvalidInputError, IoU, SmoothL1
from boxloss_server.engine import Engine, Evaluation, Grid, Kernels, Matrix, Pairs, Scores, find_device
from tests.boxes import FORMATS, corner_slopes, from_corners, random_boxes


@pytest.fixture(scope="module")
def engine() -> Engine:
    cpu = torch.device("cpu")
    return Engine(cpu, Kernels(cpu))


def pairs(seed: int, count: int, box_format: Any = "xyxy", **changes: Any) -> Pairs:
    rng = np.random.default_rng(seed)
    predictions, targets = (from_corners(random_boxes(rng, count), box_format) for _ in range(2))
    return Pairs(predictions, targets)._replace(**changes)


def evaluation(*losses: Any, box_format: Any = "xyxy") -> Evaluation:
    return Evaluation(losses, box_format, "float64", prediction_gradients=True, target_gradients=True)


def scores_of(engine: Engine, work: Evaluation, *requests: Pairs) -> list[Scores]:
    answers = engine.evaluate(work, requests)
    assert all(isinstance(answer, Scores) for answer in answers)
    return answers  # type: ignore[return-value]


def same(first: NDArray[Any] | None, second: NDArray[Any] | None, rtol: float = 1e-12) -> None:
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first, second, rtol=rtol, atol=1e-12)


def test_each_request_of_a_batch_gets_what_it_gets_alone(engine: Engine) -> None:
    requests = [
        pairs(1, 7),
        pairs(2, 0),
        pairs(3, 1, reduction="mean"),
        pairs(4, 20, weights=np.linspace(0, 2, 20), reduction="sum"),
        pairs(5, 5, masked=np.array([1, 3])),
        pairs(6, 40_000),
    ]
    work = evaluation(SmoothL1(), CIoU(), GIoU())
    for request, together in zip(requests, scores_of(engine, work, *requests), strict=True):
        (alone,) = scores_of(engine, work, request)
        same(together.iou, alone.iou)
        for first, second in zip(together.scores, alone.scores, strict=True):
            same(first.loss, second.loss)
            same(first.prediction_gradient, second.prediction_gradient)
            same(first.target_gradient, second.target_gradient)


@pytest.mark.parametrize("box_format", FORMATS)
def test_a_pair_has_one_loss_in_every_format_and_the_gradient_of_its_own(engine: Engine, box_format: Any) -> None:
    losses = SmoothL1(), CIoU()
    (expected,) = scores_of(engine, evaluation(*losses), pairs(6, 50))
    (scores,) = scores_of(engine, evaluation(*losses, box_format=box_format), pairs(6, 50, box_format))
    same(scores.iou, expected.iou, rtol=1e-9)
    for score, corners in zip(scores.scores, expected.scores, strict=True):
        assert corners.prediction_gradient is not None
        assert corners.target_gradient is not None
        same(score.loss, corners.loss, rtol=1e-9)
        same(score.prediction_gradient, corners.prediction_gradient @ corner_slopes(box_format), rtol=1e-8)
        same(score.target_gradient, corners.target_gradient @ corner_slopes(box_format), rtol=1e-8)


def test_weights_and_reductions_act_on_loss_and_gradient_alike(engine: Engine) -> None:
    weights = np.random.default_rng(7).uniform(0, 3, 10)
    work = evaluation(GIoU())
    (plain,) = scores_of(engine, work, pairs(8, 10))
    (weighted,) = scores_of(engine, work, pairs(8, 10, weights=weights))
    (total,) = scores_of(engine, work, pairs(8, 10, weights=weights, reduction="sum"))
    (mean,) = scores_of(engine, work, pairs(8, 10, weights=weights, reduction="mean"))
    assert plain.scores[0].prediction_gradient is not None
    loss, gradient = plain.scores[0].loss * weights, plain.scores[0].prediction_gradient * weights[:, None]
    same(weighted.scores[0].loss, loss)
    same(weighted.scores[0].prediction_gradient, gradient)
    same(total.scores[0].loss, loss.sum())
    same(total.scores[0].prediction_gradient, gradient)
    same(mean.scores[0].loss, loss.sum() / 10)
    same(mean.scores[0].prediction_gradient, gradient / 10)
    same(weighted.iou, plain.iou)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_masked_rows_have_nan_loss_no_gradient_and_no_part_in_a_reduction(engine: Engine, reduction: Any) -> None:
    request = pairs(9, 6, reduction=reduction)
    predictions = request.predictions.copy()
    predictions[[2, 4]] = [np.nan, np.inf, -np.inf, 1e300]
    masked = pairs(9, 6, predictions=predictions, masked=np.array([2, 4]), reduction=reduction)
    valid = [0, 1, 3, 5]
    rest = pairs(9, 6, predictions=request.predictions[valid], targets=request.targets[valid], reduction=reduction)
    (scores,), (expected,) = (scores_of(engine, evaluation(CIoU()), each) for each in (masked, rest))
    score, valid_score = scores.scores[0], expected.scores[0]
    assert score.prediction_gradient is not None
    assert np.isnan(scores.iou[[2, 4]]).all()
    assert not score.prediction_gradient[[2, 4]].any()
    same(score.prediction_gradient[valid], valid_score.prediction_gradient)
    same(score.loss[valid] if reduction == "none" else score.loss, valid_score.loss)
    if reduction == "none":
        assert np.isnan(score.loss[[2, 4]]).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_reduces_to_0(engine: Engine, reduction: Any) -> None:
    (scores,) = scores_of(engine, evaluation(CIoU()), pairs(10, 0, reduction=reduction))
    assert scores.scores[0].loss == 0


def test_gradients_that_nobody_asked_for_are_not_computed(engine: Engine) -> None:
    (scores,) = scores_of(engine, Evaluation((CIoU(),), "xyxy", "float64", False, False), pairs(11, 3))
    assert scores.scores[0].prediction_gradient is None
    assert scores.scores[0].target_gradient is None


def test_a_matrix_holds_every_pair(engine: Engine) -> None:
    request = pairs(12, 9)
    grid = Grid(request.predictions, request.targets, masked_columns=np.array([8]))
    matrix = engine.matrix(Matrix(IoU(), "xyxy", "float64"), grid)
    assert matrix.shape == (9, 9)
    assert np.isnan(matrix[:, 8]).all()
    (scores,) = scores_of(engine, evaluation(IoU()), request)
    same(matrix.diagonal()[:8], scores.iou[:8])


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta", "cuda:x"])
def test_a_device_that_is_not_here_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=device):
        find_device(device)


def test_a_request_with_invalid_boxes_gets_its_error_and_harms_no_neighbor(engine: Engine) -> None:
    good, bad = pairs(13, 4), pairs(14, 4)
    bad.predictions[2, 2] = -1e9
    bad.targets[1, 0] = np.nan
    first, error, last = engine.evaluate(evaluation(CIoU()), [good, bad, good])
    (alone,) = scores_of(engine, evaluation(CIoU()), good)
    assert isinstance(error, InvalidInputError)
    assert [violation.field for violation in error.violations] == ["predictions", "targets"]
    assert "row 2 is inverted" in str(error)
    assert "row 1 is not finite" in str(error)
    for scores in (first, last):
        assert isinstance(scores, Scores)
        same(scores.scores[0].loss, alone.scores[0].loss)
