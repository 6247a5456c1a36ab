"""What every peer's worker computes: CIoU with gradients in eager torch, for the requests of a batch together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from boxloss.losses import CIoU
from boxloss_server.losses import Geometry, evaluate

BATCH_REQUESTS = 64
"""The most requests of a batch."""
BATCH_PAIRS = 2**18
"""The most pairs that are computed at once, as in the service: more would only cost memory."""
WAIT_MS = 1
"""How long a batch stays open. Longer waits make a lone caller wait in vain, and 64 of them fill a batch anyway."""

_BYTES_PER_PAIR = 2 * 4 * 4


def set_up() -> None:
    """Leaves a core to the server and what asks it: torch's threads get in their way, and so in each other's."""
    torch.set_num_threads(max(len(os.sched_getaffinity(0)) - 1, 1))
    answer([np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32).tobytes()])


def answer(bodies: Sequence[bytes]) -> list[bytes]:
    """The answers to the requests of a batch, in their order."""
    return [each for group in _groups(bodies) for each in _answer(group)]


def _groups(bodies: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Splits a batch where it gets too large."""
    group: list[bytes] = []
    pairs = 0
    for body in bodies:
        count = len(body) // _BYTES_PER_PAIR
        if group and pairs + count > BATCH_PAIRS:
            yield group
            group, pairs = [], 0
        group.append(body)
        pairs += count
    if group:
        yield group


def _answer(bodies: list[bytes]) -> Iterator[bytes]:
    requests = [np.frombuffer(body, np.float32).reshape(2, -1, 4) for body in bodies]
    boxes = torch.from_numpy(np.concatenate(requests, axis=1)).transpose(1, 2).contiguous()
    predictions, targets = boxes[0].requires_grad_(), boxes[1]
    geometry = Geometry(predictions, targets)
    losses = evaluate(geometry, CIoU())
    (gradients,) = torch.autograd.grad(losses.sum(), predictions)
    columns = losses.detach().numpy(), geometry.iou.detach().numpy(), gradients.T.contiguous().numpy()
    end = 0
    for request in requests:
        start, end = end, end + request.shape[1]
        yield b"".join([column[start:end].tobytes() for column in columns])
