"""What the client gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxloss.contract.arrays import Array
from boxloss.losses import Loss


@dataclass(frozen=True)
class Execution:
    """How the server served a message. Times are seconds."""

    queue_time: float
    """From admission to the start of the batch."""
    compute_time: float
    """Computation of the whole batch."""
    batch_requests: int
    """Requests in the batch."""
    batch_pairs: int
    """Pairs in the batch."""


@dataclass(frozen=True)
class LossResult:
    """One loss over pairs of boxes. Arrays are float32, or float64 where float64 boxes were given."""

    spec: Loss
    """What was computed."""
    loss: Array
    """Weighted losses (or similarities), shape (N,), NaN where not valid; with a reduction, of shape ()."""
    gradient: Array | None
    """Gradient of each pair's own weighted and reduced loss with respect to its prediction, of the boxes' shape."""
    target_gradient: Array | None
    """Gradient of the same loss with respect to its target, of the boxes' shape."""
    iou: Array
    """IoU of each pair, shape (N,), never weighted."""
    valid: NDArray[np.bool_]
    """Which pairs have valid boxes, shape (N,); all, unless invalid="mask"."""
    running_mean: float | None
    """For the next call, where the loss needs one."""
    executions: tuple[Execution, ...]
    """How the server served it: one for each message that the input was split into, or one for the message that it
    shared with other calls."""


@dataclass(frozen=True)
class ParameterInfo:
    """A parameter of a loss that a server offers."""

    name: str
    summary: str
    default: float | bool | str | None
    """None for a parameter that must be given."""
    minimum: float | None = None
    maximum: float | None = None
    minimum_excluded: bool = False
    maximum_excluded: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class LossInfo:
    """A loss that a server offers."""

    name: str
    title: str
    summary: str
    formula: str
    paper: str
    parameters: tuple[ParameterInfo, ...]
    needs: tuple[str, ...]
    """Keywords of a call that it can need."""
    blind_spots: str
    """Pairs on which it has no gradient, or which it ranks wrongly."""
    aliases: str
    """What other libraries call it."""
    axis_aligned: bool
    """Whether it is defined for axis-aligned boxes; of a modifier, over some base."""
    oriented: bool
    """Whether it is defined for oriented boxes; of a modifier, over some base."""


@dataclass(frozen=True)
class ServerInfo:
    """What a server offers."""

    version: str
    device: str
    message_bytes: int
    """Largest message."""
    request_pairs: int
    """Most pairs in a message; a pair under two losses counts twice."""
    losses: tuple[LossInfo, ...]
    metrics: tuple[str, ...]
    """Metrics of `pairwise_iou`."""
