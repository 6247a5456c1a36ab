"""The function of a batch: from planes of boxes to planes of losses and gradients, in one trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from boxloss.contract.words import COLUMNS
from boxloss.losses import Loss
from boxloss.losses.parameters import Number
from boxloss_server.engine.formats import geometry_of, misshapen, unit_box, unusable
from boxloss_server.engine.pairs import Evaluation, Matrix
from boxloss_server.losses import evaluate, ratio, similarity


def compute(work: Evaluation, batch: Tensor) -> Tensor:
    """Computes all losses of a batch with their gradients.

    Args:
        work: what to compute.
        batch: planes of shape (2 K + 1 + needs, N): K of predictions, K of targets, one of scales, and one for each
            thing that is needed besides.

    Returns:
        Planes of N numbers: 1 where a box is invalid, the IoU, then for each loss its value and the gradients asked
        for, K planes each.
    """
    columns = COLUMNS[work.box_format]
    needs = dict(zip(work.needs, batch[2 * columns + 1 :], strict=True))
    prediction = batch[:columns].requires_grad_(work.prediction_gradients)
    target = batch[columns : 2 * columns].requires_grad_(work.target_gradients)
    scale = batch[2 * columns]
    inputs = [box for box in (prediction, target) if box.requires_grad]
    score = similarity if work.similarities else evaluate
    with torch.set_grad_enabled(bool(inputs)):
        geometry = geometry_of(
            prediction,
            target,
            work.box_format,
            needs.get("image_size", math.nan),
            needs.get("running_mean", math.nan),
        )
        values = [score(geometry, loss) * scale for loss in work.losses]
        iou = geometry.iou
        if work.crowds:
            iou = torch.where(needs["crowd"] > 0, ratio(geometry.intersection, geometry.area), iou)
        planes = [_faults(work, prediction.detach(), target.detach())[None], iou[None]]
        for value in values:
            planes.append(value[None])
            if inputs:
                planes.extend(torch.autograd.grad(value.sum(), inputs, retain_graph=True))
    return torch.cat([plane.detach() for plane in planes])


def with_numbers(work: Evaluation, numbers: Iterator[Any]) -> Evaluation:
    """The same work with other numbers as parameters of its losses, in the order of `numbers_of`."""
    return replace(work, losses=tuple(_with_numbers(loss, numbers) for loss in work.losses))


def structure_of(work: Evaluation) -> Evaluation:
    """The work without its numbers: works that differ in these alone have equal structures."""
    return with_numbers(work, repeat(0.0))


def numbers_of(work: Evaluation) -> list[float]:
    """The parameters of the losses that are real numbers."""
    return [number for loss in work.losses for number in _numbers_of(loss)]


def example(work: Evaluation) -> Tensor:
    """Planes of a small batch of overlapping pairs, to trace the function with and to try it on."""
    pairs = 128
    boxes = torch.tensor(unit_box(work.box_format) * 2)[:, None] * 10
    boxes = boxes + 3 * torch.rand((len(boxes), pairs), generator=torch.Generator().manual_seed(0))
    others = torch.full((1 + len(work.needs), pairs), 0.5)
    return torch.cat([boxes, others]).to(dtype_of(work))


def dtype_of(work: Evaluation | Matrix) -> torch.dtype:
    """The type that it is computed in."""
    return torch.float64 if work.precision == "float64" else torch.float32


def _faults(work: Evaluation, *boxes: Tensor) -> Tensor:
    faults = [unusable(planes) | misshapen(planes, work.box_format) for planes in boxes]
    return (faults[0] | faults[1]).to(boxes[0].dtype)


def _with_numbers(loss: Loss, numbers: Iterator[Any]) -> Loss:
    # Not by the constructor, which would check the numbers: they may stand for any.
    other = object.__new__(type(loss))
    for each in fields(loss):
        value = getattr(loss, each.name)
        if isinstance(each.metadata["kind"], Number):
            value = next(numbers)
        elif isinstance(value, Loss):
            value = _with_numbers(value, numbers)
        object.__setattr__(other, each.name, value)
    return other


def _numbers_of(loss: Loss) -> Iterator[float]:
    for each in fields(loss):
        value = getattr(loss, each.name)
        if isinstance(each.metadata["kind"], Number):
            yield value
        elif isinstance(value, Loss):
            yield from _numbers_of(value)
