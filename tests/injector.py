"""Puts errors into good labels, so that it is known what an audit should find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from boxloss.audit.finding import Kind
from boxloss.audit.image import Image, Labels
from boxloss.contract.arrays import Array

INJECTED = (Kind.MISSING, Kind.SPURIOUS, Kind.BAD_LOCATION, Kind.WRONG_CLASS, Kind.DUPLICATE)


@dataclass(frozen=True)
class Injected:
    """One error.

    Attributes:
        kind: of the error.
        labels: rows of the labels that show it: one, both of a duplicate, none where a label was removed.
        box: of the label that was removed.
    """

    kind: Kind
    labels: frozenset[int]
    box: Array | None = None


@dataclass(frozen=True)
class Spoiled:
    """An image with errors.

    Attributes:
        image: with its labels in another order.
        errors: what is wrong with them.
        origins: for each label the row that it was made of; -1 where it was made of nothing.
    """

    image: Image
    errors: tuple[Injected, ...]
    origins: tuple[int, ...]


def inject(images: Sequence[Image], seed: int, rate: float = 0.05) -> list[Spoiled]:
    """Spoils some labels of images: removes, shifts, rescales, renames or repeats them, and adds others.

    A label gets one error at most. What is added has the size and class of a label of some other image, anywhere in
    this one; images must have sizes. Crowds are left alone.

    Args:
        images: with good labels.
        seed: of the choice.
        rate: how many labels get each error, of 1.
    """
    rng = np.random.default_rng(seed)
    pool = [
        (box[2:] - box[:2], name, np.array([image.width, image.height]))
        for image in images
        for box, name, crowd in zip(image.labels.boxes, image.labels.classes, image.labels.crowd, strict=True)
        if not crowd
    ]
    classes = sorted({name for _, name, _ in pool})
    return [_spoil(image, rng, rate, pool, classes) for image in images]


def _spoil(
    image: Image, rng: np.random.Generator, rate: float, pool: Sequence[tuple[Array, str, Array]], classes: list[str]
) -> Spoiled:
    labels = image.labels
    size = np.array([image.width, image.height], float)
    edges = np.tile(size, 2)
    drawn: list[tuple[Array, str, bool, int]] = []
    errors: list[tuple[Kind, tuple[int, ...], Array | None]] = []
    for row, (box, name, crowd) in enumerate(zip(labels.boxes, labels.classes, labels.crowd, strict=True)):
        error = rng.random() / rate
        sides = box[2:] - box[:2]
        place = (len(drawn),)
        if crowd or error >= 5:
            drawn.append((box, name, bool(crowd), row))
        elif error < 1:
            errors.append((Kind.MISSING, (), box))
        elif error < 3:
            moved = _shifted(box, sides, rng) if error < 2 else _rescaled(box, sides, rng)
            drawn.append((np.clip(moved, 0, edges), name, False, row))
            errors.append((Kind.BAD_LOCATION, place, None))
        elif error < 4:
            drawn.append((box, str(rng.choice([each for each in classes if each != name])), False, row))
            errors.append((Kind.WRONG_CLASS, place, None))
        else:
            again = np.clip(box + rng.normal(0, 0.05, 4) * np.tile(sides, 2), 0, edges)
            drawn += [(box, name, False, row), (again, name, False, row)]
            errors.append((Kind.DUPLICATE, (*place, place[0] + 1), None))
        if rng.random() < rate:
            sides, name, other = pool[int(rng.integers(len(pool)))]
            sides = sides / other * size
            corner = rng.uniform(0, 1, 2) * (size - sides)
            errors.append((Kind.SPURIOUS, (len(drawn),), None))
            drawn.append((np.concatenate([corner, corner + sides]), name, False, -1))
    order = rng.permutation(len(drawn))
    places = {old: new for new, old in enumerate(order.tolist())}
    mixed = [drawn[old] for old in order]
    spoiled = Labels(
        np.array([box for box, _, _, _ in mixed]).reshape(-1, 4),
        [name for _, name, _, _ in mixed],
        list(range(len(mixed))),
        np.array([crowd for _, _, crowd, _ in mixed], bool),
    )
    return Spoiled(
        replace(image, labels=spoiled),
        tuple(Injected(kind, frozenset(places[row] for row in rows), box) for kind, rows, box in errors),
        tuple(origin for _, _, _, origin in mixed),
    )


def _shifted(box: Array, sides: Array, rng: np.random.Generator) -> Array:
    """By a quarter to half of its size, in any direction."""
    angle = rng.uniform(0, 2 * np.pi)
    step = np.array([np.cos(angle), np.sin(angle)]) * sides * rng.uniform(0.25, 0.5)
    shifted: Array = box + np.tile(step, 2)
    return shifted


def _rescaled(box: Array, sides: Array, rng: np.random.Generator) -> Array:
    """About its first corner, to 0.5 to 0.75 or 1.35 to 2 times its size."""
    factor = rng.uniform(0.5, 0.75) if rng.random() < 0.5 else rng.uniform(1.35, 2.0)
    return np.concatenate([box[:2], box[:2] + sides * factor])
