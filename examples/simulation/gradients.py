"""Where the gradients come from: a server, or the server's engine in this process. Both give the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from examples.simulation.cases import CENTER

import boxloss
from boxloss.contract.arrays import Array
from boxloss.contract.words import BoxFormat
from boxloss.errors import BoxlossError
from boxloss.losses import Loss
from boxloss_server.engine import Engine, Evaluation, Kernels, Pairs, find_device
from boxloss_server.settings import Settings

Gradients: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]
"""From boxes and targets of shape (N, 4) to their IoU, shape (N,), and the loss's gradient in the boxes, (N, 4)."""

Source: TypeAlias = Callable[[Loss, BoxFormat], Gradients]
"""The gradients of a loss in boxes of a format, for one descent."""

IMAGE_SIZE = (2 * CENTER, 2 * CENTER)
"""For losses that need the image's size: the targets lie in its middle."""
FIRST_MEAN = 1.0
"""For losses that need a running mean of 1 - IoU: where it starts. Each descent has its own."""


def service(client: boxloss.Client) -> Source:
    """Gradients that a server computes."""

    def source(loss: Loss, box_format: BoxFormat) -> Gradients:
        running_mean: float | None = FIRST_MEAN

        def gradients(boxes: Array, targets: Array) -> tuple[Array, Array]:
            nonlocal running_mean
            result = client.evaluate(
                boxes,
                targets,
                loss,
                gradients=True,
                box_format=box_format,
                image_size=IMAGE_SIZE,
                running_mean=running_mean,
            )
            assert result.gradient is not None  # It was asked for.
            running_mean = result.running_mean
            return result.iou, result.gradient

        return gradients

    return source


@contextmanager
def process() -> Iterator[Source]:
    """Gradients that this process computes, with neither a server nor gRPC.

    As a server does, it compiles losses in the background unless BOXLOSS_COMPILE is off, and keeps them in
    BOXLOSS_KERNEL_CACHE.
    """
    settings = Settings()
    device = find_device(settings.device)
    kernels = Kernels(device, settings.compile, settings.kernel_cache, settings.max_kernels)
    engine = Engine(device, kernels)

    def source(loss: Loss, box_format: BoxFormat) -> Gradients:
        work = Evaluation((loss,), box_format, "float64", prediction_gradients=True, target_gradients=False)
        squared_diagonal = IMAGE_SIZE[0] ** 2 + IMAGE_SIZE[1] ** 2
        running_mean: float = FIRST_MEAN

        def gradients(boxes: Array, targets: Array) -> tuple[Array, Array]:
            nonlocal running_mean
            pairs = Pairs(boxes, targets, squared_image_diagonal=squared_diagonal, running_mean=running_mean)
            (answer,) = engine.evaluate(work, [pairs])
            if isinstance(answer, BoxlossError):
                raise answer
            (score,) = answer.scores
            assert score.prediction_gradient is not None  # It was asked for.
            if score.running_mean is not None:
                running_mean = score.running_mean
            return answer.iou, score.prediction_gradient

        return gradients

    try:
        yield source
    finally:
        kernels.close()  # Or the process would not end before a compiler under way has.
