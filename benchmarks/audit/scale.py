"""Many images, one after the other: how fast they are audited, and in how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import cycle
from time import perf_counter

import psutil

from benchmarks.audit.sets import SETS, images_of
from boxloss.audit.dataset import audit
from boxloss.audit.image import Image
from boxloss.audit.ray import audit_on_ray


class Engine(StrEnum):
    """Where the audit runs."""

    EMBEDDED = "embedded"
    RAY = "ray"


@dataclass(frozen=True)
class Tenth:
    """A tenth of the images.

    Attributes:
        images: so far.
        rate: images per second, of this tenth alone.
        memory: MiB that this process holds after it.
        workers: MiB that all processes below it hold.
    """

    images: int
    rate: float
    memory: float
    workers: float


def scale(count: int, engine: Engine) -> Iterator[Tenth]:
    """Audits the real sets over and over, as a stream of images."""
    auditing = audit if engine is Engine.EMBEDDED else audit_on_ray
    audited = auditing(_repeated(count))
    this = psutil.Process()
    ends = {count * tenth // 10 for tenth in range(1, 11)}
    before, started = 0, perf_counter()
    for number, _ in enumerate(audited, start=1):
        if number in ends:
            rate = (number - before) / (perf_counter() - started)
            workers = sum(_memory(each) for each in this.children(recursive=True))
            yield Tenth(number, rate, _memory(this), workers)
            before, started = number, perf_counter()
    assert audited.summary().images == count


def _repeated(count: int) -> Iterator[Image]:
    images = [image for name in SETS for image in images_of(name)]
    for number, image in zip(range(count), cycle(images), strict=False):
        yield replace(image, image_id=number)


def _memory(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.NoSuchProcess:
        return 0.0
