"""The engine: one batch on one device, from the requests' arrays to their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from boxloss.losses import AlphaIoU, CIoU, EIoU, GIoU, IoU, Loss, SmoothL1, WIoU
from boxloss.words import COLUMNS
from boxloss_server.engine.formats import gradient_rows, polygon_corners, write_planes
from boxloss_server.engine.pairs import Array, Evaluation, Grid, Layout, Matrix, Pairs, Score, Scores
from boxloss_server.losses import Geometry, OrientedGeometry, evaluate, ratio, similarity

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
        columns = COLUMNS[grid.box_format]
        planes = [
            torch.empty((columns, len(boxes)), dtype=_DTYPES[work.precision]) for boxes in (grid.rows, grid.columns)
        ]
        write_planes(planes[0].numpy(), grid.rows, grid.box_format, grid.masked_rows)
        write_planes(planes[1].numpy(), grid.columns, grid.box_format, grid.masked_columns)
        with torch.no_grad():
            geometry = _geometry(
                work.layout,
                planes[0].to(self.device)[:, :, None],
                planes[1].to(self.device)[:, None, :],
                grid.squared_image_diagonal,
            )
            metric = similarity(geometry, work.metric)
            if grid.crowd is not None:
                crowd = torch.from_numpy(grid.crowd).to(self.device)
                metric = torch.where(crowd, ratio(geometry.intersection, geometry.area.expand(metric.shape)), metric)
            matrix: Array = metric.cpu().numpy()
        matrix[grid.masked_rows] = np.nan
        matrix[:, grid.masked_columns] = np.nan
        return matrix

    def warm_up(self) -> None:
        """Evaluates a few losses once, so that the first request does not pay for what torch sets up lazily."""
        boxes = np.array([[0.0, 0.0, 2.0, 2.0]])
        none = np.empty(0, np.int64)
        for precision in ("float32", "float64"):
            losses = (SmoothL1(), CIoU(), EIoU(), AlphaIoU(GIoU()))
            work = Evaluation(losses, "corners", precision, prediction_gradients=True, target_gradients=True)
            self.evaluate(work, [Pairs(boxes, boxes + 1, "xyxy", none, None, "none")])
            self.matrix(Matrix(IoU(), "corners", precision), Grid(boxes, boxes, "xyxy", none, none))

    def _stage(self, work: Evaluation, requests: Sequence[Pairs], ends: Array) -> Tensor:
        """The batch on the device, shape (2 K + 1 + needs, N).

        K planes of predictions, K of targets, one of scales, and one for each thing that is needed besides.
        """
        count = int(ends[-1])
        size = -(-count // _VECTOR) * _VECTOR
        columns = COLUMNS[requests[0].box_format]
        staging = torch.empty(
            (2 * columns + 1 + len(work.needs), size),
            dtype=_DTYPES[work.precision],
            pin_memory=self.device.type == "cuda",
        )
        planes = staging.numpy()
        planes[:, count:] = 0
        for request, end in zip(requests, ends, strict=True):
            place = planes[:, end - len(request) : end]
            write_planes(place[:columns], request.predictions, request.box_format, request.masked)
            write_planes(place[columns : 2 * columns], request.targets, request.box_format, request.masked)
            _write_scale(place[2 * columns], request)
            for plane, need in zip(place[2 * columns + 1 :], work.needs, strict=True):
                plane[:] = _given(request, need)
        return staging.to(self.device, non_blocking=True)

    def _compute(self, work: Evaluation, batch: Tensor) -> Array:
        """Planes: the IoU, then for each loss its value and the gradients asked for."""
        needs = dict(zip(work.needs, batch[len(batch) - len(work.needs) :], strict=True))
        columns = (len(batch) - len(needs)) // 2
        prediction = batch[:columns].requires_grad_(work.prediction_gradients)
        target = batch[columns : 2 * columns].requires_grad_(work.target_gradients)
        scale = batch[2 * columns]
        inputs = [box for box in (prediction, target) if box.requires_grad]
        compute = similarity if work.similarities else evaluate
        with torch.set_grad_enabled(bool(inputs)):
            geometry = _geometry(
                work.layout, prediction, target, needs.get("image_size", math.nan), needs.get("running_mean", math.nan)
            )
            values = [compute(geometry, loss) * scale for loss in work.losses]
            iou = geometry.iou
            if work.crowds:
                iou = torch.where(needs["crowd"] > 0, ratio(geometry.intersection, geometry.area), iou)
            planes = [iou[None]]
            for value in values:
                planes.append(value[None])
                if inputs:
                    planes.extend(torch.autograd.grad(value.sum(), inputs, retain_graph=True))
        output: Array = torch.cat([plane.detach() for plane in planes]).cpu().numpy()
        return output


def _geometry(
    layout: Layout,
    prediction: Tensor,
    target: Tensor,
    squared_image_diagonal: Tensor | float = math.nan,
    running_mean: Tensor | float = math.nan,
) -> Geometry | OrientedGeometry:
    if layout == "corners":
        return Geometry(prediction, target, squared_image_diagonal, running_mean)
    return OrientedGeometry(polygon_corners(prediction, layout), polygon_corners(target, layout))


def _given(request: Pairs, need: str) -> Any:
    """What a request gives of what its work needs."""
    match need:
        case "image_size":
            return request.squared_image_diagonal
        case "running_mean":
            return request.running_mean
    return request.crowd


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
    columns = COLUMNS[request.box_format]
    scores = []
    for loss, block in zip(work.losses, np.split(planes[1:], len(work.losses)), strict=True):
        value, gradient_planes = block[0], block[1:]
        if request.reduction == "none":
            value = value.copy()
            value[request.masked] = np.nan
        else:
            value = np.asarray(value.sum(dtype=np.float64), value.dtype)
        gradients = [
            gradient_rows(gradient_planes[i : i + columns], request.box_format)
            for i in range(0, len(gradient_planes), columns)
        ]
        scores.append(
            Score(
                value,
                prediction_gradient=gradients.pop(0) if work.prediction_gradients else None,
                target_gradient=gradients.pop(0) if work.target_gradients else None,
                running_mean=_next_running_mean(loss, request, iou),
            )
        )
    return Scores(scores, iou)


def _next_running_mean(loss: Loss, request: Pairs, iou: Array) -> float | None:
    """The running mean with a share of this request's, where the loss needs one."""
    if not (isinstance(loss, WIoU) and loss.needed):
        return None
    if len(request.masked) == len(request):
        return request.running_mean
    mean = 1 - float(np.nanmean(iou, dtype=np.float64))
    return request.running_mean + loss.momentum * (mean - request.running_mean)
