"""The training loop. Who computes the box loss is an argument; nothing else differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from examples.detector.assignment import Targets, assign
from examples.detector.model import Detector, Predictions
from examples.detector.pictures import Picture, pictures
from torch import Tensor
from torch.nn import functional

import boxloss
from boxloss_server import losses

SPEC = boxloss.CIoU()
"""The loss of boxes."""
BOX_WEIGHT = 2.0
LEARNING_RATE = 4e-3
_TRAINING, _HELD_OUT = 0, 1
"""Streams of pictures: the second number of their seed."""

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of predicted boxes and their targets, (N, 4) both: a function of this process, or a server's."""


@dataclass(frozen=True)
class Recipe:
    """What a training depends on, besides who computes the box loss.

    Attributes:
        steps: of the optimizer.
        batch: pictures in a step; each is drawn for it and seen once.
        seed: of pictures and first weights.
        dtype: of weights and pictures.
    """

    steps: int = 600
    batch: int = 16
    seed: int = 0
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Batch:
    """Pictures of a step, of shape (B, 3, SIDE, SIDE), and what is to be found in them."""

    pixels: Tensor
    targets: Targets


Watch = Callable[[Detector, Batch], object]
"""Is shown the model and the batch of each step before the step is made."""


@dataclass(frozen=True)
class Trained:
    """A model, and its loss at each step."""

    model: Detector
    losses: list[float]


def train(recipe: Recipe, box_loss: LossFunction, watch: Watch | None = None) -> Trained:
    """Trains a detector from scratch."""
    torch.manual_seed(recipe.seed)
    model = Detector().to(recipe.dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=recipe.steps)
    values = []
    for step in range(recipe.steps):
        batch = batch_of(recipe, step)
        if watch:
            watch(model, batch)
        loss = loss_of(model(batch.pixels), batch.targets, box_loss)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        values.append(loss.item())
    return Trained(model, values)


def in_process(predictions: Tensor, targets: Tensor) -> Tensor:
    """The box loss without a service."""
    return losses.box_loss(predictions, targets, SPEC).mean()


def loss_of(predictions: Predictions, targets: Targets, box_loss: LossFunction) -> Tensor:
    """The loss of a batch: objectness of all cells; class and box of those that have an object."""
    positive = targets.positive
    objectness = functional.binary_cross_entropy_with_logits(
        predictions.objectness, positive.to(predictions.objectness.dtype), reduction="sum"
    )
    classes = functional.cross_entropy(predictions.classes[positive], targets.classes[positive])
    boxes = box_loss(predictions.boxes[positive], targets.boxes[positive])
    return objectness / positive.sum() + classes + BOX_WEIGHT * boxes


def batch_of(recipe: Recipe, step: int) -> Batch:
    """The pictures of a step, whoever asks."""
    drawn = list(islice(pictures((recipe.seed, _TRAINING, step)), recipe.batch))
    assigned = [assign(picture.boxes.to(recipe.dtype), picture.classes) for picture in drawn]
    pixels = torch.stack([picture.pixels for picture in drawn]).to(recipe.dtype)
    return Batch(pixels, Targets(*(torch.stack(parts) for parts in zip(*assigned, strict=True))))


def held_out(recipe: Recipe, count: int) -> list[Picture]:
    """Pictures that no training sees."""
    return list(islice(pictures((recipe.seed, _HELD_OUT)), count))


@contextmanager
def deterministic() -> Iterator[None]:
    """Has torch compute the same bits each time: on one thread, with deterministic algorithms."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
