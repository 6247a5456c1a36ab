"""Whether a contender computes what it should: eager torch in double precision says so."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from benchmarks.errors import BenchmarkError
from benchmarks.workload import LOSS, Answer, Workload
from boxloss_server.losses import Geometry, evaluate


def verify(name: str, workload: Workload, answer: Answer) -> None:
    """Compares an answer with the reference, to the tolerance of single precision.

    Raises:
        BenchmarkError: it differs.
    """
    for field, given, wanted in zip(Answer._fields, answer, _reference(workload), strict=True):
        if given.shape != wanted.shape:
            raise BenchmarkError(f"{name} answers a {field} of shape {given.shape}, not {wanted.shape}")
        # A gradient's digits cancel: its error is measured against the largest.
        allowed = 1e-4 * np.abs(wanted) + 1e-5 * np.abs(wanted).max()
        off = np.abs(given - wanted) - allowed
        if not (off <= 0).all():
            row = np.unravel_index(int(np.argmax(off)), off.shape)
            raise BenchmarkError(
                f"{name} answers a wrong {field} for {workload.pairs:,} pairs: in row {row[0]} {given[row]},"
                f" not {wanted[row]}"
            )


@cache
def _reference(workload: Workload) -> Answer:
    predictions, targets = torch.from_numpy(workload.boxes).double().transpose(1, 2).contiguous()
    predictions.requires_grad_()
    geometry = Geometry(predictions, targets)
    losses = evaluate(geometry, LOSS)
    (gradients,) = torch.autograd.grad(losses.sum(), predictions)
    loss, iou, gradient = (each.detach().float().numpy() for each in (losses, geometry.iou, gradients.T))
    return Answer(loss, iou, gradient)
