"""The engine: one batch on one device, from the requests' arrays to their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from boxloss.losses import CATALOGUE, AlphaIoU, GIoU, IoU, Loss
from boxloss_server.engine.formats import gradient_rows, write_corners
from boxloss_server.engine.pairs import Array, Evaluation, Grid, Matrix, Pairs, Score, Scores
from boxloss_server.losses import Geometry, evaluate, similarity

_DTYPES = {"float32": torch.float32, "float64": torch.float64}

_VECTOR = 64
"""Batches are filled up to a multiple of this. The CPU computes whole vectors with other instructions than what is
left over, and so rounds differently: without it, a pair's result would depend on its neighbours."""


class Engine:
    """Computes batches on one device. Calls may overlap: a batch owns its buffers.

    Args:
        device: "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: the device does not exist here.
    """

    def __init__(self, device: str = "auto") -> None:
        gpus = torch.cuda.device_count()
        if device == "auto":
            device = "cuda:0" if gpus else "cpu"
        try:
            self.device = torch.device(device)
        except RuntimeError:
            raise ValueError(f"device {device!r} is not known; use auto, cpu or cuda:N") from None
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device {device!r} is not served; use auto, cpu or cuda:N")
        if self.device.type == "cuda" and (self.device.index or 0) >= gpus:
            raise ValueError(f"device {device!r} is not here: {gpus} GPUs are visible; use auto, cpu or another number")

    def run(self, work: Evaluation | Matrix, requests: Sequence[Pairs] | Sequence[Grid]) -> Sequence[Scores | Array]:
        """Computes the same work for all requests of a batch; answers in their order."""
        if isinstance(work, Evaluation):
            return self.evaluate(work, cast(Sequence[Pairs], requests))
        return [self.matrix(work, grid) for grid in cast(Sequence[Grid], requests)]

    def evaluate(self, work: Evaluation, requests: Sequence[Pairs]) -> list[Scores]:
        """Evaluates losses and gradients over the pairs of all requests in one torch call."""
        ends = np.cumsum([len(request) for request in requests])
        output = self._compute(work, self._stage(work, requests, ends))
        return [
            _scores(work, request, output[:, end - len(request) : end])
            for request, end in zip(requests, ends, strict=True)
        ]

    def matrix(self, work: Matrix, grid: Grid) -> Array:
        """Computes the metric between all rows and all columns of one request, shape (N, M)."""
        rows = torch.empty((4, len(grid.rows)), dtype=_DTYPES[work.precision])
        columns = torch.empty((4, len(grid.columns)), dtype=_DTYPES[work.precision])
        write_corners(rows.numpy(), grid.rows, grid.box_format, grid.masked_rows)
        write_corners(columns.numpy(), grid.columns, grid.box_format, grid.masked_columns)
        with torch.no_grad():
            geometry = Geometry(rows.to(self.device)[:, :, None], columns.to(self.device)[:, None, :])
            matrix: Array = similarity(geometry, work.metric).cpu().numpy()
        matrix[grid.masked_rows] = np.nan
        matrix[:, grid.masked_columns] = np.nan
        return matrix

    def warm_up(self) -> None:
        """Evaluates every loss once, so that the first request does not pay for what torch sets up lazily."""
        boxes = np.array([[0.0, 0.0, 2.0, 2.0]])
        losses: list[Loss] = [AlphaIoU(GIoU()) if loss is AlphaIoU else loss() for loss in CATALOGUE.values()]
        none = np.empty(0, np.int64)
        for precision in ("float32", "float64"):
            work = Evaluation(tuple(losses), precision, prediction_gradients=True, target_gradients=True)
            self.evaluate(work, [Pairs(boxes, boxes + 1, "xyxy", none, None, "none")])
            self.matrix(Matrix(IoU(), precision), Grid(boxes, boxes, "xyxy", none, none))

    def _stage(self, work: Evaluation, requests: Sequence[Pairs], ends: Array) -> Tensor:
        """The batch on the device: four planes of predictions, four of targets and one of scales, shape (9, N)."""
        count = int(ends[-1])
        size = -(-count // _VECTOR) * _VECTOR
        staging = torch.empty((9, size), dtype=_DTYPES[work.precision], pin_memory=self.device.type == "cuda")
        planes = staging.numpy()
        planes[:, count:] = 0
        for request, end in zip(requests, ends, strict=True):
            place = planes[:, end - len(request) : end]
            write_corners(place[:4], request.predictions, request.box_format, request.masked)
            write_corners(place[4:8], request.targets, request.box_format, request.masked)
            _write_scale(place[8], request)
        return staging.to(self.device, non_blocking=True)

    def _compute(self, work: Evaluation, batch: Tensor) -> Array:
        """Planes of shape (K, N): the IoU, then for each loss its value and the gradients asked for."""
        prediction = batch[:4].requires_grad_(work.prediction_gradients)
        target = batch[4:8].requires_grad_(work.target_gradients)
        inputs = [box for box in (prediction, target) if box.requires_grad]
        with torch.set_grad_enabled(bool(inputs)):
            geometry = Geometry(prediction, target)
            values = [evaluate(geometry, loss) * batch[8] for loss in work.losses]
            planes = [geometry.iou[None]]
            for value in values:
                planes.append(value[None])
                if inputs:
                    planes.extend(torch.autograd.grad(value.sum(), inputs, retain_graph=True))
        output: Array = torch.cat([plane.detach() for plane in planes]).cpu().numpy()
        return output


def _write_scale(scale: Array, request: Pairs) -> None:
    """Writes each pair's factor: its weight, over the number of valid pairs for a mean; 0 where masked."""
    scale[:] = 1 if request.weights is None else request.weights
    scale[request.masked] = 0
    if request.reduction == "mean":
        scale /= max(len(request) - len(request.masked), 1)


def _scores(work: Evaluation, request: Pairs, planes: Array) -> Scores:
    """One request's slice of the batch as its answer."""
    iou = planes[0].copy()
    iou[request.masked] = np.nan
    scores = []
    for block in np.split(planes[1:], len(work.losses)):
        value, corners = block[0], block[1:]
        if request.reduction == "none":
            loss = value.copy()
            loss[request.masked] = np.nan
        else:
            loss = np.asarray(value.sum(dtype=np.float64), value.dtype)
        gradients = [gradient_rows(corners[i : i + 4], request.box_format) for i in range(0, len(corners), 4)]
        scores.append(
            Score(
                loss,
                prediction_gradient=gradients.pop(0) if work.prediction_gradients else None,
                target_gradient=gradients.pop(0) if work.target_gradients else None,
            )
        )
    return Scores(scores, iou)
